"""Turns of the workers of a launch: a lock that ends with the process of its owner."""

import contextlib
import fcntl
import time
from collections.abc import Iterator

_POLL_INTERVAL_S = 0.02


class Turns:
    """Lock of the workers of a launch on a file that they inherit.

    The lock is a POSIX record lock, which belongs to a process and not to the descriptor.

    Args:
        descriptor: The file.
        timeout_s: The longest time to wait for a turn. Then the worker goes on without one, because the worker that
            has the turn may be frozen.
    """

    def __init__(self, descriptor: int, timeout_s: float = 30.0) -> None:
        self._descriptor = descriptor
        self._timeout_s = timeout_s

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until no other worker has its turn, and keep the turn during the block."""
        deadline_s = time.monotonic() + self._timeout_s
        is_owner = self._try()
        while not is_owner and time.monotonic() < deadline_s:
            time.sleep(_POLL_INTERVAL_S)
            is_owner = self._try()
        try:
            yield
        finally:
            if is_owner:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def _try(self) -> bool:
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
