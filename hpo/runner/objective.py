"""Seam between the workers and the code that a trial runs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from hpo.search.space import Space
from hpo.storage.tables.leases import Checkpoint
from hpo.storage.trial_store import TrialOutcome


class TrialPruned(Exception):  # noqa: N818  # Optuna's name
    """The trial is not worth its remaining steps.

    Attributes:
        reason: The reason that the study records; None for "pruned at" the step of the last report.
    """

    def __init__(self, reason: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason


class TrialPaused(BaseException):  # no error, as TrialPruned
    """The trial waits for a promotion, from which it resumes at this checkpoint.

    It is no ``Exception``, so that ``except Exception`` in a user's function does not catch it.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint.step)
        self.checkpoint = checkpoint


class TrialStopped(BaseException):  # no error, as TrialPaused
    """The worker has to stop; the trial resumes from this checkpoint.

    Attributes:
        checkpoint: The newest state; None if the trial resumes from the checkpoint in the database.
    """

    def __init__(self, checkpoint: Checkpoint | None = None) -> None:
        super().__init__(None if checkpoint is None else checkpoint.step)
        self.checkpoint = checkpoint


class Trial(Protocol):
    """A running trial, as an objective sees it: Optuna's methods, and checkpoints.

    The parameters are proposed before the trial starts, so that ``suggest_*`` only returns and checks them. An
    objective does not catch the exceptions of these methods.
    """

    @property
    def number(self) -> int:
        """The trial's number in its study."""

    @property
    def params(self) -> Mapping[str, Any]:
        """The trial's parameters by name."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return the value of a parameter."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Return the value of a parameter."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Return the value of a parameter."""

    def report(self, value: float, step: int) -> None:
        """Report an intermediate value after a step. Greater is better; steps count from 1.

        A step that was reported before is ignored. The call waits briefly for the pruner if it decides at this step.
        """

    def should_prune(self) -> bool:
        """Return whether the pruner has decided against the remaining steps.

        An objective without checkpoints then raises ``TrialPruned``. With checkpoints, ``save_checkpoint`` does it.
        """

    def load_checkpoint(self) -> bytes | None:
        """Return the state to resume from, None for a new trial."""

    def save_checkpoint(self, state: Callable[[], bytes], step: int) -> None:
        """End a step, after its report; save the state if the last checkpoint is old enough.

        The last step of a trial needs no call, because the trial is then complete.

        Args:
            state: Returns the state after the step. It is called only if the state is needed.
            step: The step that has ended.

        Raises:
            TrialPruned: if the pruner has decided against the remaining steps.
            TrialPaused: if the trial has to wait for a promotion.
            TrialStopped: if the worker has to stop.
        """

    def tick(self) -> None:
        """End a piece of work within a step, such as one batch.

        Pieces make crashes distinguishable: a trial that crashes its worker always does so at the same piece.

        Raises:
            TrialTimeoutError: if the trial has run for longer than its timeout.
        """


class Objective(Protocol):
    """The code that each trial of a study runs. It is picklable, because each worker process gets a copy.

    Attributes:
        metric: The name of its values, such as "validation accuracy".
        max_steps: The steps of the longest trial.
        cost_parameter: The parameter that the cost of a trial grows with, None if there is none.
        space: The parameters that the study searches; None if only the objective knows them.
        fingerprint: The fingerprint of its data, "" without data.
        ticks: Whether its trials call ``tick``, so that a trial can be told from others by where it crashes.
    """

    @property
    def metric(self) -> str: ...  # noqa: D102  # described above

    @property
    def max_steps(self) -> int: ...  # noqa: D102  # described above

    @property
    def cost_parameter(self) -> str | None: ...  # noqa: D102  # described above

    @property
    def space(self) -> Space | None: ...  # noqa: D102  # described above

    @property
    def fingerprint(self) -> str: ...  # noqa: D102  # described above

    @property
    def ticks(self) -> bool: ...  # noqa: D102  # described above

    def n_steps(self, params: Mapping[str, Any]) -> int | None:
        """Return the number of steps of a trial with these parameters, None if it is unknown."""

    def setup(self) -> None:
        """Load the data and warm up, once in each worker process and before any trial."""

    def __call__(self, trial: Trial) -> float | TrialOutcome:
        """Run a trial from its checkpoint, if it has one, to its end.

        Returns:
            The final value, or the outcome of a trial that may not be complete.
        """

    def artifact(self) -> bytes | None:
        """Return the bytes to keep of the trial that has just completed, None for nothing."""
