"""Confirmation: repeats of the best trials of a study with other seeds.

The best of many validation accuracies is partly luck: on 1,000 images one standard error is 1.6 points. So the best
trials are repeated as trials of a second study in the same database, and the mean of the repeats selects the winner.
The value that selected a trial for confirmation is not part of its mean.
"""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.config.study import StudyConfig
from hpo.errors import StorageError, StudyMismatchError
from hpo.fleet.status import TrialNames, own_numbers
from hpo.runner.worker_loop import WorkerConfig
from hpo.search.enqueue import Params, params_key, pending
from hpo.storage.database.retry import retry_while_unavailable
from hpo.storage.study import Study, count_finished, is_finished, open_or_create_study
from hpo.storage.tables.leftovers import CONFIRMATION_SUFFIX
from hpo.tuning.sampling import SamplingError, combined_error

# Repeats of each trial.
CONFIRMATION_SEEDS = 3

# Bit that differs between the seeds of the two studies.
_SEED_MASK = 2**31


@dataclass(frozen=True)
class Confirmed:
    """A trial and its finished repeats.

    Attributes:
        trial: The trial.
        repeats: Its repeats.
        sign: 1 if greater values are better, otherwise -1.
    """

    trial: FrozenTrial
    repeats: tuple[FrozenTrial, ...]
    sign: int = 1

    @property
    def values(self) -> list[float]:
        """Values of the complete repeats, such as validation accuracies."""
        complete = (trial.value for trial in self.repeats if trial.state == TrialState.COMPLETE)
        return [value for value in complete if value is not None and math.isfinite(value)]

    @property
    def mean(self) -> float | None:
        """Mean of the values, None without values."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean that the seeds cause, None with less than two values."""
        return statistics.stdev(self.values) / len(self.values) ** 0.5 if len(self.values) > 1 else None

    @property
    def rank(self) -> tuple[Any, ...]:
        """Sort key; a trial with a failed repeat ranks below all trials without."""
        assert self.trial.value is not None, "only complete trials are confirmed"
        mean = float("-inf") if self.mean is None else self.sign * self.mean
        return len(self.values), mean, self.sign * self.trial.value, -self.trial.number

    @property
    def figures(self) -> dict[str, Any]:
        """The exported figures of the repeats."""
        return {"mean": self.mean, "standard_error": self.standard_error, "values": self.values}


def confirmation_config(config: StudyConfig) -> StudyConfig:
    """Return the config of the confirmation study.

    Its name has a colon, so that it cannot be the name of a study file.
    """
    changes = {
        "name": f"{config.study.name}{CONFIRMATION_SUFFIX}",
        "seed": config.study.seed ^ _SEED_MASK,
        "pruner": "none",
    }
    return config.model_copy(update={"study": config.study.model_copy(update=changes)})


def sign_of(study: Study) -> int:
    """Return 1 if greater values are better, otherwise -1."""
    return -1 if study.direction == StudyDirection.MINIMIZE else 1


def candidates(study: Study) -> list[FrozenTrial]:
    """Return the trials that can win, the best first.

    These are the complete trials with stored weights, one for each set of parameters.
    """
    # Read before the trials, so that the trials include every retained number.
    retained = study.store.retained_trials()
    trials = study.trials
    best: dict[Any, FrozenTrial] = {}
    for trial in (trials[number] for number in retained if number < len(trials)):
        best.setdefault(params_key(trial.params), trial)
    return list(best.values())


def repeat_params(trials: Iterable[FrozenTrial]) -> tuple[Params, ...]:
    """Return the parameters of the confirmation study, all repeats of the first trial first."""
    return tuple(trial.params for trial in trials for _ in range(CONFIRMATION_SEEDS))


