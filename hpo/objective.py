"""What a trial is worth: its validation accuracy after the last epoch, or why it does not get there."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optuna.trial import TrialState

from hpo.training import DivergenceError, Training

if TYPE_CHECKING:
    from hpo.data import Split


@dataclass(frozen=True)
class Outcome:
    """How a trial ended; ``value`` is the last validation accuracy, None where there was none."""

    state: TrialState
    value: float | None
    reason: str | None = None


def run_trial(
    training: Training,
    validation: "Split",
    last_epoch: int,
    report_epochs: frozenset[int],
    report: Callable[[int, float], bool],
    after_epoch: Callable[[], None],
) -> Outcome:
    """Train from where the training stands to its last epoch, or until it is pruned or diverges.

    Args:
        training: a fresh or a restored one.
        validation: the validation split.
        last_epoch: of this trial.
        report_epochs: after which a value is reported; the last one always is.
        report: told an epoch and its accuracy, says whether to prune.
        after_epoch: called when an epoch and its report are done, with more epochs to come: the place for a
            checkpoint. What it raises ends the training.
    """
    value = None
    try:
        for epoch in training.epochs():
            if epoch.number == last_epoch:
                break
            if epoch.number in report_epochs:
                value = training.accuracy(validation)
                if report(epoch.number, value):
                    return Outcome(TrialState.PRUNED, value, f"pruned at epoch {epoch.number}")
            after_epoch()
    except DivergenceError as error:
        return Outcome(TrialState.PRUNED, value, f"diverged: {error}")
    value = training.accuracy(validation)
    report(last_epoch, value)
    return Outcome(TrialState.COMPLETE, value)
