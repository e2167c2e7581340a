"""What a trial says to the database while it trains: in a thread, so that the training never waits for a database
that is away.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Self

from hpo import storage
from hpo.errors import StorageError
from hpo.leases import Checkpoint, Lease, Leases

RENEW_SECONDS = 2.0  # between two checkpoints, and as long again for an epoch to end
FIRST_CHECKPOINT_SECONDS = 0.1
ANSWER_SECONDS = 1.0  # that the training waits for the answer to a report, which may say that it should end
RETRY_SECONDS = 0.5  # between two tries while the database is away


class Keeper:
    """Keeps one lease while its trial trains: renews it, writes its checkpoints, and delivers its reports.

    What the database has not answered yet is kept and tried again, in order: a checkpoint is never written before
    the reports of the epochs that led to it, or a trial that goes on from there would not report them any more.

    Args:
        leases: of the study.
        lease: of the trial.
        report: writes an intermediate value; returns whether the trial should be pruned.
    """

    def __init__(self, leases: Leases, lease: Lease, report: Callable[[int, float], bool]) -> None:
        self._leases = leases
        self._lease = lease
        self._report = report
        self._reports: deque[tuple[int, float]] = deque()
        self._checkpoint: Checkpoint | None = None
        self._pruned: tuple[int, float] | None = None
        self._error: Exception | None = None
        self._out_of_memory = False
        self._away = False
        self._closed = False
        self._checkpoint_due = time.monotonic() + FIRST_CHECKPOINT_SECONDS
        self._written = lease.epoch
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"keeper of trial {lease.number}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    @property
    def wants_checkpoint(self) -> bool:
        """Whether it is time to ``offer`` one."""
        return time.monotonic() >= self._checkpoint_due

    @property
    def written(self) -> int:
        """The epoch of the checkpoint that the database has."""
        return self._written

    @property
    def delivered(self) -> bool:
        """Whether the database has all reports."""
        return not self._reports

    def offer(self, checkpoint: Checkpoint) -> None:
        """Have a checkpoint written, and the lease renewed with it."""
        with self._changed:
            self._checkpoint = checkpoint
            self._checkpoint_due = time.monotonic() + RENEW_SECONDS
            self._changed.notify_all()

    def report(self, epoch: int, accuracy: float) -> tuple[int, float] | None:
        """Have an intermediate value written; returns what ``check`` does.

        While the database is away the answer is not waited for.
        """
        with self._changed:
            if self._pruned is None:
                self._reports.append((epoch, accuracy))
                self._changed.notify_all()
            if not self._away:
                self._changed.wait_for(self._answered, ANSWER_SECONDS)
        return self.check()

    def check(self) -> tuple[int, float] | None:
        """The report with which the trial should have ended, None to go on.

        Raises:
            LeaseLostError: somebody else took the trial over.
            MemoryError: a checkpoint could not be written; the lease is kept.
            Exception: what the database refused, or went wrong otherwise.
        """
        if self._out_of_memory:
            self._out_of_memory = False
            raise MemoryError("no memory to write a checkpoint")
        return self._answer()

    def settle(self, timeout: float, stop: threading.Event) -> tuple[int, float] | None:
        """Wait until all reports are delivered or ``stop`` is set; returns what ``check`` does.

        Raises:
            LeaseLostError: somebody else took the trial over.
            StorageError: the database stayed away.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while not self._changed.wait_for(self._answered, RETRY_SECONDS) and not stop.is_set():
                if time.monotonic() > deadline:
                    raise StorageError(f"the database did not answer for {timeout:.0f} s")
        return self._answer()

    def _answered(self) -> bool:
        return not self._reports or self._pruned is not None or self._error is not None

    def _answer(self) -> tuple[int, float] | None:
        if self._error is not None:
            raise self._error
        return self._pruned

    def _run(self) -> None:
        renew_at = time.monotonic() + FIRST_CHECKPOINT_SECONDS + RENEW_SECONDS
        while self._error is None:
            with self._changed:
                self._changed.wait_for(self._has_work, max(0.0, renew_at - time.monotonic()))
                if self._closed:
                    return
                report = self._reports[0] if self._reports else None
                checkpoint = self._checkpoint if self._may_write() else None
            try:
                if report is not None:
                    self._deliver(report)
                if report is None or time.monotonic() >= renew_at:
                    self._renew(checkpoint)
                    # An epoch can last longer than a lease: then it is renewed without a checkpoint.
                    renew_at = max(time.monotonic(), self._checkpoint_due) + RENEW_SECONDS
                self._away = False
            except MemoryError:
                self._out_of_memory, self._checkpoint = True, None
                self._pause()
            except Exception as error:  # noqa: BLE001  # the border of the thread: raised in the training's
                if storage.is_outage(error):
                    self._pause()
                else:
                    self._fail(error)

    def _has_work(self) -> bool:
        return self._closed or bool(self._reports) or (self._checkpoint is not None and self._may_write())

    def _may_write(self) -> bool:
        # A trial that is to end at a report must not go on from behind it.
        return not self._reports and self._pruned is None

    def _deliver(self, report: tuple[int, float]) -> None:
        prune = self._report(*report)
        with self._changed:
            self._reports.popleft()
            if prune:
                self._pruned = report
                self._reports.clear()
            self._changed.notify_all()

    def _renew(self, checkpoint: Checkpoint | None) -> None:
        self._leases.renew(self._lease, checkpoint)
        with self._changed:
            if checkpoint is not None:
                self._written = checkpoint.epoch
                if self._checkpoint is checkpoint:
                    self._checkpoint = None

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def _pause(self) -> None:
        with self._changed:
            self._away = True
            self._changed.wait_for(lambda: self._closed, RETRY_SECONDS)
