"""ASHA for a user's objective: an Optuna pruner that also promotes paused trials.

The trials of an objective may report at any steps, and their number of steps is not known. There is a rung at
``min_resource`` steps and at each power of the reduction factor after it.
"""

import math
from collections.abc import Container, Sequence

from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.search.pruning.asha import REDUCTION_FACTOR, promoted
from hpo.search.pruning.pruners import NoPruner, Pruner


class AshaPruner(BasePruner):
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934) without an upper limit of steps.

    The decision is due at the first report at or after a rung; the reports between two rungs stop no trial. A trial
    continues if it is among the best ``1 / reduction_factor`` of the trials that have reached the rung, each with its
    own first report there, or if it is the best of those that have neither failed nor been pruned. So the first trial
    of a rung continues, and trials complete even if none is paused and promoted. A NaN never continues.

    In plain Optuna this pruner stops trials. In hpo, a trial that has a checkpoint at its last step is paused instead,
    and it is promoted when it is among the best.

    Both are functions of the trials. A promoted trial that repeats the report of its pause would be paused again if
    more than before have better values. Do not ask the pruner about steps up to that of the checkpoint.

    Args:
        min_resource: The first rung.
        reduction_factor: One of this many trials continues after a rung.

    Raises:
        ValueError: if the first rung is before step 1, or the reduction factor is less than 2.
    """

    def __init__(self, min_resource: int = 1, reduction_factor: int = REDUCTION_FACTOR) -> None:
        if min_resource < 1 or reduction_factor < 2:
            raise ValueError(
                "AshaPruner: min_resource must be 1 or more and reduction_factor 2 or more, "
                f"not {min_resource} and {reduction_factor}"
            )
        self._min_resource = min_resource
        self._reduction_factor = reduction_factor

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Return whether a trial stops after its last report."""
        rung = self._due_rung(trial)
        if rung is None:
            return False
        # The study may not show the last report yet.
        others = (other for other in study.get_trials(deepcopy=False) if other.number != trial.number)
        return trial.number not in self._promoted((*others, trial), rung, study.direction, min_promoted=1)

    def stopped(self, trials: Sequence[FrozenTrial], direction: StudyDirection) -> set[int]:
        """Return the numbers of the RUNNING trials that stop after their last report.

        Args:
            trials: All trials of the study in the order of their numbers.
            direction: The direction of the study.
        """
        due: dict[int, set[int]] = {}
        for trial in trials:
            if trial.state == TrialState.RUNNING and (rung := self._due_rung(trial)) is not None:
                due.setdefault(rung, set()).add(trial.number)
        return {
            number
            for rung, numbers in due.items()
            for number in numbers.difference(self._promoted(trials, rung, direction, min_promoted=1))
        }

    def next_promotion(
        self,
        trials: Sequence[FrozenTrial],
        paused: Container[int],
        direction: StudyDirection,
        min_promoted: int = 0,
    ) -> int | None:
        """Return the number of the best paused trial of the highest rung with a promotion, None without one.

        Args:
            trials: All trials of the study in the order of their numbers.
            paused: The numbers of the paused trials.
            direction: The direction of the study.
            min_promoted: The minimum number of trials to promote from a rung, without failed and pruned trials.
        """
        last_step = max((trial.last_step or 0 for trial in trials), default=0)
        for rung in reversed(self._rungs_until(last_step)):
            waiting = [
                number
                for number in self._promoted(trials, rung, direction, min_promoted)
                if number in paused and self._rungs_until(trials[number].last_step)[-1] == rung
            ]
            if waiting:
                return waiting[0]
        return None

    def _rungs_until(self, step: int | None) -> list[int]:
        rungs, rung = [], self._min_resource
        while step is not None and rung <= step:
            rungs.append(rung)
            rung *= self._reduction_factor
        return rungs

    def _due_rung(self, trial: FrozenTrial) -> int | None:
        """Return the rung whose first report is the trial's last report."""
        rungs = self._rungs_until(trial.last_step)
        return rungs[-1] if rungs and _step_at(trial, rungs[-1]) == trial.last_step else None

    def _promoted(
        self, trials: Sequence[FrozenTrial], rung: int, direction: StudyDirection, min_promoted: int
    ) -> list[int]:
        """Return the numbers of the trials that continue after a rung, the best first."""
        losses = ((_loss_at(trial, rung, direction), trial) for trial in trials)
        reached = [(loss, trial) for loss, trial in losses if loss is not None]
        return promoted(reached, self._reduction_factor, min_promoted)


class PromotingPruner:
    """Promotions of an ``AshaPruner``. The trial itself asks the Optuna pruner whether it continues.

    Args:
        pruner: The pruner of the script.
        direction: The direction of the study.
    """

    pauses = True

    def __init__(self, pruner: AshaPruner, direction: StudyDirection) -> None:
        self._pruner = pruner
        self._direction = direction

    def decision_steps(self) -> frozenset[int]:
        """Return no step, because the objective asks in ``Trial.should_prune``."""
        return frozenset()

    def should_continue(self, trials: Sequence[FrozenTrial], number: int) -> bool:
        """Return True."""
        return True

    def next_promotion(
        self, trials: Sequence[FrozenTrial], paused: Container[int], min_promoted: int = 0
    ) -> int | None:
        """Return the number of the trial to promote next, None without one."""
        return self._pruner.next_promotion(trials, paused, self._direction, min_promoted)


def hpo_pruner(pruner: BasePruner, directions: Sequence[StudyDirection]) -> Pruner:
    """Return the pruner of the worker loop for the Optuna pruner of a script.

    Args:
        pruner: The Optuna pruner, which decides in ``Trial.should_prune``.
        directions: The directions of the study. With several, a trial cannot report.
    """
    if isinstance(pruner, AshaPruner) and len(directions) == 1:
        return PromotingPruner(pruner, directions[0])
    return NoPruner()


def _step_at(trial: FrozenTrial, rung: int) -> int | None:
    """Return the step of a trial's first report at or after a rung, None without one."""
    if rung in trial.intermediate_values:
        return rung
    return min((step for step in trial.intermediate_values if step >= rung), default=None)


def _loss_at(trial: FrozenTrial, rung: int, direction: StudyDirection) -> float | None:
    """Return the value of a trial's first report at or after a rung, less is better, None without one."""
    step = _step_at(trial, rung)
    if step is None:
        return None
    value = trial.intermediate_values[step]
    if math.isnan(value):
        return math.inf
    return -value if direction == StudyDirection.MAXIMIZE else value
