"""Limits of the training time and of the memory of a trial."""

import re
import resource
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpo.errors import LimitError

# The reasons of trials that exceeded a limit.
TIMEOUT, MEMORY = "timeout", "memory"


@dataclass(frozen=True)
class Limits:
    """Limits of a worker and of its trials.

    Attributes:
        storage_timeout: The seconds that an outage of the database may last.
        trial_timeout: The seconds that a trial may train.
        memory: The bytes of its own that a worker may use.
    """

    storage_timeout: float
    trial_timeout: float | None = None
    memory: int | None = None


class TrialTimeoutError(BaseException):
    """A trial that has trained for longer than its timeout.

    It is no ``Exception``, so that ``except Exception`` in a user's function does not catch it.
    """


class Stopwatch:
    """Training time of a trial, summed over its attempts.

    Args:
        limit: The timeout in seconds, None for no timeout.
        spent: The seconds of former attempts up to the checkpoint.
        clock: A monotonic clock in seconds.
    """

    def __init__(self, limit: float | None, spent: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = float("inf") if limit is None else limit
        self._clock = clock
        self._started = clock() - spent

    @property
    def seconds(self) -> float:
        """The training time in seconds."""
        return self._clock() - self._started

    def check(self) -> None:
        """Check the training time.

        Raises:
            TrialTimeoutError: if it is over the timeout.
        """
        if self.seconds > self._limit:
            raise TrialTimeoutError


def limit_memory(limit: int, platform: str = sys.platform) -> None:
    """Raise MemoryError for allocations beyond ``limit`` bytes of this process.

    Shared memory (the prepared data, libraries) does not count. The kernel counts mapped memory instead of used memory,
    so memory that is mapped and not used yet is left out.

    Raises:
        LimitError: if the process uses more before it has trained anything, or if this is not Linux.
    """
    if platform != "linux":
        raise LimitError("--memory-limit: only Linux can keep it; leave it out")
    # BLAS allocates its buffers at the first use, and crashes if that fails later.
    square = np.ones((256, 256), np.float32)
    square @ square
    # The stack of a thread is allocated at its start, and used again by later threads.
    thread = threading.Thread(target=square.sum)
    thread.start()
    thread.join()
    status = Path("/proc/self/status").read_text()
    mapped, used = _field_bytes(status, "VmData"), _field_bytes(status, "RssAnon")
    if used >= limit:
        raise LimitError(
            f"--memory-limit {format_size(limit)}: a worker takes {format_size(used)} before it trains; give it more"
        )
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (mapped + limit - used, hard))


def format_size(size: int) -> str:
    """Format bytes as megabytes."""
    return f"{size / 1e6:.0f}M"


def _field_bytes(status: str, field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    assert match is not None, f"/proc/self/status has no {field}"
    return 1024 * int(match[1])
