"""Which trials are not worth their remaining epochs.

A decision is a function of the intermediate values alone, so a trial that is resumed and reports again what it had
reported before gets the same answer.
"""

import zlib
from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Sequence

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.trial import FrozenTrial

from hpo.listed import study_of
from hpo.spec import StudySpec

REDUCTION_FACTOR = 3
RUNGS = 3
REPORTS = 30  # intermediate values of a trial, at most
MEDIAN_STARTUP_TRIALS = 5


def first_rung(max_epochs: int) -> int:
    """The epoch of the lowest rung, such that ``RUNGS`` of them fit into the longest trial."""
    return int(max(1, max_epochs // REDUCTION_FACTOR ** (RUNGS - 1)))


def rungs(max_epochs: int) -> list[int]:
    """The epochs at which trials are compared: each ``REDUCTION_FACTOR`` times the one before."""
    lowest = first_rung(max_epochs)
    epochs = [lowest * REDUCTION_FACTOR**rung for rung in range(RUNGS)]
    return [epoch for epoch in epochs if epoch <= max_epochs]


def report_epochs(max_epochs: int) -> frozenset[int]:
    """The epochs after which a trial reports its validation accuracy: all rungs, and points evenly spaced in the
    logarithm, since that is where learning curves differ. A trial's last epoch comes on top.
    """
    spaced = REPORTS - RUNGS - 1
    even = {round(max_epochs ** (point / (spaced - 1))) for point in range(spaced)}
    return frozenset(even | set(rungs(max_epochs)))


class HalvingPruner(BasePruner):
    """Asynchronous successive halving, in its form that only stops (Li et al. 2020, arXiv:1810.05934).

    At each rung a trial goes on if it is among the best ``1 / REDUCTION_FACTOR`` of those that got there so far; the
    best one always does. With several brackets, each with a later first rung than the one before, it is Hyperband
    (Li et al. 2018, arXiv:1603.06560): a trial's bracket is drawn from its number, brackets judge their own trials
    only, and their shares of the trials are in inverse proportion to what a trial of theirs costs.

    Each is for one study: what trials that have ended reached is looked up once.

    Args:
        rungs: Epochs at which a trial is judged, ascending.
        brackets: At most one for each rung.
    """

    def __init__(self, rungs: list[int], brackets: int = 1) -> None:
        self._rungs = rungs
        shares = [-(-brackets * REDUCTION_FACTOR**late // (late + 1)) for late in reversed(range(brackets))]
        self._bracket_of_draw = [bracket for bracket, share in enumerate(shares) for _ in range(share)]
        self._looked_at = 0  # trials, from the first on, all of which have ended
        self._reached: dict[tuple[int, int], list[float]] = defaultdict(list)  # by them, for a bracket and a rung

    def bracket(self, number: int) -> int:
        """The bracket of trial ``number``, which is also how many of the first rungs it is spared."""
        draw = zlib.crc32(str(number).encode())
        return self._bracket_of_draw[draw % len(self._bracket_of_draw)]

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        step, bracket = trial.last_step, self.bracket(trial.number)
        if step not in self._rungs[bracket:]:
            return False
        trials = study.get_trials(deepcopy=False)
        self._look_at_ended(trials)
        own, reached = trial.intermediate_values[step], self._reached[bracket, step]
        later = [
            other.intermediate_values[step]
            for other in trials[self._looked_at :]
            if step in other.intermediate_values and self.bracket(other.number) == bracket
        ]
        better = len(reached) - bisect_right(reached, own) + sum(value > own for value in later)
        return better >= max(1, (len(reached) + len(later)) // REDUCTION_FACTOR)

    def _look_at_ended(self, trials: Sequence[FrozenTrial]) -> None:
        while self._looked_at < len(trials) and trials[self._looked_at].state.is_finished():
            ended = trials[self._looked_at]
            for step in self._rungs:
                if step in ended.intermediate_values:
                    insort(self._reached[self.bracket(ended.number), step], ended.intermediate_values[step])
            self._looked_at += 1


def judged_epochs(spec: StudySpec) -> frozenset[int]:
    """The reports after which a trial can be pruned."""
    match spec.study.pruner:
        case "asha" | "hyperband":
            return frozenset(rungs(spec.max_epochs))
        case "median":
            return frozenset(epoch for epoch in report_epochs(spec.max_epochs) if epoch >= first_rung(spec.max_epochs))
        case "none":
            return frozenset()


def should_prune(pruner: BasePruner, trials: Sequence[FrozenTrial], number: int) -> bool:
    """Whether trial ``number``, one of all trials of the pruner's study, is not worth its remaining epochs."""
    return pruner.prune(study_of(trials), trials[number])


def pruner_for(spec: StudySpec) -> BasePruner:
    """The pruner that the study file names."""
    epochs = rungs(spec.max_epochs)
    match spec.study.pruner:
        case "asha":
            return HalvingPruner(epochs)
        case "hyperband":
            return HalvingPruner(epochs, brackets=len(epochs))
        case "median":
            return MedianPruner(MEDIAN_STARTUP_TRIALS, n_warmup_steps=epochs[0])
        case "none":
            return NopPruner()
