"""One attempt at one trial, from its checkpoint to its end, to a pause, to a stop, or to the loss of its lease."""

import contextlib
import ctypes
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from optuna.trial import TrialState

from hpo.runner.heartbeat import HeartbeatTimings, Report, TrialReporter
from hpo.runner.limits import MEMORY, TIMEOUT, Limits, Stopwatch, TrialTimeoutError
from hpo.runner.objective import Objective, TrialPaused, TrialPruned, TrialStopped
from hpo.search.pruning.pruners import Pruner
from hpo.storage.database.retry import MAX_RETRY_WAIT_S, retry_while_unavailable, suppress_outages
from hpo.storage.study import Study
from hpo.storage.tables.leases import (
    MAX_CRASHES_AT_SAME_STEP,
    MAX_CRASHES_SINCE_PROGRESS,
    Checkpoint,
    Lease,
    LeaseLostError,
)
from hpo.storage.trial_store import TrialOutcome

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class WorkerTimings:
    """Intervals of a worker and its clock.

    Attributes:
        poll_interval_s: The shortest time between two polls for work while other workers train the last trials.
        max_poll_interval_s: The longest time between two polls, after nothing has changed for long.
        restart_delay_s: The time before the restart of a trial whose last worker died before the first step.
        max_retry_wait_s: The longest wait between two retries during an outage.
        adoption_grace_s: The time after which a trial that another program runs is claimed, if nothing else is left.
        heartbeat: The intervals of the heartbeat thread.
        clock: The monotonic clock of the trial timeout and of the polls, in seconds.
    """

    poll_interval_s: float = 0.5
    max_poll_interval_s: float = 4.0
    restart_delay_s: float = 1.0
    max_retry_wait_s: float = MAX_RETRY_WAIT_S
    adoption_grace_s: float = 30.0
    heartbeat: HeartbeatTimings = field(default_factory=HeartbeatTimings)
    clock: Callable[[], float] = time.monotonic


# The number in a worker's progress while it runs no trial.
NO_TRIAL = -1


class SharedProgress(ctypes.Structure):
    """Position of a worker in its trials, in memory that it shares with its parent process.

    Attributes:
        number: The number of the trial, or ``NO_TRIAL``.
        epoch: The finished steps of the trial.
        step: The ticks within the next step.
        in_trial_code: Whether the worker runs the objective, so that the trial can be the cause of a crash.
        lacks_connection: Whether the worker waits because the database accepts no more connections.
        done: The trials that the worker has finished or paused.
    """

    _fields_ = (
        ("number", ctypes.c_int64),
        ("epoch", ctypes.c_int64),
        ("step", ctypes.c_int64),
        ("in_trial_code", ctypes.c_bool),
        ("lacks_connection", ctypes.c_bool),
        ("done", ctypes.c_int64),
    )

    def reset(self, epoch: int = 0, number: int = NO_TRIAL) -> None:
        """Move to the end of a step of a trial, outside the objective."""
        self.number, self.epoch, self.step, self.in_trial_code = number, epoch, 0, False


@dataclass(frozen=True)
class WorkerContext:
    """Parts of a worker that all of its trials share.

    Attributes:
        objective: The code that each trial runs, after its ``setup``.
        pruner: The pruner of the study.
        limits: The limits of each trial.
        timings: The worker's intervals.
        stop: Set when the worker has to stop.
        progress: The worker's position.
    """

    objective: Objective
    pruner: Pruner
    limits: Limits
    timings: WorkerTimings
    stop: threading.Event
    progress: SharedProgress


