"""What a worker that is free does next: a function of the study's trials and of which of them are paused."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial

from hpo.search.pruners import Pruner, SuccessiveHalving


@dataclass(frozen=True)
class Promote:
    """Go on with a trial that is paused."""

    number: int


@dataclass(frozen=True)
class Create:
    """Create the next trial."""


@dataclass(frozen=True)
class Wait:
    """Others train what the rest depends on."""


@dataclass(frozen=True)
class Prune:
    """End all trials that are paused: none of them will go on."""


@dataclass(frozen=True)
class Leave:
    """The budget has ended."""


Step = Promote | Create | Wait | Prune | Leave


def next_action(pruner: Pruner, trials: Sequence[FrozenTrial], paused: Collection[int], budget: int) -> Step:
    """What a free worker does.

    Args:
        pruner: Of the study.
        trials: All of the study, in the order of their numbers.
        paused: The numbers of those that wait to be promoted.
        budget: How many trials the study is to have.
    """
    if (number := _promotable(pruner, trials, paused)) is not None:
        return Promote(number)
    if len(trials) < budget:
        return Create()
    if any(not trial.state.is_finished() and trial.number not in paused for trial in trials):
        return Wait()
    # However few there are: a study ends with a complete trial.
    if (number := _promotable(pruner, trials, paused, least=1)) is not None:
        return Promote(number)
    return Prune() if paused else Leave()


def _promotable(pruner: Pruner, trials: Sequence[FrozenTrial], paused: Collection[int], least: int = 0) -> int | None:
    return pruner.next_promotion(trials, paused, least) if paused and isinstance(pruner, SuccessiveHalving) else None
