"""Next action of an idle worker, as a function of the trials of a study."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from hpo.search.pruning.pruners import Pruner

# Complete trials for each trial to confirm. The best of few complete trials is hardly a choice.
_COMPLETE_PER_CONFIRMED = 3


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


def min_complete_of(confirm: int) -> int:
    """Return the number of trials that shall complete, so that a number of the best can be confirmed."""
    return max(1, _COMPLETE_PER_CONFIRMED * confirm)


def next_action(
    pruner: Pruner,
    trials: Sequence[FrozenTrial],
    paused: Collection[int],
    budget: int,
    min_complete: int = 1,
    *,
    is_closing: bool = False,
) -> Action:
    """Return the next action of an idle worker.

    Args:
        pruner: The pruner of the study.
        trials: All trials of the study in the order of their numbers.
        paused: The numbers of the paused trials.
        budget: The number of trials that the study shall have.
        min_complete: The number of trials that shall complete, if that many are viable. Once the budget is used up, the
            best paused trials are promoted until they have completed.
        is_closing: Whether the time of the launch ends soon. The best trial of each rung is then promoted, so that the
            launch has a complete trial to export.
    """
    if paused and (number := pruner.next_promotion(trials, paused, min_promoted=int(is_closing))) is not None:
        return Resume(number)
    waiting = next((trial.number for trial in trials[:budget] if trial.state == TrialState.WAITING), None)
    if waiting is not None:
        return Adopt(waiting)
    if len(trials) < budget:
        return Start()
    return _last_action(pruner, trials, paused, min_complete)


def _last_action(pruner: Pruner, trials: Sequence[FrozenTrial], paused: Collection[int], min_complete: int) -> Action:
    """Return the next action once the budget is used up."""
    n_running = sum(trial.state == TrialState.RUNNING and trial.number not in paused for trial in trials)
    n_complete = sum(trial.state == TrialState.COMPLETE for trial in trials)
    is_short = n_complete + n_running < min_complete
    # A WAITING trial beyond the budget waits for a higher budget.
    if n_running and not is_short:
        return Wait()
    # A rung with fewer trials than the reduction factor promotes its best one too, so that a trial completes.
    min_promoted = min_complete if is_short else 1
    if paused and (number := pruner.next_promotion(trials, paused, min_promoted)) is not None:
        return Resume(number)
    if n_running:
        return Wait()
    return PrunePaused() if paused else Stop()
