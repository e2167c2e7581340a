"""What a trial is worth: its validation accuracy after the last epoch, or why it does not get there."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from optuna.trial import TrialState

from hpo.models.trainer import DivergenceError, Trainer

if TYPE_CHECKING:
    from hpo.data.cache import Split


@dataclass(frozen=True)
class Outcome:
    """How a trial ended; ``value`` is the last validation accuracy, None where there was none."""

    state: TrialState
    value: float | None
    reason: str | None = None

    @classmethod
    def pruned(cls, epoch: int, value: float) -> Self:
        """It was not worth its remaining epochs."""
        return cls(TrialState.PRUNED, value, f"pruned at epoch {epoch}")

    @classmethod
    def cut_short(cls, value: float | None, reason: str) -> Self:
        """It could not go on: PRUNED with its last value where it has one, else FAIL."""
        return cls(TrialState.FAIL if value is None else TrialState.PRUNED, value, reason)


@dataclass(frozen=True)
class Schedule:
    """The last epoch of a trial, and those after which it reports a value; the last is always one."""

    last_epoch: int
    report_epochs: frozenset[int]


def run_trial(
    training: Trainer,
    validation: "Split",
    schedule: Schedule,
    reported: float | None,
    report: Callable[[int, float], Outcome | None],
    after_epoch: Callable[[], Outcome | None],
    after_step: Callable[[], None],
) -> Outcome:
    """Train from where the training stands to its last epoch, or until it is pruned or diverges.

    Args:
        training: a fresh or a restored one.
        validation: the validation split.
        schedule: of this trial.
        reported: the last value that it reported before it was interrupted, None where there is none.
        report: told an epoch and its accuracy; an outcome ends the training, but for the last epoch's.
        after_epoch: called when an epoch and its report are done, with more epochs to come: the place for a
            checkpoint. An outcome ends the training, and so does what it raises.
        after_step: called between two steps; what it raises ends the training.
    """
    value = reported
    try:
        for epoch in training.epochs(after_step):
            if epoch.number == schedule.last_epoch:
                break
            if epoch.number in schedule.report_epochs:
                value = training.accuracy(validation)
                if outcome := report(epoch.number, value):
                    return outcome
            if outcome := after_epoch():
                return outcome
    except DivergenceError as error:
        return Outcome(TrialState.PRUNED, value, f"diverged: {error}")
    value = training.accuracy(validation)
    report(schedule.last_epoch, value)
    return Outcome(TrialState.COMPLETE, value)