def repeat_names(search: Iterable[FrozenTrial], repeats: Iterable[FrozenTrial], sign: int = 1) -> dict[int, str]:
    """Return the name of each trial of the confirmation study: the trial that it repeats, and its seed."""
    complete = [trial for trial in search if trial.state == TrialState.COMPLETE]
    originals: dict[Any, int] = {}
    for trial in sorted(complete, key=lambda trial: (-sign * (trial.value or 0.0), trial.number)):
        originals.setdefault(params_key(trial.params), trial.number)
    seeds: Counter[Any] = Counter()
    names = {}
    for repeat in repeats:
        key = params_key(repeat.params)
        seeds[key] += 1
        if key in originals:
            names[repeat.number] = f"{originals[key]} seed {seeds[key]}/{max(CONFIRMATION_SEEDS, seeds[key])}"
    return names


def confirmed_trials(study: Study, config: StudyConfig, fingerprint: str) -> list[Confirmed]:
    """Return the ranking of a study's confirmed trials, empty without a usable confirmation."""
    try:
        second = study.sibling(confirmation_config(config), fingerprint)
    except StudyMismatchError:
        # It confirmed a deleted study of the same name.
        return []
    return [] if second is None else ranking(candidates(study), second.trials, sign_of(study))


def ranking(best: Sequence[FrozenTrial], repeats: Iterable[FrozenTrial], sign: int = 1) -> list[Confirmed]:
    """Rank the trials whose repeats have all finished, the best first.

    The ranking is empty if the best trial is not confirmed, because it finished later, or if no repeat has a value.

    Args:
        best: The trials that can win, the best first.
        repeats: All trials of the confirmation study.
        sign: 1 if greater values are better, otherwise -1.
    """
    finished = defaultdict(list)
    for trial in repeats:
        if trial.state.is_finished():
            finished[params_key(trial.params)].append(trial)
    confirmed = [
        Confirmed(trial, tuple(finished[params_key(trial.params)]), sign)
        for trial in best
        if len(finished[params_key(trial.params)]) >= CONFIRMATION_SEEDS
    ]
    if not confirmed or confirmed[0].trial is not best[0] or not any(entry.values for entry in confirmed):
        return []
    return sorted(confirmed, key=lambda entry: entry.rank, reverse=True)


def completion_times(confirmed: Iterable[Confirmed]) -> Iterable[datetime]:
    """Return the completion times of all repeats."""
    return (repeat.datetime_complete for entry in confirmed for repeat in entry.repeats if repeat.datetime_complete)


def to_json(
    confirmed: Sequence[Confirmed], sampling: SamplingError | None, metric: str = "accuracy"
) -> dict[str, Any] | None:
    """Return the exported part of a ranking, None for an empty ranking.

    Args:
        confirmed: The ranking.
        sampling: The sampling error of the validation rows, None if it is unknown.
        metric: The name of the metric.
    """
    if not confirmed:
        return None
    winner = _figures(confirmed[0], sampling)
    errors = {key: winner.pop(key) for key in ("seed_error", "sampling_error")}
    trials = [
        {"trial": entry.trial.number, f"validation_{metric}": entry.trial.value, **_figures(entry, sampling)}
        for entry in confirmed
    ]
    return {"seeds": len(confirmed[0].repeats), **winner, "trials": trials, **errors}


def _figures(entry: Confirmed, sampling: SamplingError | None) -> dict[str, Any]:
    """Return the figures of the repeats, whose standard error has two parts: the seeds and the validation rows."""
    sampling_error = None if sampling is None or entry.mean is None else sampling.of(entry.mean)
    return {
        **entry.figures,
        "standard_error": combined_error(entry.standard_error, sampling_error),
        "seed_error": entry.standard_error,
        "sampling_error": sampling_error,
    }


@dataclass(frozen=True)
class Training:
    """Training of a study to the end of its budget.

    Attributes:
        study: The study.
        config: The worker config.
        title: The title of the progress.
        max_workers: The largest useful number of workers; None for no limit.
        trial_names: Function that returns the names of trials in messages.
    """

    study: Study
    config: WorkerConfig
    title: str
    max_workers: int | None = None
    trial_names: TrialNames = own_numbers


