"""Trial of Optuna that a user's function gets from a worker, and its checkpoints."""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import optuna
from numpy.random import SeedSequence
from optuna.trial import FrozenTrial, TrialState

from hpo.errors import HpoError
from hpo.runner.limits import TrialTimeoutError
from hpo.runner.objective import TrialStopped
from hpo.runner.trial_runner import LeasedTrial
from hpo.storage.tables.leases import Checkpoint
from hpo.storage.tables.optuna_tables import Details
from hpo.storage.trial_store import Reports

# A checkpoint is a row of the database. A larger one would slow down all workers.
MAX_CHECKPOINT_BYTES = 64 * 10**6

# The user attribute of a trial with the seed that its function has read.
SEED_ATTRIBUTE = "seed"
# LightGBM and other libraries take no larger seed.
_MAX_SEED = 2**31


class TrialAborted(BaseException):  # no error of the function
    """Error of hpo that passes a user's function. It is no ``Exception``, so ``except Exception`` does not catch it.

    Attributes:
        error: The error, such as a lost lease.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class OwnTrial:
    """The trial of a worker, between Optuna's objects and the heartbeat thread.

    Attributes:
        study_id: The study's id in Optuna's tables.
        trial_id: The trial's id in Optuna's tables.
        frozen: The trial as this worker knows it.
        checkpoint: The newest checkpoint of this attempt.
        has_ended: Whether the function has returned.
        aborted: The error that ended the function. The function may have caught it by ``except BaseException``.

    Args:
        leased: The trial's lease and heartbeat.
        study_id: The study's id.
        frozen: The trial in the database.
        note: Receives a message for the user.
    """

    def __init__(self, leased: LeasedTrial, study_id: int, frozen: FrozenTrial, note: Callable[[str], None]) -> None:
        self.study_id = study_id
        self.trial_id = leased.lease.trial_id
        self.frozen = frozen
        self.checkpoint: Checkpoint | None = None
        self.has_ended = False
        self.aborted: BaseException | None = None
        self._leased = leased
        self._note = note
        self._recorded = frozenset(frozen.intermediate_values)

    @property
    def last_report(self) -> tuple[int, float] | None:
        """The last report, None without one or if it is NaN."""
        step = self.frozen.last_step
        if step is None or math.isnan(self.frozen.intermediate_values[step]):
            return None
        return step, self.frozen.intermediate_values[step]

    def is_recorded(self, step: int) -> bool:
        """Return whether an earlier attempt has reported this step."""
        return step in self._recorded

    def write(self, details: Details, reports: Reports) -> None:
        """Queue the changes of the function.

        Raises:
            TrialAborted: if the trial has another owner or has ended, or the database refuses to write.
            TrialStopped: if the worker has to stop.
            TrialTimeoutError: if the trial has run for longer than its timeout.
        """
        if not self.has_ended:
            self.check()
        try:
            self._leased.reporter.write(details, reports)
        except Exception as error:  # it passes the user's function as it is
            raise self._abort(TrialAborted(error)) from error

    def write_now(self) -> None:
        """Write the queued changes now, so that the samplers of other workers see them.

        Raises:
            TrialAborted: if the trial has another owner or has ended, or the database refuses to write.
        """
        try:
            self._leased.reporter.write_now()
        except Exception as error:  # it is raised as it is
            raise self._abort(TrialAborted(error)) from error

    def check(self) -> None:
        """Check that the function may go on.

        Raises:
            TrialStopped: if the worker has to stop.
            TrialTimeoutError: if the trial has run for longer than its timeout.
        """
        try:
            self._leased.tick()
        except TrialTimeoutError as error:
            raise self._abort(error) from None
        if self._leased.has_to_stop:
            raise self._abort(TrialStopped(self.checkpoint))

    def _abort(self, error: BaseException) -> BaseException:
        self.aborted = error
        return error

    def end(self, state: TrialState, values: Sequence[float] | None) -> None:
        """Record the end of the trial, which its worker writes.

        Raises:
            HpoError: if the function itself ends the trial.
        """
        if not self.has_ended:
            raise HpoError(f"trial {self.frozen.number} ends when its objective returns; remove the call of study.tell")
        self.frozen.state = state
        self.frozen.values = None if values is None else list(values)
        self.frozen.datetime_complete = datetime.now()

    def needs_decision(self, step: int | None) -> bool:
        """Return whether the pruner has to decide about a step. It has decided about all steps up to the checkpoint."""
        return step is None or self._leased.lease.checkpoint is None or step > self._leased.lease.epoch

    def load_checkpoint(self) -> bytes | None:
        """Return the state to resume from, None for a new trial."""
        return self._leased.load_checkpoint()

    def save_checkpoint(self, state: bytes, step: int) -> None:
        """Keep a state, and write it if the last checkpoint is old enough.

        Raises:
            TrialStopped: if the worker has to stop.
        """
        if len(state) > MAX_CHECKPOINT_BYTES:
            self._note(
                f"a checkpoint of {len(state) / 1e6:.0f} MB is ignored, because the limit is "
                f"{MAX_CHECKPOINT_BYTES / 1e6:.0f} MB; save a smaller state"
            )
            return
        before, self.checkpoint = self.checkpoint, self._leased.checkpoint_at(step, state)
        # A trial that may pause keeps the newest checkpoint back, because the pruner decides about its step next.
        due = before if self._leased.pauses else self.checkpoint
        if self._leased.has_to_stop:
            raise self._abort(TrialStopped(due))
        if due is not None:
            self._leased.submit(due)

    @property
    def is_pausable(self) -> bool:
        """Whether the trial can wait for a promotion: it has a checkpoint at its last report."""
        return self._leased.pauses and self.checkpoint is not None and self.checkpoint.step == self.frozen.last_step

    @property
    def pauses(self) -> bool:
        """Whether the study's pruner promotes paused trials."""
        return self._leased.pauses


