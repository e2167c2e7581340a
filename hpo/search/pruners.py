"""Which trials are worth their remaining epochs, and which of them first.

A decision is a function of the intermediate values alone, so a trial that is resumed and reports again what it had
reported before gets the same answer.
"""

import zlib
from collections.abc import Container, Sequence
from heapq import nsmallest

from optuna.pruners import MedianPruner
from optuna.trial import FrozenTrial, TrialState

from hpo.config.study import StudyConfig
from hpo.search.optuna_adapter import study_from_trials

REDUCTION_FACTOR = 3
RUNGS = 3  # at most
HIGHEST_RUNG = 5  # the longest trial over it
LEAST_RUNG = 5  # epochs, before which most nets look alike
REPORTS = 30  # intermediate values of a trial, at most
MEDIAN_STARTUP_TRIALS = 5

_VIABLE_STATES = (TrialState.RUNNING, TrialState.COMPLETE)


def rungs(max_epochs: int) -> list[int]:
    """The epochs at which trials are compared: a fifth of the longest trial, a third of that, a third again."""
    highest = max(1, max_epochs // HIGHEST_RUNG)
    epochs = [highest // REDUCTION_FACTOR**lower for lower in reversed(range(RUNGS))]
    return [epoch for epoch in epochs if epoch >= LEAST_RUNG] or [highest]


def first_rung(max_epochs: int) -> int:
    """The epoch of the lowest rung."""
    return rungs(max_epochs)[0]


def report_epochs(max_epochs: int) -> frozenset[int]:
    """The epochs after which a trial reports its validation accuracy: all rungs, and points evenly spaced in the
    logarithm, since that is where learning curves differ. A trial's last epoch comes on top.
    """
    spaced = REPORTS - RUNGS - 1
    even = {round(max_epochs ** (point / (spaced - 1))) for point in range(spaced)}
    return frozenset(even | set(rungs(max_epochs)))


class SuccessiveHalving:
    """Asynchronous successive halving with promotion (Li et al. 2020, arXiv:1810.05934, algorithm 2).

    At each rung a trial is paused, unless it is among the best ``1 / REDUCTION_FACTOR`` of those that got there so far.
    One that gets among them later, since worse ones came after it, is promoted: it goes on to the next rung.

    With several brackets, each with a later first rung than the one before, it is Hyperband (Li et al. 2018,
    arXiv:1603.06560): a trial's bracket is drawn from its number, brackets compare their own trials only, and their
    shares of the trials are in inverse proportion to what a trial of theirs costs.

    Args:
        rungs: Epochs at which trials are compared, ascending.
        brackets: At most one for each rung.
    """

    def __init__(self, rungs: list[int], brackets: int = 1) -> None:
        self._rungs = rungs
        self._brackets = brackets
        shares = [-(-brackets * REDUCTION_FACTOR**late // (late + 1)) for late in reversed(range(brackets))]
        self._bracket_of_draw = [bracket for bracket, share in enumerate(shares) for _ in range(share)]

    def bracket(self, number: int) -> int:
        """The bracket of trial ``number``, which is also how many of the first rungs it is spared."""
        draw = zlib.crc32(str(number).encode())
        return self._bracket_of_draw[draw % len(self._bracket_of_draw)]

    def should_continue(self, trials: Sequence[FrozenTrial], number: int) -> bool:
        """Whether trial ``number``, one of all trials of the study, is not to be paused after its last report."""
        step, bracket = trials[number].last_step, self.bracket(number)
        if step is None or step not in self._rungs[bracket:]:
            return True
        return number in self._best(trials, bracket, step)

    def next_promotion(self, trials: Sequence[FrozenTrial], paused: Container[int], least: int = 0) -> int | None:
        """The paused trial that is to go on next: the best of the highest rung that has one.

        Args:
            trials: All trials of the study, in the order of their numbers.
            paused: The numbers of those that are.
            least: How many of those that got to a rung and did not end in vain go on, at least.
        """
        for rung in reversed(self._rungs):
            waiting = [
                number
                for bracket in range(self._brackets)
                if rung in self._rungs[bracket:]
                for number in self._best(trials, bracket, rung, least)
                if number in paused and self._highest_rung(trials[number]) == rung
            ]
            if waiting:
                return min(waiting, key=lambda number: (-trials[number].intermediate_values[rung], number))
        return None

    def _best(self, trials: Sequence[FrozenTrial], bracket: int, rung: int, least: int = 0) -> list[int]:
        """The numbers of those that go on from a rung."""
        reached = [
            (-trial.intermediate_values[rung], trial.number)
            for trial in trials
            if rung in trial.intermediate_values and self.bracket(trial.number) == bracket
        ]
        best = nsmallest(len(reached) // REDUCTION_FACTOR, reached)
        if least:
            best += nsmallest(least, (ranked for ranked in reached if trials[ranked[1]].state in _VIABLE_STATES))
        return [number for _, number in best]

    def _highest_rung(self, trial: FrozenTrial) -> int:
        return max(rung for rung in self._rungs if rung in trial.intermediate_values)


Pruner = SuccessiveHalving | MedianPruner | None


def decision_epochs(spec: StudyConfig) -> frozenset[int]:
    """The reports after which a trial can be paused or pruned."""
    match spec.study.pruner:
        case "asha" | "hyperband":
            return frozenset(rungs(spec.max_epochs))
        case "median":
            return frozenset(epoch for epoch in report_epochs(spec.max_epochs) if epoch >= first_rung(spec.max_epochs))
        case "none":
            return frozenset()


def should_continue(pruner: Pruner, trials: Sequence[FrozenTrial], number: int) -> bool:
    """Whether trial ``number``, one of all trials of a study, is worth its next epochs after its last report."""
    match pruner:
        case SuccessiveHalving():
            return pruner.should_continue(trials, number)
        case MedianPruner():
            return not pruner.prune(study_from_trials(trials), trials[number])
        case None:
            return True


def pruner_for(spec: StudyConfig) -> Pruner:
    """The pruner that the study file names."""
    epochs = rungs(spec.max_epochs)
    match spec.study.pruner:
        case "asha":
            return SuccessiveHalving(epochs)
        case "hyperband":
            return SuccessiveHalving(epochs, brackets=len(epochs))
        case "median":
            return MedianPruner(MEDIAN_STARTUP_TRIALS, n_warmup_steps=epochs[0])
        case "none":
            return None
