"""SIGINT and SIGTERM as something to wait for, instead of something that strikes anywhere."""

import contextlib
import multiprocessing.connection
import signal
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Self

STOP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM})


class StopSignals:
    """Within: a stop signal interrupts nothing; it is there for the next ``wait``.

    The wakeup descriptor is written whichever thread the signal finds: BLAS has threads of its own, in which
    nothing can be blocked.
    """

    def __enter__(self) -> Self:
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._wakeup_fd = signal.set_wakeup_fd(self._sender.fileno())
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_fd)
        self._receiver.close()
        self._sender.close()

    def wait(self, seconds: float, others: Iterable[int] = ()) -> bool:
        """Wait for a stop signal; each is told once. ``wake``, or one of the others that is ready, ends it sooner."""
        if self._receiver not in multiprocessing.connection.wait([self._receiver, *others], seconds):
            return False
        return self._receiver.recv(1)[0] in STOP_SIGNALS

    def wake(self) -> None:
        """End the ``wait`` of now, or else the next one; from any thread, at any time."""
        with contextlib.suppress(OSError):
            self._sender.send(b"\0")


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Within: processes that are started are born with both signals blocked, until they look for them.

    Ctrl-C goes to the whole process group of a terminal, and it is the launch that tells its workers to stop.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
