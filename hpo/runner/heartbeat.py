"""Heartbeat thread of a running trial: reports, checkpoints and lease renewals.

The thread writes to the database, so that the training never waits for a database that is unavailable.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from hpo.errors import DatabaseTimeoutError
from hpo.search.pruning.pruners import Pruner
from hpo.storage.database.retry import is_outage
from hpo.storage.tables.leases import Checkpoint, Lease, LeaseLostError
from hpo.storage.tables.optuna_tables import NO_DETAILS, Details
from hpo.storage.trial_store import TrialStore

# A step and its value.
Report = tuple[int, float]


@dataclass(frozen=True)
class HeartbeatTimings:
    """Intervals of the heartbeat thread.

    Attributes:
        first_checkpoint_s: The time from the start of an attempt to its first checkpoint.
        checkpoint_interval_s: The time between two checkpoints.
        renewal_delay_s: The time that a checkpoint may be late before the lease is renewed without one.
        write_delay_s: The longest time from a detail, such as a parameter, to the database.
        decision_timeout_s: The longest time that the training waits for the pruner's decision.
        retry_interval_s: The time between two tries during an outage.
    """

    first_checkpoint_s: float = 0.1
    checkpoint_interval_s: float = 5.0
    renewal_delay_s: float = 1.0
    write_delay_s: float = 0.5
    decision_timeout_s: float = 1.0
    retry_interval_s: float = 0.5


@dataclass(frozen=True)
class _Batch:
    """Content of one transaction. The pruner decides about ``decision`` after it."""

    reports: Sequence[Report]
    decision: Report | None
    checkpoint: Checkpoint | None
    details: Details = NO_DETAILS


class TrialReporter:
    """Heartbeat thread of one lease: renews it, and writes the trial's reports and checkpoints.

    A failed write is retried in order. A checkpoint is never written before the reports of the steps that led to it,
    because a trial that resumes from it would not report these steps again.

    Args:
        store: The trials of the study.
        lease: The trial's lease.
        pruner: The pruner of the study.
        timings: The intervals of the thread.
    """

    def __init__(self, store: TrialStore, lease: Lease, pruner: Pruner, timings: HeartbeatTimings) -> None:
        self._store = store
        self._lease = lease
        self._pruner = pruner
        self._timings = timings
        self._decision_steps = pruner.decision_steps()
        self._reports: list[Report] = []
        self._details = NO_DETAILS
        self._checkpoint: Checkpoint | None = None
        self._stop_report: Report | None = None
        self._error: Exception | None = None
        self._out_of_memory = False
        self._in_outage = False
        self._closed = False
        self._checkpoint_due_at = time.monotonic() + timings.first_checkpoint_s
        self._renewal_due_at = self._checkpoint_due_at + timings.renewal_delay_s
        # When the oldest detail has to be written.
        self._details_due_at = float("inf")
        self._written_step = lease.epoch
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"heartbeat of trial {lease.number}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    @property
    def checkpoint_due(self) -> bool:
        """Whether it is time to submit a checkpoint."""
        return time.monotonic() >= self._checkpoint_due_at

    @property
    def lease(self) -> Lease:
        """The lease at its last written checkpoint."""
        return self._lease

    @property
    def written_step(self) -> int:
        """The step of the checkpoint in the database."""
        return self._written_step

    @property
    def unwritten_reports(self) -> list[Report]:
        """The reports that are not in the database yet."""
        return self._reports

    @property
    def unwritten_details(self) -> Details:
        """The parameters and attributes that are not in the database yet."""
        return self._details

    @property
    def stop_report(self) -> Report | None:
        """The report at which the pruner decided against the trial."""
        return self._stop_report

    @property
    def has_failed(self) -> bool:
        """Whether the thread has ended with an error, such as a lost lease."""
        return self._error is not None

    @property
    def is_decided(self) -> bool:
        """Whether the pruner has decided about all reports."""
        return self._stop_report is not None or self._error is not None or self._next_decision() is None

    def submit_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Queue a checkpoint, which also renews the lease."""
        with self._changed:
            self._checkpoint = checkpoint
            self._checkpoint_due_at = time.monotonic() + self._timings.checkpoint_interval_s
            self._changed.notify_all()

    def write(self, details: Details, reports: Sequence[Report] = ()) -> None:
        """Queue parameters, attributes and reports without waiting. They are written soon, or with the trial's end.

        Raises:
            LeaseLostError: if the trial has another owner or has ended.
            Exception: the error of the database.
        """
        with self._changed:
            self._details |= details
            self._reports.extend(reports)
            if self._details_due_at == float("inf"):
                self._details_due_at = time.monotonic() + self._timings.write_delay_s
                self._changed.notify_all()
        self.check()

    def write_now(self) -> None:
        """Wait until the queued details are written, for at most as long as for a decision of the pruner.

        Raises:
            LeaseLostError: if the trial has another owner or has ended.
            Exception: the error of the database.
        """
        with self._changed:
            if self._details:
                self._details_due_at = time.monotonic()
                self._changed.notify_all()
                self._changed.wait_for(self._is_written, self._timings.decision_timeout_s)
        self.check()

    def report(self, step: int, value: float) -> None:
        """Queue an intermediate value, and wait for the pruner if it decides at this step.

        A value without a decision is written with the next one that has a decision, with the next checkpoint, or with
        the next renewal. During an outage the call does not wait.

        Raises:
            LeaseLostError: if the trial has another owner or has ended.
            MemoryError: if there was no memory to write a checkpoint. The lease is kept.
            Exception: the error of the database.
        """
        with self._changed:
            self._reports.append((step, value))
            if self._has_work():
                self._changed.notify_all()
            if step in self._decision_steps and not self._in_outage:
                self._changed.wait_for(lambda: self.is_decided, self._timings.decision_timeout_s)
        self.check()

    def check(self) -> None:
        """Raise the error of the thread, if there is one.

        Raises:
            LeaseLostError: if the trial has another owner or has ended.
            MemoryError: if there was no memory to write a checkpoint. The lease is kept.
            Exception: the error of the database.
        """
        if self._out_of_memory:
            self._out_of_memory = False
            raise MemoryError("no memory to write a checkpoint")
        if self._error is not None:
            raise self._error

    def flush(self, timeout_s: float, stop: threading.Event) -> None:
        """Wait until the pruner has decided about all reports, or until ``stop`` is set.

        Raises:
            LeaseLostError: if the trial has another owner or has ended.
            DatabaseTimeoutError: if the database stays unavailable for longer than ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not self._changed.wait_for(lambda: self.is_decided, self._timings.retry_interval_s):
                if stop.is_set():
                    break
                if time.monotonic() > deadline:
                    raise DatabaseTimeoutError(f"the database did not answer for {timeout_s:.0f} s")
        if self._error is not None:
            raise self._error

    def _is_written(self) -> bool:
        return not self._details or self._in_outage or self._error is not None

    def _next_decision(self) -> int | None:
        """Return the index of the first report that the pruner decides about."""
        return next((index for index, (step, _) in enumerate(self._reports) if step in self._decision_steps), None)

    def _run(self) -> None:
        while self._error is None:
            with self._changed:
                while not self._has_work():
                    self._changed.wait(min(self._renewal_due_at, self._details_due_at) - time.monotonic())
                if self._closed:
                    return
                batch = self._next_batch()
            try:
                self._write(batch)
                self._in_outage = False
            except MemoryError:
                self._out_of_memory, self._checkpoint = True, None
                self._wait_to_retry()
            except Exception as error:  # noqa: BLE001  # the border of the thread: check() raises it
                if is_outage(error):
                    self._wait_to_retry()
                else:
                    self._fail(error)

    def _has_work(self) -> bool:
        has_checkpoint = self._checkpoint is not None and self._stop_report is None
        due_at = min(self._renewal_due_at, self._details_due_at)
        return self._closed or has_checkpoint or not self.is_decided or time.monotonic() >= due_at

    def _next_batch(self) -> _Batch:
        if self._stop_report is not None:
            return _Batch([], None, None)
        if (index := self._next_decision()) is not None:
            # The checkpoint waits, because a trial that is stopped at this report must not resume after it.
            return _Batch(self._reports[: index + 1], self._reports[index], None, self._details)
        return _Batch(self._reports[:], None, self._checkpoint, self._details)

    def _write(self, batch: _Batch) -> None:
        self._store.report(self._lease, batch.reports, batch.checkpoint, batch.details)
        stops = batch.decision is not None and not self._should_continue()
        with self._changed:
            self._reports = self._reports[len(batch.reports) :]
            if self._details is batch.details:
                self._details, self._details_due_at = NO_DETAILS, float("inf")
            else:
                # Details that were queued meanwhile. What was written is written again.
                self._details_due_at = time.monotonic() + self._timings.write_delay_s
            if stops:
                self._stop_report = batch.decision
            if batch.checkpoint is not None:
                self._written_step = batch.checkpoint.step
                self._lease = replace(self._lease, epoch=batch.checkpoint.step)
                if self._checkpoint is batch.checkpoint:
                    self._checkpoint = None
            # A step can last longer than a lease. Then the lease is renewed without a checkpoint.
            self._renewal_due_at = max(time.monotonic(), self._checkpoint_due_at) + self._timings.renewal_delay_s
            self._changed.notify_all()

    def _should_continue(self) -> bool:
        trials, number = self._store.trials, self._lease.number
        if number >= len(trials):
            # The database has lost the trial.
            raise LeaseLostError(number)
        return self._pruner.should_continue(trials, number)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def _wait_to_retry(self) -> None:
        with self._changed:
            self._in_outage = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed, self._timings.retry_interval_s)