class StudyTrainer(Protocol):
    """Trains a study with the workers of a launch."""

    @property
    def has_time(self) -> bool:
        """Whether the deadline of the launch is still to come."""

    def train(self, training: Training) -> None:
        """Train a study to the end of its budget, or until the deadline."""


class Confirmation:
    """Stage of a launch that repeats the best trials of a study.

    Args:
        study: The study of the search.
        config: The worker config of the search.
        count: The number of trials to repeat.
        config_for: Function that returns the worker config for the config of the confirmation study.
    """

    def __init__(
        self, study: Study, config: WorkerConfig, count: int, config_for: Callable[[StudyConfig], WorkerConfig]
    ) -> None:
        self._study = study
        self._config = config
        self._count = count
        self._second_config = confirmation_config(config.config)
        self._config_for = config_for

    @property
    def trials(self) -> list[FrozenTrial]:
        """Trials of the confirmation study; empty if no confirmation is requested.

        Raises:
            StudyMismatchError: if the study was created from other settings or other data.
        """
        if not self._count:
            return []
        second = self._study.sibling(self._second_config, self._config.objective.fingerprint)
        return [] if second is None else second.trials

    @property
    def is_needed(self) -> bool:
        """Whether the search has finished, but not all repeats.

        Raises:
            StudyMismatchError: if the confirmation study was created from other settings or other data.
        """
        trials = self.trials
        searched = is_finished(self._study.trials, self._config.budget)
        return self._count > 0 and searched and not self._is_finished(trials)

    def run(self, trainer: StudyTrainer) -> None:
        """Train the missing repeats, if the confirmation is needed."""
        timeout_s = self._config.limits.storage_timeout
        if not retry_while_unavailable(lambda: self.is_needed, timeout_s)():
            return
        with retry_while_unavailable(self._open, timeout_s)() as second:
            try:
                self._train(second, trainer)
            except StorageError:
                if self._study.sibling(self._second_config, self._config.objective.fingerprint) is not None:
                    raise
                # The database has lost the confirmation study. The caller starts the confirmation again.

    def _train(self, second: Study, trainer: StudyTrainer) -> None:
        timeout_s = self._config.limits.storage_timeout
        trials = retry_while_unavailable(lambda: self._study.trials, timeout_s)()
        names = partial(repeat_names, trials, sign=sign_of(self._study))
        # Other launches can fill the budget with repeats of their own. Then some repeats of this launch are still
        # missing, and the next round has a higher budget.
        while trainer.has_time:
            trials = retry_while_unavailable(lambda: second.trials, timeout_s)()
            if self._is_finished(trials):
                return
            config = self._worker_config(trials)
            title = f"confirmation of {self._config.config.study.name}"
            trainer.train(Training(second, config, title, config.budget - count_finished(trials), names))

    def _open(self) -> Study:
        objective = self._config.objective
        return open_or_create_study(
            self._config.database,
            self._second_config,
            objective.fingerprint,
            objective.metric,
            self._study.directions,
        )

    def _is_finished(self, trials: Sequence[FrozenTrial]) -> bool:
        return is_finished(trials, self._worker_config(trials).budget)

    def _worker_config(self, trials: Sequence[FrozenTrial]) -> WorkerConfig:
        """Build the worker config; its budget is the number of existing trials and of missing repeats.

        The repeats of all candidates are enqueued, because another launch that confirms more trials raises the budget
        for the workers of this launch, too. They are in the order in which that launch needs them.
        """
        best = candidates(self._study)
        missing = len(pending(repeat_params(best[: self._count]), trials))
        # Each trial without parameters is about to get those of a missing repeat.
        has_space = bool(self._config.objective.space)
        unknown = sum(has_space and trial.state == TrialState.RUNNING and not trial.params for trial in trials)
        budget = len(trials) + max(0, missing - unknown)
        return replace(self._config_for(self._second_config), budget=budget, enqueued=repeat_params(best))
