"""One attempt at one trial: from its checkpoint or from nothing, to its end, to a stop or to the loss of its lease."""

import contextlib
import ctypes
import threading
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from optuna.trial import TrialState

from hpo.config.study import StudyConfig
from hpo.data.cache import PreparedData
from hpo.models.predictor import pack_layers
from hpo.models.trainer import Trainer
from hpo.runner.limits import MEMORY, TIMEOUT, Limits, Stopwatch, TrialTimeoutError
from hpo.runner.objective import Outcome, Schedule, run_trial
from hpo.runner.reporter import TrialReporter
from hpo.search.pruners import SuccessiveHalving, decision_epochs, report_epochs, should_continue
from hpo.storage import database as storage
from hpo.storage import trial_store as trials
from hpo.storage.leases import MAX_DEATHS, MAX_FAILURES, Checkpoint, Lease, LeaseLostError
from hpo.storage.study import Study

PAUSE_SECONDS = 1.0  # before a trial is tried again whose worker died before it had made a step

P = ParamSpec("P")
T = TypeVar("T")


class StoppedError(Exception):
    """The worker was told to stop; ``checkpoint`` is where the trial stands, None where only the database knows."""

    def __init__(self, checkpoint: Checkpoint | None = None) -> None:
        self.checkpoint = checkpoint