class LeasedTrial:
    """Trial that a worker runs under a lease; implements the protocol ``Trial``.

    Attributes:
        lease: The trial's lease.
        reporter: The heartbeat thread of the lease.
        pauses: Whether the pruner promotes paused trials.

    Args:
        context: The worker's parts.
        lease: The trial's lease.
        reporter: The heartbeat thread of the lease.
        params: The trial's parameters.
        last_report: The last report of former attempts.
        is_new: Whether this is the first attempt at the trial.
    """

    def __init__(
        self,
        context: WorkerContext,
        lease: Lease,
        reporter: TrialReporter,
        params: Mapping[str, Any],
        last_report: Report | None,
        is_new: bool = False,
    ) -> None:
        self.is_new = is_new
        self.number = lease.number
        self.params = params
        self.n_steps = context.objective.n_steps(params) or math.inf
        self.last_report = last_report
        self.pauses = context.pruner.pauses
        self._stop = context.stop
        self._progress = context.progress
        self.lease = lease
        self.reporter = reporter
        self._stopwatch = Stopwatch(context.limits.trial_timeout, lease.seconds, context.timings.clock)

    @property
    def value(self) -> float | None:
        """The last reported value."""
        return None if self.last_report is None else self.last_report[1]

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return the value of a parameter."""
        return float(self._value_between(name, low, high))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Return the value of a parameter."""
        return int(self._value_between(name, low, high))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Return the value of a parameter."""
        value = self._param(name)
        if value not in choices:
            raise ValueError(f"{name} = {value!r}: the objective allows {', '.join(map(repr, choices))}")
        return value

    def report(self, value: float, step: int) -> None:
        """Report an intermediate value after a step."""
        check_value(value)
        self.last_report = step, value
        # A kill during a database call must not count against the trial.
        self._progress.in_trial_code = False
        self.reporter.report(step, value)
        self._progress.in_trial_code = True

    def should_prune(self) -> bool:
        """Return whether the pruner has decided against the remaining steps, or another program has ended the trial."""
        if self.reporter.has_failed:
            # The error of the heartbeat follows when the objective ends.
            return True
        stop_report = self.reporter.stop_report
        return stop_report is not None and stop_report[0] < self.n_steps

    def load_checkpoint(self) -> bytes | None:
        """Return the state to resume from, None for a new trial."""
        return self.lease.checkpoint

    def save_checkpoint(self, state: Callable[[], bytes], step: int) -> None:
        """End a step; save the state if the last checkpoint is old enough.

        Raises:
            TrialPruned: if the pruner has decided against the remaining steps.
            TrialPaused: if the trial has to wait for a promotion.
            TrialStopped: if the worker has to stop.
        """
        if step >= self.n_steps:
            # A trial at its last step is complete, regardless of the pruner.
            return
        self._progress.epoch, self._progress.step = step, 0
        self.reporter.check()
        if self.reporter.stop_report is not None:
            raise TrialPaused(self.checkpoint_at(step, state())) if self.pauses else TrialPruned
        if self._stop.is_set():
            raise TrialStopped(self.checkpoint_at(step, state()))
        if self.reporter.checkpoint_due:
            self.reporter.submit_checkpoint(self.checkpoint_at(step, state()))

    def tick(self) -> None:
        """End a piece of work within a step.

        Raises:
            TrialTimeoutError: if the trial has run for longer than its timeout.
        """
        self._progress.step += 1
        self._stopwatch.check()

    @property
    def has_to_stop(self) -> bool:
        """Whether the worker has to stop."""
        return self._stop.is_set()

    def checkpoint_at(self, step: int, state: bytes) -> Checkpoint:
        """Return a checkpoint after a step."""
        self._progress.epoch, self._progress.step = step, 0
        return Checkpoint(step, self._stopwatch.seconds, state)

    def submit(self, checkpoint: Checkpoint) -> None:
        """Queue a checkpoint if the last one is old enough."""
        if self.reporter.checkpoint_due:
            self.reporter.submit_checkpoint(checkpoint)

    def _param(self, name: str) -> Any:
        if name not in self.params:
            raise ValueError(f"{name}: not a parameter of this study, which has {', '.join(self.params) or 'none'}")
        return self.params[name]

    def _value_between(self, name: str, low: float, high: float) -> Any:
        value = self._param(name)
        if not low <= value <= high:
            raise ValueError(f"{name} = {value!r}: the objective allows {low} to {high}")
        return value


class TrialRunner:
    """Run of an objective under one lease, which ends with one state transition of the trial.

    Args:
        study: The trial's study.
        context: The worker's parts.
        lease: The trial's lease.
    """

    def __init__(self, study: Study, context: WorkerContext, lease: Lease) -> None:
        self._store = study.store
        self._context = context
        self._stop = context.stop
        self._progress = context.progress
        self._progress.reset(lease.epoch, lease.number)
        self._lease = lease
        self._has_ended = False
        self._reporter = TrialReporter(study.store, lease, context.pruner, context.timings.heartbeat)
        self._log_fields = {"study": study.name, "trial": lease.number, "worker": lease.owner}

    def run(self, params: Mapping[str, Any] | None = None) -> bool:
        """Run the trial until it ends, is paused or released, or has another owner. Another program may end it, too.

        Args:
            params: The parameters of a new trial. Without them the trial is read, together with its reports.

        Returns:
            Whether this worker has ended the trial.

        Raises:
            StorageError: if the database stays unavailable for longer than the storage timeout.
        """
        try:
            if reason := _failure_reason(self._lease):
                self._finish(TrialOutcome(TrialState.FAIL, None, reason))
            else:
                self._run(params)
        except TrialStopped as stopped:
            self._release(stopped.checkpoint)
        except LeaseLostError:
            self._log("has another owner, or was ended outside of hpo")
            self._add_lost_steps()
            # Only the leases of ended trials are closed, so another owner keeps its lease.
            with suppress_outages():
                self._store.close_ended()
        return self._has_ended

    def _run(self, params: Mapping[str, Any] | None) -> None:
        self._log("starts" if self._lease.attempt == 1 else f"resumes after step {self._lease.epoch}")
        trial = self._open_trial(params)
        with self._reporter:
            # A worker that is killed from outside as soon as it starts is likely to be killed in this wait, which does
            # not count against the trial. A trial that crashes its worker does so after the wait.
            if self._lease.died_at_start and self._stop.wait(self._context.timings.restart_delay_s):
                raise TrialStopped
            try:
                outcome, artifact = self._run_objective(trial)
            except TrialPaused as paused:
                self._pause(paused.checkpoint)
            else:
                self._finish(self._final_outcome(outcome, trial), artifact)

    def _open_trial(self, params: Mapping[str, Any] | None) -> LeasedTrial:
        last_report: Report | None = None
        is_new = params is not None and self._lease.attempt == 1
        if params is None:
            trials = self._retry(self._store.refresh)().trials
            if self._lease.number >= len(trials):
                # The database has lost the trial since the claim.
                raise LeaseLostError(self._lease.number)
            stored = trials[self._lease.number]
            params = stored.params
            if stored.last_step is not None:
                last_report = stored.last_step, stored.intermediate_values[stored.last_step]
        return LeasedTrial(self._context, self._lease, self._reporter, params, last_report, is_new)

    def _run_objective(self, trial: LeasedTrial) -> tuple[TrialOutcome, bytes | None]:
        """Run the objective within the limits; return the outcome and the artifact of a complete trial."""
        objective = self._context.objective
        self._progress.in_trial_code = objective.ticks
        try:
            result = objective(trial)
            if isinstance(result, TrialOutcome):
                return result, objective.artifact()
            check_value(result)
            return TrialOutcome(TrialState.COMPLETE, result), objective.artifact()
        except TrialPruned as pruned:
            return _pruned_outcome(pruned, trial), None
        except TrialTimeoutError:
            return TrialOutcome.cut_short(trial.value, TIMEOUT), None
        except MemoryError:
            if self._context.limits.memory is None:
                raise
            return TrialOutcome.cut_short(trial.value, MEMORY), None
        finally:
            # The worker now waits for the database. A kill in this phase must not count against the trial.
            self._progress.in_trial_code = False

    def _final_outcome(self, outcome: TrialOutcome, trial: LeasedTrial) -> TrialOutcome:
        """Return the outcome after the pruner has decided about all reports.

        A late decision ends the trial at the report that led to it.
        """
        self._reporter.flush(self._context.limits.storage_timeout, self._stop)
        if not self._reporter.is_decided:
            raise TrialStopped
        stop_report = self._reporter.stop_report
        if stop_report is not None and stop_report[0] < trial.n_steps and not self._context.pruner.pauses:
            return TrialOutcome.pruned(*stop_report)
        return outcome

    def _finish(self, outcome: TrialOutcome, artifact: bytes | None = None) -> None:
        # Reports after the one at which the trial was pruned are dropped.
        is_cut = self._reporter.stop_report is not None and not self._context.pruner.pauses
        reports = [] if is_cut else self._reporter.unwritten_reports
        details = self._reporter.unwritten_details
        self._retry(self._store.finish)(self._reporter.lease, outcome, reports, artifact, details)
        self._progress.done += 1
        self._has_ended = True
        self._log(f"ends as {outcome.state.name}" + (f": {outcome.reason}" if outcome.reason else ""), logging.INFO)

    def _pause(self, checkpoint: Checkpoint) -> None:
        reports, details = self._reporter.unwritten_reports, self._reporter.unwritten_details
        self._retry(self._store.pause)(self._reporter.lease, reports, checkpoint, details)
        self._progress.done += 1
        self._log(f"is paused after step {checkpoint.step}")

    def _release(self, checkpoint: Checkpoint | None) -> None:
        # A checkpoint after a report without a decision is dropped, because a trial that resumes from it would skip the
        # decision.
        if self._reporter.stop_report is not None or not self._reporter.is_decided:
            checkpoint = None
        reports = self._reporter.unwritten_reports if checkpoint else []
        # If the database is unavailable, the lease expires.
        with suppress_outages(), contextlib.suppress(LeaseLostError):
            self._store.release(self._reporter.lease, reports, checkpoint, self._reporter.unwritten_details)
            self._log("is released")

    def _add_lost_steps(self) -> None:
        lost = max(0, self._progress.epoch - self._reporter.written_step)
        with suppress_outages():
            self._store.add_epochs_lost(self._lease, lost)

    def _retry(self, function: Callable[P, T]) -> Callable[P, T]:
        timeout_s = self._context.limits.storage_timeout
        return retry_while_unavailable(function, timeout_s, self._stop, self._context.timings.max_retry_wait_s)

    def _log(self, message: str, level: int = logging.DEBUG) -> None:
        logger.log(level, "trial %d %s", self._lease.number, message, extra=self._log_fields)


def check_value(value: float) -> None:
    """Check that a value of an objective is a finite number.

    Raises:
        ValueError: if it is not.
    """
    if not math.isfinite(value):
        raise ValueError(f"the objective returned {value}; a finite number is needed")


def _pruned_outcome(pruned: TrialPruned, trial: LeasedTrial) -> TrialOutcome:
    if pruned.reason is None and trial.last_report is not None:
        return TrialOutcome.pruned(*trial.last_report)
    return TrialOutcome(TrialState.PRUNED, trial.value, pruned.reason or "pruned before its first report")


def _failure_reason(lease: Lease) -> str | None:
    """Return why the trial must not be run again, None if it may."""
    error = lease.error or "its worker vanished"
    if lease.crashes_at_same_step >= MAX_CRASHES_AT_SAME_STEP:
        return f"crashed {lease.crashes_at_same_step} times: {error}"
    if lease.crashes_since_progress >= MAX_CRASHES_SINCE_PROGRESS:
        return f"its worker died {lease.crashes_since_progress} times before it made progress: {error}"
    return None
