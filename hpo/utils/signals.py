"""Stop signals (SIGINT, SIGTERM, SIGHUP) that a loop waits for instead of being interrupted.

A signal that the parent process ignores stays ignored, because the user asked for it: nohup, a background job
of a script.
"""

import contextlib
import multiprocessing.connection
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

STOP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


def handle_stop_signals(handler: Callable[[int, FrameType | None], None]) -> None:
    """Install a handler of the stop signals in the main thread of a command, whatever its parent has set.

    Ignored signals stay ignored. A blocked signal is unblocked, because a parent blocks signals for itself and not for
    its children. SIGCHLD gets its default action, because without it the exits of child processes are lost.
    """
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in _not_ignored(STOP_SIGNALS):
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS | {signal.SIGCHLD})


def _not_ignored(numbers: frozenset[signal.Signals]) -> list[signal.Signals]:
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


class StopSignals:
    """Context manager that queues stop signals for ``wait`` instead of interrupting the program.

    The signals arrive through the wakeup descriptor because it works in any thread. BLAS has threads of its own, in
    which a signal cannot be blocked.
    """

    def __enter__(self) -> Self:
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._wakeup_fd = signal.set_wakeup_fd(self._sender.fileno())
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in _not_ignored(STOP_SIGNALS)}
        self._has_stopped = False
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

        Each signal is returned once. A SIGHUP after another signal is not returned, because a closed terminal sends it
        several times: by the shell and by the kernel.
        """
        if not multiprocessing.connection.wait([self._receiver], timeout_s):
            return False
        number = self._receiver.recv(1)[0]
        is_stop = number in STOP_SIGNALS and not (number == signal.SIGHUP and self._has_stopped)
        self._has_stopped |= is_stop
        return is_stop

    def wake(self) -> None:
        """End the current or the next ``wait`` early; may be called from any thread."""
        with contextlib.suppress(OSError):
            self._sender.send(b"\0")


@contextmanager
def signals_blocked(numbers: Collection[signal.Signals] = STOP_SIGNALS) -> Iterator[None]:
    """Block the stop signals or others, also in processes started within the block.

    A child process unblocks the signals when it is ready for them. Ctrl-C reaches the whole process group of a
    terminal, but only the launch stops its workers.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def received_signal(number: signal.Signals, timeout_s: float, poll_interval_s: float = 0.05) -> bool:
    """Wait for a blocked signal; return whether it arrived. It may be called from any thread."""
    if hasattr(signal, "sigtimedwait"):
        received = signal.sigtimedwait({number}, timeout_s)
        # CPython returns an uninitialized struct after SIGCONT.
        return received is not None and received.si_signo == number
    # macOS has no sigtimedwait.
    deadline = time.monotonic() + timeout_s
    while number not in signal.sigpending():
        if time.monotonic() > deadline:
            return False
        time.sleep(poll_interval_s)
    signal.sigwait({number})
    return True
