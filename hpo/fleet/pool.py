"""Seam between a launch and the backend that runs its workers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

# The end of a message about an error whose cause a user can remove.
NOTHING_LOST = "nothing is lost: remove the cause, then the same command goes on"


class Waitable(Protocol):
    """Object with a descriptor that becomes readable."""

    def fileno(self) -> int:
        """Return the descriptor."""


@dataclass(frozen=True)
class WorkerExit:
    """Unexpected exit of a worker.

    Attributes:
        pid: The process id of the worker, or the id that the backend gives it.
        reason: The cause in one line.
        details: The traceback if the workers report one, else empty.
        trials: The numbers of the trials that the worker held.
        killed: Whether the worker was ended from outside.
    """

    pid: int
    reason: str
    details: str
    trials: list[int]
    killed: bool


class WorkerPool(Protocol):
    """Workers of one launch for one study.

    A worker ends by itself only when the study has no work left. The pool replaces every other worker that exits.
    """

    @property
    def has_workers(self) -> bool:
        """Whether a worker is left that has not ended by itself."""

    @property
    def is_alive(self) -> bool:
        """Whether the process of a worker is alive."""

    @property
    def unconnected(self) -> int:
        """Number of workers that wait because the database accepts no more connections."""

    def start(self) -> None:
        """Start all workers."""

    def poll(self) -> list[WorkerExit]:
        """Replace the workers that have exited and return their exits.

        An exit is returned once. If the database fails, the exits found so far are returned by the next call.

        Raises:
            WorkerStartupError: if workers crash before they train a trial.
            WorkerRefusalError: if workers die of the same expected error, whether they hold trials or not.
        """

    def take_notes(self) -> list[str]:
        """Return the messages for the user that workers have sent since the last call."""

    def wait(self, timeout_s: float, handles: Sequence[Waitable] = ()) -> None:
        """Wait until a worker exits or a handle is readable, or until the timeout."""

    def stop(self) -> None:
        """Let the workers finish the current epoch, keep their checkpoints and end."""

    def kill(self) -> None:
        """Kill the workers."""

    def release_leases(self) -> None:
        """Release the trials that killed workers still hold."""
