"""Fakes that several tests share."""

import multiprocessing.connection
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

# At run time this module imports nothing of hpo, so that every unit test can use it.
if TYPE_CHECKING:
    from hpo.fleet.pool import Waitable, WorkerExit
    from hpo.fleet.status import StudyStatus


class FakeClock:
    """Clock that advances only on request.

    Pass it where a clock function is expected, or patch it in place of the module ``time``.

    Attributes:
        now: The current time in seconds.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class FakeProcess:
    """Process that ends when the test ends it.

    Attributes:
        signals: The signals that were sent to it.
        joined: Whether the caller waited for its end.
    """

    def __init__(self, pid: int = 100) -> None:
        self.pid = self.sentinel = pid
        self.exitcode: int | None = None
        self.signals: list[signal.Signals] = []
        self.joined = False

    def is_alive(self) -> bool:
        return self.exitcode is None

    def terminate(self) -> None:
        self.signals.append(signal.SIGTERM)

    def kill(self) -> None:
        self.signals.append(signal.SIGKILL)

    def join(self, timeout: float) -> None:
        self.joined = True

    def end(self, code: int) -> None:
        self.exitcode = code


class FakeWorkerPool:
    """Pool whose workers have work until ``has_workers`` is set to False.

    Attributes:
        calls: The names of the methods that were called, except polls.
        exits: The result of each poll: exits, or an error to raise.
        stop_duration_s: The time that workers need to stop; each ``is_alive`` takes a second.
        exit_handle: A descriptor that becomes readable when a worker exits.
        notes: The messages of workers.
    """

    def __init__(self, clock: FakeClock) -> None:
        self.has_workers = True
        self.unconnected = 0
        self.calls: list[str] = []
        self.exits: list[list[WorkerExit] | Exception] = []
        self.stop_duration_s = 0
        self.exit_handle: int | None = None
        self.notes: list[str] = []
        self._clock = clock

    def start(self) -> None:
        self.calls.append("start")

    def take_notes(self) -> list[str]:
        notes, self.notes = self.notes, []
        return notes

    def poll(self) -> "list[WorkerExit]":
        exits = self.exits.pop(0) if self.exits else []
        if isinstance(exits, Exception):
            raise exits
        return exits

    def wait(self, timeout_s: float, handles: "Sequence[Waitable]" = ()) -> None:
        own = [] if self.exit_handle is None else [self.exit_handle]
        multiprocessing.connection.wait([*own, *handles], timeout_s)

    @property
    def is_alive(self) -> bool:
        self._clock.advance(1)
        self.stop_duration_s -= 1
        return self.stop_duration_s >= 0

    def stop(self) -> None:
        self.calls.append("stop")

    def kill(self) -> None:
        self.calls.append("kill")

    def release_leases(self) -> None:
        self.calls.append("release_leases")


class FakeListener:
    """Progress listener that records statuses and messages.

    Attributes:
        on_note: Called with each message.
        on_show: Called with each status.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.shown: list[StudyStatus] = []
        self.on_note: Callable[[str], object] = lambda _: None
        self.on_show: Callable[[StudyStatus], object] = lambda _: None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, status: "StudyStatus") -> None:
        self.shown.append(status)
        self.on_show(status)

    def note(self, message: str, **_: object) -> None:
        self.notes.append(message)
        self.on_note(message)
