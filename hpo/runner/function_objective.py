"""Objective that calls a user's function with a trial of Optuna."""

import copy
import gc
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from hpo.errors import CallbackError
from hpo.runner.function_trial import FunctionTrial, OwnTrial, TrialAborted, new_frozen_trial
from hpo.runner.objective import Trial, TrialPaused
from hpo.runner.trial_runner import LeasedTrial
from hpo.search.space import Space
from hpo.storage.leased_storage import LeasedStorage
from hpo.storage.tables.optuna_tables import Details
from hpo.storage.trial_store import CAUGHT, TRACEBACK, TrialOutcome

# A function of a user.
Function = Callable[[optuna.Trial], float | Sequence[float]]
Callback = Callable[[optuna.Study, FrozenTrial], None]

PAUSE_ADVICE = (
    "a trial was pruned without a checkpoint of its last step; call hpo.save_checkpoint before should_prune, so that "
    "such a trial is paused and can be promoted"
)


@dataclass(frozen=True)
class FunctionCall:
    """Call of ``Study.optimize``.

    Attributes:
        function: The user's function.
        catch: The exceptions that the script expects.
        callbacks: Functions to call after each trial.
        gc_after_trial: Whether to collect garbage after each trial.
        seed: The seed of the study, for a function that reads a seed.
    """

    function: Function
    catch: tuple[type[BaseException], ...] = ()
    callbacks: Sequence[Callback] = ()
    gc_after_trial: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Hooks:
    """Functions of a worker that an objective calls.

    Attributes:
        note: Receives messages for the user.
        on_stop: Called when the script stops the study.
        turn: Returns a block that no other worker of the launch runs at the same time.
    """

    note: Callable[[str], None] = lambda _: None
    on_stop: Callable[[], None] = lambda: None
    turn: Callable[[], AbstractContextManager[None]] = nullcontext


NO_HOOKS = Hooks()


