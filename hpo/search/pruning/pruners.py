"""Pruners: which trials continue after a report, and which paused trial is promoted next."""

from collections.abc import Callable, Container, Sequence
from typing import Protocol

import optuna
from optuna.trial import FrozenTrial

from hpo.search.pruning.asha import MAX_RUNGS, SuccessiveHalving, rungs
from hpo.search.registry import find_factory
from hpo.search.sampling.tpe import study_from_trials

# Intermediate values of a trial, at most.
MAX_REPORTS = 30
# Trials that complete before the median pruner stops one.
MEDIAN_STARTUP_TRIALS = 5


class Pruner(Protocol):
    """Decisions about trials, as pure functions of all trials of a study.

    Attributes:
        pauses: Whether a trial that does not continue is paused, and may be promoted; otherwise it is pruned.
    """

    @property
    def pauses(self) -> bool: ...  # noqa: D102  # described above

    def decision_steps(self) -> frozenset[int]:
        """Return the steps whose reports need a decision."""

    def should_continue(self, trials: Sequence[FrozenTrial], number: int) -> bool:
        """Return whether trial ``number`` continues after its last report.

        Args:
            trials: All trials of the study in the order of their numbers.
            number: The number of the trial.
        """

    def next_promotion(
        self, trials: Sequence[FrozenTrial], paused: Container[int], min_promoted: int = 0
    ) -> int | None:
        """Return the number of the trial to promote next, None without one.

        Args:
            trials: All trials of the study in the order of their numbers.
            paused: The numbers of the paused trials.
            min_promoted: The minimum number of viable trials to promote from a rung.
        """


class NoPruner:
    """Pruner that lets each trial run to its end."""

    pauses = False

    def decision_steps(self) -> frozenset[int]:
        """Return no step."""
        return frozenset()

    def should_continue(self, trials: Sequence[FrozenTrial], number: int) -> bool:
        """Return True."""
        return True

    def next_promotion(
        self, trials: Sequence[FrozenTrial], paused: Container[int], min_promoted: int = 0
    ) -> int | None:
        """Return None, because no trial is paused."""
        return None


class MedianPruner:
    """Optuna's median pruner: a trial ends if its value is worse than the median of the complete trials.

    Args:
        max_steps: The steps of the longest trial.
        minimizes: Whether less is better.
    """

    pauses = False

    def __init__(self, max_steps: int, minimizes: bool = False) -> None:
        self._minimizes = minimizes
        self._warmup_steps = rungs(max_steps)[0]
        self._steps = frozenset(step for step in report_steps(max_steps) if step >= self._warmup_steps)
        self._pruner = optuna.pruners.MedianPruner(MEDIAN_STARTUP_TRIALS, n_warmup_steps=self._warmup_steps)

    def decision_steps(self) -> frozenset[int]:
        """Return all steps with a report from the lowest rung on."""
        return self._steps

    def should_continue(self, trials: Sequence[FrozenTrial], number: int) -> bool:
        """Return whether the trial's last value is at least as good as the median."""
        return not self._pruner.prune(study_from_trials(trials, minimizes=self._minimizes), trials[number])

    def next_promotion(
        self, trials: Sequence[FrozenTrial], paused: Container[int], min_promoted: int = 0
    ) -> int | None:
        """Return None, because no trial is paused."""
        return None


# Pruners by their name in a study file; each factory takes the steps of the longest trial, and whether less is better.
PRUNERS: dict[str, Callable[[int, bool], Pruner]] = {
    "asha": lambda max_steps, minimizes: SuccessiveHalving(rungs(max_steps), minimizes=minimizes),
    "hyperband": lambda max_steps, minimizes: SuccessiveHalving(
        rungs(max_steps), brackets=len(rungs(max_steps)), minimizes=minimizes
    ),
    "median": MedianPruner,
    "none": lambda *_: NoPruner(),
}


def make_pruner(name: str, max_steps: int, *, minimizes: bool = False) -> Pruner:
    """Return the pruner of a study.

    Args:
        name: The name in the study file.
        max_steps: The steps of the longest trial.
        minimizes: Whether less is better.

    Raises:
        StudyFileError: if no pruner has this name.
    """
    return find_factory(PRUNERS, "study.pruner", name)(max_steps, minimizes)


def report_steps(max_steps: int) -> frozenset[int]:
    """Return the steps after which a trial reports a value.

    These are all rungs, and steps that are evenly spaced on a logarithmic scale, because learning curves differ early.
    A trial also reports after its last step.
    """
    n_spaced = MAX_REPORTS - MAX_RUNGS - 1
    spaced = {round(max_steps ** (point / (n_spaced - 1))) for point in range(n_spaced)}
    return frozenset(spaced | set(rungs(max_steps)))