class FunctionTrial(optuna.Trial):
    """Trial of Optuna that resumes.

    Args:
        study: The study, with the sampler and the pruner of the trial.
        own: The trial of the worker.
        seed: The seed of the study.
    """

    def __init__(self, study: optuna.Study, own: OwnTrial, seed: int = 0) -> None:
        super().__init__(study, own.trial_id)
        self.own = own
        self._seed = trial_seed(seed, own.frozen.number)

    @property
    def user_attrs(self) -> dict[str, Any]:
        """The user attributes. If the function reads ``"seed"``, the trial gets a seed as this attribute."""
        return SeededAttributes(super().user_attrs, self._record_seed)

    def _record_seed(self) -> Any:
        # The function may have set the attribute since it got the mapping.
        if SEED_ATTRIBUTE not in super().user_attrs:
            self.set_user_attr(SEED_ATTRIBUTE, self._seed)
        return super().user_attrs[SEED_ATTRIBUTE]

    def report(self, value: float, step: int) -> None:
        """Report an intermediate value. A step that an earlier attempt has reported is ignored."""
        self.own.check()
        if not (isinstance(step, int) and self.own.is_recorded(step)):
            super().report(value, step)

    def should_prune(self) -> bool:
        """Return whether the pruner suggests to end the trial."""
        steps = self._cached_frozen_trial.intermediate_values
        return self.own.needs_decision(max(steps, default=None)) and super().should_prune()


class SeededAttributes(dict[str, Any]):
    """User attributes with a seed for a function that reads it. Only then is the seed an item.

    Args:
        attributes: The attributes of the trial.
        record_seed: Records the seed as an attribute of the trial, and returns it.
    """

    def __init__(self, attributes: Mapping[str, Any], record_seed: Callable[[], Any]) -> None:
        super().__init__(attributes)
        self._record_seed = record_seed

    def __missing__(self, key: str) -> Any:
        if key != SEED_ATTRIBUTE:
            raise KeyError(key)
        seed = self[key] = self._record_seed()
        return seed

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (key == SEED_ATTRIBUTE and self[SEED_ATTRIBUTE] is not None)

    def get(self, key: str, default: Any = None) -> Any:
        """Return an attribute, or the default."""
        return self[key] if key in self else default  # noqa: SIM401  # this is the method

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        # A copy is a plain dictionary, because a trial cannot be copied.
        return dict, (dict(self),)


def trial_seed(seed: int, number: int) -> int:
    """Return the seed of a trial's function."""
    return int(SeedSequence((seed, number)).generate_state(1)[0]) % _MAX_SEED


def load_checkpoint(trial: Any) -> bytes | None:
    """Return the last checkpoint of a trial that resumes.

    Args:
        trial: The trial that the objective got.

    Returns:
        The state that ``save_checkpoint`` got; None for a trial that starts, and for a trial that hpo does not run.
    """
    return trial.own.load_checkpoint() if isinstance(trial, FunctionTrial) else None


def save_checkpoint(trial: Any, state: bytes, step: int) -> None:
    """Offer a checkpoint. It is written every few seconds; the call does not wait for it.

    Call it after ``trial.report`` of the same step and before ``trial.should_prune``. For a trial that hpo does not run
    the call does nothing.

    Args:
        trial: The trial that the objective got.
        state: Everything that the objective needs to continue after the step.
        step: The step that has ended, from 0.

    Raises:
        TypeError: if the state is not bytes.
        ValueError: if the step is negative.
    """
    if not isinstance(trial, FunctionTrial):
        return
    if not isinstance(state, bytes | bytearray | memoryview):
        raise TypeError(f"the state of a checkpoint is bytes, not {type(state).__name__}")
    if step < 0:
        raise ValueError(f"the step of a checkpoint is at least 0, not {step}")
    trial.own.save_checkpoint(bytes(state), step)


def new_frozen_trial(number: int, trial_id: int) -> FrozenTrial:
    """Return a trial that starts now, without parameters. Optuna's objects have local times."""
    return FrozenTrial(
        number=number,
        trial_id=trial_id,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=datetime.now(),
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
    )