class FunctionObjective:
    """A user's function as the objective of a worker.

    Args:
        study: The script's study, on the storage.
        storage: The storage of the worker.
        call: The function, with the other arguments of ``Study.optimize``.
        sampler: The sampler of the trials.
        space: The search space, None if only the function knows it.
        limits_memory: Whether the memory of a trial is limited.
        hooks: The functions of the worker.
    """

    metric = "value"
    max_steps = 1
    cost_parameter = None
    # The study holds the fingerprint of the script.
    fingerprint = ""
    # A function may run for long within one step, so kills at the same step do not show that the function caused them.
    ticks = False

    def __init__(
        self,
        study: optuna.Study,
        storage: LeasedStorage,
        call: FunctionCall,
        sampler: BaseSampler,
        *,
        space: Space | None = None,
        limits_memory: bool = False,
        hooks: Hooks = NO_HOOKS,
    ) -> None:
        self.space = space
        self._study = study
        self._storage = storage
        self._call = call
        # Callbacks see the script's own sampler.
        self._trial_study = copy.copy(study)
        self._trial_study.sampler = sampler
        self._trial_study._thread_local = study._thread_local
        self._limits_memory = limits_memory
        self._hooks = hooks
        self._own: OwnTrial | None = None

    def n_steps(self, params: Mapping[str, Any]) -> int | None:
        """Return None, because only the function knows its steps."""
        return None

    def setup(self) -> None:
        """Do nothing, because the script has loaded its data."""

    def artifact(self) -> bytes | None:
        """Return the last checkpoint of the trial that has just completed."""
        assert self._own is not None, "no trial has completed"
        checkpoint = self._own.checkpoint
        return self._own.load_checkpoint() if checkpoint is None else checkpoint.state

    def __call__(self, trial: Trial) -> TrialOutcome:
        """Call the function with a trial of Optuna.

        Raises:
            TrialPaused: if the trial waits for a promotion.
            TrialStopped: if the worker has to stop.
        """
        assert isinstance(trial, LeasedTrial), "the worker gives each objective such a trial"
        own = self._own = OwnTrial(trial, self._study._study_id, self._read(trial), self._hooks.note)
        # As in Study.optimize.
        self._study._thread_local.in_optimize_loop = True
        self._study._thread_local.cached_all_trials = None
        try:
            with self._storage.running(own):
                function_trial = FunctionTrial(self._trial_study, own, self._call.seed)
                # A sampler such as GridSampler marks in an attribute what the trial has taken.
                own.write_now()
                return self._run(function_trial)
        except TrialAborted as aborted:
            raise aborted.error from None
        finally:
            # A trial that exceeds a limit ends with its last value.
            trial.last_report = own.last_report

    def after_trial(self, trial_id: int) -> None:
        """Call the callbacks after the end of a trial.

        Raises:
            CallbackError: if a callback raises an exception.
        """
        if self._call.gc_after_trial:
            gc.collect()
        if self._call.callbacks:
            frozen = self._storage.get_trial(trial_id)
            # Callbacks of two workers at once could write to the same file.
            with self._hooks.turn():
                for callback in self._call.callbacks:
                    self._call_back(callback, copy.deepcopy(frozen))
        if self._study._stop_flag or self._trial_study._stop_flag:
            self._hooks.on_stop()

    def _call_back(self, callback: Callback, trial: FrozenTrial) -> None:
        try:
            callback(self._study, trial)
        except Exception as error:
            # The log of the worker has what the launch shortens.
            traceback.print_exc()
            name = getattr(callback, "__qualname__", type(callback).__qualname__)
            # An error of another database must not pass for one of hpo's database.
            raise CallbackError(f"callback {name}: {type(error).__name__}: {error}") from error

    def _read(self, trial: LeasedTrial) -> FrozenTrial:
        lease = trial.lease
        if trial.is_new and self.space is None:
            return new_frozen_trial(lease.number, lease.trial_id)
        return self._storage.get_trial(lease.trial_id)

    def _run(self, trial: FunctionTrial) -> TrialOutcome:
        own, state, error = trial.own, None, None
        value: float | Sequence[float] | None = None
        try:
            value = self._call.function(trial)
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except BaseException as raised:  # the border of the function: it must not end the worker
            if isinstance(raised, MemoryError) and self._limits_memory:
                raise
            state, error = TrialState.FAIL, raised
        if own.aborted is not None:
            raise own.aborted
        if state == TrialState.PRUNED and own.pauses:
            if own.is_pausable:
                assert own.checkpoint is not None
                raise TrialPaused(own.checkpoint)
            self._hooks.note(PAUSE_ADVICE)
        own.has_ended = True
        try:
            message = self._tell(trial, value, state)
        except Exception as raised:  # noqa: BLE001  # an error of the script's sampler or constraints
            error = raised
        if error is not None:
            return self._failed(own, error)
        return _outcome(own.frozen, message)

    def _tell(self, trial: FunctionTrial, value: float | Sequence[float] | None, state: TrialState | None) -> str:
        """Let Optuna check the result and call the sampler; return the warnings of Optuna."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self._trial_study.tell(trial, value, state)
        return "; ".join(str(warning.message) for warning in caught)

    def _failed(self, own: OwnTrial, error: BaseException) -> TrialOutcome:
        # The first frame is that of this module.
        frames = error.__traceback__ and error.__traceback__.tb_next
        text = "".join(traceback.format_exception(type(error), error, frames))
        own.write(Details(user_attrs={TRACEBACK: text}), ())
        # The text of an exception group ends with a frame.
        reason = "".join(traceback.format_exception_only(error)).rstrip().rpartition("\n")[2]
        is_caught = isinstance(error, self._call.catch)
        return TrialOutcome(TrialState.FAIL, None, f"{CAUGHT}{reason}" if is_caught else reason)


def _outcome(trial: FrozenTrial, message: str) -> TrialOutcome:
    values = tuple(trial.values or ())
    if trial.state == TrialState.FAIL:
        return TrialOutcome(TrialState.FAIL, None, message)
    reason = None
    if trial.state == TrialState.PRUNED:
        step = trial.last_step
        reason = "pruned before its first report" if step is None else f"pruned at step {step}"
    if len(values) == 1:
        return TrialOutcome(trial.state, values[0], reason)
    return TrialOutcome(trial.state, None, reason, values)
