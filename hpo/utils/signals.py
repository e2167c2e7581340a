"""Stop signals (SIGINT, SIGTERM) that a loop waits for instead of being interrupted."""

import contextlib
import multiprocessing.connection
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

STOP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM})


class StopSignals:
    """Context manager that queues stop signals for ``wait`` instead of interrupting the program.

    The signals arrive through the wakeup descriptor because it works in any thread. BLAS has threads of its own, in
    which a signal cannot be blocked.
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

    def fileno(self) -> int:
        """Return a descriptor that is readable if ``wait`` would return at once."""
        return self._receiver.fileno()

    def wait(self, timeout_s: float) -> bool:
        """Wait for a stop signal or ``wake``; return whether a signal came.

        Each signal is returned once.
        """
        if not multiprocessing.connection.wait([self._receiver], timeout_s):
            return False
        return self._receiver.recv(1)[0] in STOP_SIGNALS

    def wake(self) -> None:
        """End the current or the next ``wait`` early; may be called from any thread."""
        with contextlib.suppress(OSError):
            self._sender.send(b"\0")


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block the stop signals, also in processes started within the block.

    A child process unblocks the signals when it is ready for them. Ctrl-C reaches the whole process group of a
    terminal, but only the launch stops its workers.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
