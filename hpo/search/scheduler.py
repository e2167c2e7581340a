"""Next action of an idle worker, as a function of the trials of a study."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from hpo.search.pruners import Pruner


@dataclass(frozen=True)
class Resume:
    """Promote a paused trial and resume it."""

    number: int


@dataclass(frozen=True)
class Adopt:
    """Start a WAITING trial that another program enqueued."""

    number: int


@dataclass(frozen=True)
class Start:
    """Create and start the next trial."""


@dataclass(frozen=True)
class Wait:
    """Wait, because other workers run trials that decide the next promotion."""


@dataclass(frozen=True)
class PrunePaused:
    """Prune all paused trials, because none of them can be promoted."""


@dataclass(frozen=True)
class Stop:
    """Stop, because the budget is finished."""


Action = Resume | Adopt | Start | Wait | PrunePaused | Stop


def next_action(pruner: Pruner, trials: Sequence[FrozenTrial], paused: Collection[int], budget: int) -> Action:
    """Return the next action of an idle worker.

    Args:
        pruner: The pruner of the study.
        trials: All trials of the study in the order of their numbers.
        paused: The numbers of the paused trials.
        budget: The number of trials that the study shall have.
    """
    if paused and (number := pruner.next_promotion(trials, paused)) is not None:
        return Resume(number)
    waiting = next((trial.number for trial in trials[:budget] if trial.state == TrialState.WAITING), None)
    if waiting is not None:
        return Adopt(waiting)
    if len(trials) < budget:
        return Start()
    # A WAITING trial beyond the budget waits for a higher budget.
    if any(trial.state == TrialState.RUNNING and trial.number not in paused for trial in trials):
        return Wait()
    # A rung with fewer trials than the reduction factor promotes its best one too, so that a trial completes.
    if paused and (number := pruner.next_promotion(trials, paused, min_promoted=1)) is not None:
        return Resume(number)
    return PrunePaused() if paused else Stop()
