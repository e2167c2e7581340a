"""The best trials of a study, trained again with other seeds; a function of what is in the database.

The best of many validation accuracies is partly luck: on 1,000 images one standard error is 1.6 points. So the best
trials are trained again, as trials of a second study beside theirs, and the mean of these chooses. What a trial was
chosen by to be here is left out of its mean.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo.config.study import StudyConfig
from hpo.errors import StudyMismatchError
from hpo.search.enqueue import Params, same
from hpo.storage.study import Study

CONFIRMATION_SEEDS = 3  # that a trial is trained again with
_OTHER_SEEDS = 2**31  # the bit by which seeds differ from those of the study


@dataclass(frozen=True)
class Confirmed:
    """A trial, and the same parameters' trials with other seeds, all of which have ended."""

    trial: FrozenTrial
    again: tuple[FrozenTrial, ...]

    @property
    def values(self) -> list[float]:
        """The validation accuracies of those that are complete."""
        return [trial.value for trial in self.again if trial.value is not None and trial.state == TrialState.COMPLETE]

    @property
    def mean(self) -> float | None:
        """Of the values; None where there is none."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def standard_error(self) -> float | None:
        """Of the mean; None where there are less than two values."""
        return statistics.stdev(self.values) / len(self.values) ** 0.5 if len(self.values) > 1 else None

    @property
    def rank(self) -> tuple[Any, ...]:
        """The higher, the better: one that failed with a seed is behind those that did not."""
        return len(self.values), self.mean or 0.0, self.trial.value, -self.trial.number


def confirmation_config(spec: StudyConfig) -> StudyConfig:
    """The second study. No study file can have its name, which has a colon."""
    changed = {"name": f"{spec.study.name}:confirmation", "seed": spec.study.seed ^ _OTHER_SEEDS, "pruner": "none"}
    return spec.model_copy(update={"study": spec.study.model_copy(update=changed)})


def candidates(study: Study) -> list[FrozenTrial]:
    """The trials that can win, the best first: complete, with weights that are kept, each with other parameters."""
    kept = study.leases.kept()  # before the trials, so that these have all of them
    trials = study.trials
    best: dict[Any, FrozenTrial] = {}
    for number in kept:
        best.setdefault(same(trials[number].params), trials[number])
    return list(best.values())


def repeated(trials: Iterable[FrozenTrial]) -> tuple[Params, ...]:
    """The parameters that the second study is to have, those of the first trial first."""
    return tuple(trial.params for trial in trials for _ in range(CONFIRMATION_SEEDS))


def confirmation_of(study: Study, spec: StudyConfig, data: str) -> list[Confirmed]:
    """The study's trials that were trained again, the best first; none where that tells nothing about the study."""
    try:
        second = study.beside(confirmation_config(spec), data)
    except StudyMismatchError:
        return []  # of a study of the same name that was deleted
    return [] if second is None else ranking(candidates(study), second.trials)


def ranking(best: Sequence[FrozenTrial], again: Iterable[FrozenTrial]) -> list[Confirmed]:
    """Those that were trained again with all seeds, the best first.

    None where the one to beat is not among them, since it came later, or where none of them has a value.

    Args:
        best: The trials that can win, the best first.
        again: All trials of the second study.
    """
    ended = defaultdict(list)
    for trial in again:
        if trial.state.is_finished():
            ended[same(trial.params)].append(trial)
    confirmed = [
        Confirmed(trial, tuple(ended[same(trial.params)]))
        for trial in best
        if len(ended[same(trial.params)]) >= CONFIRMATION_SEEDS
    ]
    if not confirmed or confirmed[0].trial is not best[0] or not any(one.values for one in confirmed):
        return []
    return sorted(confirmed, key=lambda one: one.rank, reverse=True)


def newest(confirmed: Iterable[Confirmed]) -> Iterable[datetime]:
    """When the trials ended that were trained again."""
    return (trial.datetime_complete for one in confirmed for trial in one.again if trial.datetime_complete)


def describe(confirmed: Sequence[Confirmed]) -> dict[str, Any] | None:
    """What is exported of it; None where there is nothing."""
    if not confirmed:
        return None
    winner = confirmed[0]
    return {
        "seeds": len(winner.again),
        "mean": winner.mean,
        "standard_error": winner.standard_error,
        "values": winner.values,
        "trials": [
            {
                "trial": one.trial.number,
                "validation_accuracy": one.trial.value,
                "mean": one.mean,
                "standard_error": one.standard_error,
                "values": one.values,
            }
            for one in confirmed
        ],
    }
