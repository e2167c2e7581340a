"""Asynchronous successive halving (ASHA) with promotion, and Hyperband as successive halving with several brackets.

A decision is a function of the intermediate values alone. A resumed trial that repeats its reports therefore gets the
same decisions.
"""

import math
import zlib
from collections.abc import Container, Iterable, Sequence
from heapq import nsmallest

from optuna.trial import FrozenTrial, TrialState

REDUCTION_FACTOR = 3
MAX_RUNGS = 3
# The longest trial has this many times the steps of the highest rung.
HIGHEST_RUNG_FACTOR = 5
# Before this step most nets have similar scores.
MIN_RUNG = 5

_VIABLE_STATES = (TrialState.RUNNING, TrialState.COMPLETE)


def rungs(max_steps: int) -> list[int]:
    """Return the steps at which trials are compared, ascending.

    The highest rung is a fifth of the longest trial. Each other rung is a third of the next.
    """
    highest = max(1, max_steps // HIGHEST_RUNG_FACTOR)
    steps = [highest // REDUCTION_FACTOR**lower for lower in reversed(range(MAX_RUNGS))]
    return [step for step in steps if step >= MIN_RUNG] or [highest]


class SuccessiveHalving:
    """Asynchronous successive halving with promotion (Li et al. 2020, arXiv:1810.05934, algorithm 2).

    At each rung a trial is paused, unless it is among the best ``1 / REDUCTION_FACTOR`` of the trials that have reached
    the rung. If worse trials follow and a paused trial is then among the best, it is promoted: it continues to the next
    rung.

    With several brackets, of which each starts at a later rung, the method is Hyperband (Li et al. 2018,
    arXiv:1603.06560). The number of a trial determines its bracket. A bracket compares only its own trials. Its share
    of the trials is in inverse proportion to the cost of one of its trials.

    Args:
        rungs: The steps at which trials are compared, ascending.
        brackets: The number of brackets, at most one per rung.
        minimizes: Whether less is better.
    """

    pauses = True

    def __init__(self, rungs: Sequence[int], brackets: int = 1, *, minimizes: bool = False) -> None:
        self._sign = 1 if minimizes else -1
        self._rungs = list(rungs)
        self._brackets = brackets
        shares = [-(-brackets * REDUCTION_FACTOR**late // (late + 1)) for late in reversed(range(brackets))]
        self._bracket_of_draw = [bracket for bracket, share in enumerate(shares) for _ in range(share)]

    def bracket(self, number: int) -> int:
        """Return the bracket of a trial.

        It is also the number of the first rungs that the trial skips.
        """
        draw = zlib.crc32(str(number).encode())
        return self._bracket_of_draw[draw % len(self._bracket_of_draw)]

    def decision_steps(self) -> frozenset[int]:
        """Return the rungs."""
        return frozenset(self._rungs)

    def should_continue(self, trials: Sequence[FrozenTrial], number: int) -> bool:
        """Return whether a trial continues after its last report.

        Args:
            trials: All trials of the study in the order of their numbers.
            number: The number of the trial.
        """
        step, bracket = trials[number].last_step, self.bracket(number)
        if step is None or step not in self._rungs[bracket:]:
            return True
        return number in self._promoted(trials, bracket, step)

    def next_promotion(
        self, trials: Sequence[FrozenTrial], paused: Container[int], min_promoted: int = 0
    ) -> int | None:
        """Return the best paused trial of the highest rung with a promotion.

        Args:
            trials: All trials of the study in the order of their numbers.
            paused: The numbers of the paused trials.
            min_promoted: The minimum number of trials to promote from a rung, without failed and pruned trials.
        """
        for rung in reversed(self._rungs):
            waiting = [
                number
                for bracket in range(self._brackets)
                if rung in self._rungs[bracket:]
                for number in self._promoted(trials, bracket, rung, min_promoted)
                if number in paused and self._highest_rung(trials[number]) == rung
            ]
            if waiting:
                return min(waiting, key=lambda number: (self._sign * trials[number].intermediate_values[rung], number))
        return None

    def _promoted(self, trials: Sequence[FrozenTrial], bracket: int, rung: int, min_promoted: int = 0) -> list[int]:
        """Return the numbers of the trials that continue after a rung."""
        reached = [
            (self._sign * trial.intermediate_values[rung], trial)
            for trial in trials
            if rung in trial.intermediate_values and self.bracket(trial.number) == bracket
        ]
        return promoted(reached, REDUCTION_FACTOR, min_promoted)

    def _highest_rung(self, trial: FrozenTrial) -> int:
        return max(rung for rung in self._rungs if rung in trial.intermediate_values)


def promoted(reached: Iterable[tuple[float, FrozenTrial]], reduction_factor: int, min_promoted: int = 0) -> list[int]:
    """Return the numbers of the trials that continue after a rung, the best first.

    Args:
        reached: The trials that have reached the rung, with their losses there. Of equal losses, that of the lower
            number counts as better. A trial with an infinite loss does not continue.
        reduction_factor: One of this many trials continues.
        min_promoted: The minimum number of trials that continue, without failed and pruned trials.
    """
    ranked = [(loss, trial.number, trial.state in _VIABLE_STATES) for loss, trial in reached]
    best = nsmallest(len(ranked) // reduction_factor, ranked)
    if min_promoted:
        best += nsmallest(min_promoted, (candidate for candidate in ranked if candidate[-1]))
    return [number for loss, number, _ in best if loss < math.inf]