class _PausedError(Exception):
    """The trial is not to go on for now; ``checkpoint`` is where it stands."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint


class SharedProgress(ctypes.Structure):
    """How far a worker has come with its trial, in memory that it shares with the launch.

    Attributes:
        epoch: the epochs that are trained.
        step: the steps that are made of the next one.
        in_trial_code: whether it runs what the trial is made of, so that the trial can be what kills it.
    """

    _fields_ = (("epoch", ctypes.c_int64), ("step", ctypes.c_int64), ("in_trial_code", ctypes.c_bool))

    def reset(self, epoch: int = 0) -> None:
        """Stand at the end of an epoch, with nothing done yet."""
        self.epoch, self.step, self.in_trial_code = epoch, 0, False


class TrialRunner:
    """Trains one trial under one lease.

    Args:
        study: the trial's.
        spec: the study's file.
        data: the study's prepared data.
        lease: of the trial.
        limits: of the trial.
        stop: set when the worker should stop.
        place: where to leave how far it has come, for whoever finds this process dead.
    """

    def __init__(
        self,
        study: Study,
        spec: StudyConfig,
        data: PreparedData,
        lease: Lease,
        limits: Limits,
        stop: threading.Event,
        place: SharedProgress,
    ) -> None:
        self._study = study
        self._spec = spec
        self._data = data
        self._lease = lease
        self._limits = limits
        self._stop = stop
        self._place = place
        self._place.reset(lease.epoch)
        self._pauses = isinstance(study.pruner, SuccessiveHalving)
        self._keeper = TrialReporter(
            f"trial {lease.number}",
            lease.epoch,
            decision_epochs(spec),
            lambda reports, checkpoint: trials.write(study, lease, reports, checkpoint),
            lambda: should_continue(study.pruner, study.trials, lease.number),
        )

    def run(self, params: Mapping[str, Any] | None = None) -> None:
        """Train the trial to its end, or until it is paused.

        Args:
            params: of a trial that was just created; without them it is read, with what it has reported.

        Raises:
            LeaseLostError: somebody else took it over.
            StoppedError: told to stop; the trial was given back with its checkpoint.
            StorageError: the database stayed away.
        """
        if blame := _failure_reason(self._lease):
            self._end(Outcome(TrialState.FAIL, None, blame))
            return
        self._value = None
        if params is None:
            trial = self._patiently(trials.read)(self._study, self._lease)
            params = trial.params
            self._value = None if trial.last_step is None else trial.intermediate_values[trial.last_step]
        self._hyperparameters = self._spec.hyperparameters(params)
        self._stopwatch = Stopwatch(self._limits.trial_timeout, self._lease.seconds)
        try:
            with self._keeper:
                # Outside hands that kill each worker when it starts will find it here, a trial that does so will not.
                if self._lease.died_at_start and self._stop.wait(PAUSE_SECONDS):
                    raise StoppedError
                try:
                    outcome, weights = self._within_limits()
                except _PausedError as paused:
                    self._pause(paused.checkpoint)
                else:
                    self._end(self._settled(outcome), weights)
        except StoppedError as stopped:
            self._give_back(stopped.checkpoint)
            raise
        except LeaseLostError:
            self._count_lost()
            raise

    def _within_limits(self) -> tuple[Outcome, bytes | None]:
        self._place.in_trial_code = True
        try:
            return self._train()
        except TrialTimeoutError:
            return Outcome.cut_short(self._value, TIMEOUT), None
        except MemoryError:
            if self._limits.memory is None:
                raise
            return Outcome.cut_short(self._value, MEMORY), None
        finally:
            # The database's time comes next: who is killed in it, always at the same step, has not died of the trial.
            self._place.in_trial_code = False

    def _train(self) -> tuple[Outcome, bytes | None]:
        seed = (self._spec.study.seed, self._lease.number)
        self._training = Trainer(self._data.train, len(self._data.classes), self._hyperparameters, seed)
        if self._lease.checkpoint is not None:
            # One of another version of the program does not fit: the trial starts over, to the same end.
            with contextlib.suppress(ValueError):
                self._training.restore(self._lease.checkpoint)
        outcome = run_trial(
            self._training,
            self._data.validation,
            Schedule(self._hyperparameters.epochs, report_epochs(self._spec.max_epochs)),
            self._value,
            self._report,
            self._after_epoch,
            self._after_step,
        )
        complete = outcome.state == TrialState.COMPLETE
        return outcome, pack_layers(self._training.weights()) if complete else None

    def _report(self, epoch: int, accuracy: float) -> Outcome | None:
        self._value = accuracy
        self._place.in_trial_code = False  # the database's time
        left = self._keeper.report(epoch, accuracy)
        self._place.in_trial_code = True
        return None if epoch == self._hyperparameters.epochs else self._left(left)

    def _after_epoch(self) -> Outcome | None:
        self._place.epoch, self._place.step = self._training.epoch, 0
        if outcome := self._left(self._keeper.check()):
            return outcome
        if self._stop.is_set():
            raise StoppedError(self._checkpoint())
        if self._keeper.checkpoint_due:
            self._keeper.offer(self._checkpoint())
        return None

    def _left(self, last: tuple[int, float] | None) -> Outcome | None:
        """What becomes of a trial that is to be left after this report, if it is."""
        if last is None:
            return None
        if self._pauses:
            raise _PausedError(self._checkpoint())
        return Outcome.pruned(*last)

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(self._training.epoch, self._stopwatch.seconds, self._training.save())

    def _after_step(self) -> None:
        self._place.step += 1
        self._stopwatch.check()

    def _settled(self, outcome: Outcome) -> Outcome:
        """What it comes to when the database has judged all reports: one of them may have been its last."""
        last = self._keeper.settle(self._limits.storage_timeout, self._stop)
        if not self._keeper.settled:
            raise StoppedError
        if last is not None and last[0] < self._hyperparameters.epochs and not self._pauses:
            return Outcome.pruned(*last)
        return outcome

    def _end(self, outcome: Outcome, weights: bytes | None = None) -> None:
        self._patiently(trials.end)(
            self._study,
            self._lease,
            outcome.state,
            value=outcome.value,
            weights=weights,
            reason=outcome.reason,
            # An end that was decided late is nevertheless at the report that led to it.
            reports=[] if self._keeper.left and not self._pauses else self._keeper.undelivered,
        )

    def _pause(self, checkpoint: Checkpoint) -> None:
        self._patiently(trials.pause)(self._study, self._lease, self._keeper.undelivered, checkpoint)

    def _give_back(self, checkpoint: Checkpoint | None) -> None:
        # Not a state that is ahead of a report after which the trial may be left: whoever goes on from it would not
        # see to it.
        if self._keeper.left or not self._keeper.settled:
            checkpoint = None
        reports = self._keeper.undelivered if checkpoint else []
        with storage.suppress_outages(), contextlib.suppress(LeaseLostError):
            trials.give_back(self._study, self._lease, reports, checkpoint)

    def _count_lost(self) -> None:
        lost = max(0, self._place.epoch - self._keeper.written)
        with storage.suppress_outages():
            self._study.leases.add_epochs_lost(self._lease, lost)

    def _patiently(self, function: Callable[P, T]) -> Callable[P, T]:
        return storage.retry_while_unavailable(function, self._limits.storage_timeout, self._stop)


def _failure_reason(lease: Lease) -> str | None:
    """Why nobody should try this trial again; None where that is not so."""
    error = lease.error or "its worker vanished"
    if lease.failures >= MAX_FAILURES:
        return f"crashed {lease.failures} times: {error}"
    if lease.deaths >= MAX_DEATHS:
        return f"its worker died {lease.deaths} times before it got any further: {error}"
    return None
