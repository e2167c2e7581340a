"""What a trial says to the database while it trains: in a thread, so that the training never waits for a database
that is away.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from hpo.errors import StorageError
from hpo.storage import database as storage
from hpo.storage.leases import Checkpoint

CHECKPOINT_SECONDS = 5.0  # between two of them
RENEW_SECONDS = 1.0  # that a checkpoint may be late before the lease is renewed without one
FIRST_CHECKPOINT_SECONDS = 0.1
ANSWER_SECONDS = 1.0  # that the training waits for the answer to one which may say that it should end
RETRY_SECONDS = 0.5  # between two tries while the database is away

Report = tuple[int, float]  # an epoch and its accuracy


@dataclass(frozen=True)
class _Message:
    """What is written in one transaction; after ``judged`` it is to be asked whether the trial should be pruned."""

    reports: Sequence[Report]
    judged: Report | None
    checkpoint: Checkpoint | None


class TrialReporter:
    """Keeps one lease while its trial trains: renews it, writes its checkpoints, and delivers its reports.

    What the database has not answered yet is kept and tried again, in order: a checkpoint is never written before
    the reports of the epochs that led to it, or a trial that goes on from there would not report them any more.

    Args:
        name: of the trial, for its thread.
        epoch: of the checkpoint that the database has.
        decision_epochs: those whose reports can be the trial's last, or its last for now.
        write: writes intermediate values and a checkpoint, and renews the lease.
        should_continue: whether the trial does after its last report, by what is written.
    """

    def __init__(
        self,
        name: str,
        epoch: int,
        decision_epochs: frozenset[int],
        write: Callable[[Sequence[Report], Checkpoint | None], None],
        should_continue: Callable[[], bool],
    ) -> None:
        self._judged_epochs = decision_epochs
        self._write = write
        self._goes_on = should_continue
        self._reports: list[Report] = []
        self._checkpoint: Checkpoint | None = None
        self._left: Report | None = None
        self._error: Exception | None = None
        self._out_of_memory = False
        self._away = False
        self._closed = False
        self._checkpoint_due = time.monotonic() + FIRST_CHECKPOINT_SECONDS
        self._renew_at = self._checkpoint_due + RENEW_SECONDS
        self._written = epoch
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"keeper of {name}", daemon=True)

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
        """Whether it is time to ``offer`` one."""
        return time.monotonic() >= self._checkpoint_due

    @property
    def written(self) -> int:
        """The epoch of the checkpoint that the database has."""
        return self._written

    @property
    def undelivered(self) -> list[Report]:
        """The reports that the database does not have yet."""
        return self._reports

    @property
    def left(self) -> Report | None:
        """The report after which the trial should have been left."""
        return self._left

    def offer(self, checkpoint: Checkpoint) -> None:
        """Have a checkpoint written, and the lease renewed with it."""
        with self._changed:
            self._checkpoint = checkpoint
            self._checkpoint_due = time.monotonic() + CHECKPOINT_SECONDS
            self._changed.notify_all()

    def report(self, epoch: int, accuracy: float) -> Report | None:
        """Have an intermediate value written; returns what ``check`` does.

        One that can be the trial's last is written at once, and the answer is waited for, but not while the database
        is away. Others go with the next one, with the next checkpoint, or when the lease is renewed.
        """
        with self._changed:
            self._reports.append((epoch, accuracy))
            if self._has_work():
                self._changed.notify_all()
            if epoch in self._judged_epochs and not self._away:
                self._changed.wait_for(self._judged, ANSWER_SECONDS)
        return self.check()

    def check(self) -> Report | None:
        """The report after which the trial should have been left, None to go on.

        Raises:
            LeaseLostError: somebody else took the trial over.
            MemoryError: a checkpoint could not be written; the lease is kept.
            Exception: what the database refused, or went wrong otherwise.
        """
        if self._out_of_memory:
            self._out_of_memory = False
            raise MemoryError("no memory to write a checkpoint")
        return self._answer()

    def settle(self, timeout: float, stop: threading.Event) -> Report | None:
        """Wait until no report is left that can be the last, or ``stop`` is set; returns what ``check`` does.

        Raises:
            LeaseLostError: somebody else took the trial over.
            StorageError: the database stayed away.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while not self._changed.wait_for(self._judged, RETRY_SECONDS) and not stop.is_set():
                if time.monotonic() > deadline:
                    raise StorageError(f"the database did not answer for {timeout:.0f} s")
        return self._answer()

    @property
    def settled(self) -> bool:
        """Whether ``settle`` has nothing to wait for."""
        return self._judged()

    def _judged(self) -> bool:
        return self._left is not None or self._error is not None or self._first_judged() is None

    def _first_judged(self) -> int | None:
        """The place of the first report that can be the trial's last."""
        return next((place for place, (epoch, _) in enumerate(self._reports) if epoch in self._judged_epochs), None)

    def _answer(self) -> Report | None:
        if self._error is not None:
            raise self._error
        return self._left

    def _run(self) -> None:
        while self._error is None:
            with self._changed:
                while not self._has_work():
                    self._changed.wait(self._renew_at - time.monotonic())
                if self._closed:
                    return
                message = self._next_message()
            try:
                self._deliver(message)
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
        offered = self._checkpoint is not None and self._left is None
        return self._closed or offered or not self._judged() or time.monotonic() >= self._renew_at

    def _next_message(self) -> _Message:
        if self._left is not None:
            return _Message([], None, None)
        if (judged := self._first_judged()) is not None:
            # A trial that is to end there must not go on from behind it.
            return _Message(self._reports[: judged + 1], self._reports[judged], None)
        return _Message(self._reports[:], None, self._checkpoint)

    def _deliver(self, message: _Message) -> None:
        self._write(message.reports, message.checkpoint)
        leave = message.judged is not None and not self._goes_on()
        with self._changed:
            self._reports = self._reports[len(message.reports) :]
            if leave:
                self._left = message.judged
            if message.checkpoint is not None:
                self._written = message.checkpoint.epoch
                if self._checkpoint is message.checkpoint:
                    self._checkpoint = None
            # An epoch can last longer than a lease: then it is renewed without a checkpoint.
            self._renew_at = max(time.monotonic(), self._checkpoint_due) + RENEW_SECONDS
            self._changed.notify_all()

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def _pause(self) -> None:
        with self._changed:
            self._away = True
            self._changed.wait_for(lambda: self._closed, RETRY_SECONDS)
