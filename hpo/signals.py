"""SIGINT and SIGTERM as something to wait for, instead of something that strikes anywhere."""

import select
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
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

    def wait(self, seconds: float) -> bool:
        """Wait for a stop signal; each is told once."""
        if not select.select([self._receiver], [], [], seconds)[0]:
            return False
        return self._receiver.recv(1)[0] in STOP_SIGNALS


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Within: processes that are started are born with both signals blocked, until they look for them.

    Ctrl-C goes to the whole process group of a terminal, and it is the launch that tells its workers to stop.
    """
    # It unblocks both when it starts.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
