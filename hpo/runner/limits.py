"""What a trial may take of a worker: time and memory."""

import re
import resource
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpo.errors import HpoError

TIMEOUT, MEMORY = "timeout", "memory"  # the reasons of a trial that went over them


@dataclass(frozen=True)
class Limits:
    """Seconds that a database may stay away, seconds of training of a trial, and bytes of a worker's own memory."""

    storage_timeout: float
    trial_timeout: float | None = None
    memory: int | None = None


class LimitError(HpoError):
    """A limit that cannot be kept on this machine, or that leaves no room to work."""


class TrialTimeoutError(Exception):
    """The trial has trained for longer than it may."""


class Stopwatch:
    """The time that a trial has trained, over all attempts.

    Args:
        limit: in seconds, None for no limit.
        spent: the seconds of former attempts, up to the checkpoint.
    """

    def __init__(self, limit: float | None, spent: float) -> None:
        self._limit = float("inf") if limit is None else limit
        self._started = time.monotonic() - spent

    @property
    def seconds(self) -> float:
        """What it shows."""
        return time.monotonic() - self._started

    def check(self) -> None:
        """Go on.

        Raises:
            TrialTimeoutError: not any longer.
        """
        if self.seconds > self._limit:
            raise TrialTimeoutError


def limit_memory(limit: int) -> None:
    """From now on an allocation that takes this process beyond ``limit`` bytes of its own raises MemoryError.

    Memory that is shared (the prepared data, libraries) does not count. The kernel counts what is mapped, not
    what is in use, so what is mapped and not used yet is left out.

    Raises:
        LimitError: the process is beyond the limit before it has trained anything, or this is not Linux.
    """
    if sys.platform != "linux":
        raise LimitError("--memory-limit: only Linux can keep it; leave it out")
    # A BLAS allocates its buffers when it is first used, and takes no refusal later.
    square = np.ones((256, 256), np.float32)
    square @ square
    # So does a thread its stack, which is then used again.
    thread = threading.Thread(target=square.sum)
    thread.start()
    thread.join()
    status = Path("/proc/self/status").read_text()
    mapped, used = _bytes(status, "VmData"), _bytes(status, "RssAnon")
    if used >= limit:
        raise LimitError(
            f"--memory-limit {show_size(limit)}: a worker takes {show_size(used)} before it trains; give it more"
        )
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (mapped + limit - used, hard))


def show_size(size: int) -> str:
    """Bytes, in megabytes."""
    return f"{size / 1e6:.0f}M"


def _bytes(status: str, field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    assert match is not None, f"/proc/self/status has no {field}"
    return 1024 * int(match[1])
