"""Confirmation of a script's study: repeats of its best trials with other seeds.

A trial can be repeated with another seed if its function has read the seed of hpo, ``trial.user_attrs["seed"]``. The
repeats are enqueued with their parameters and seeds in a second study, whose workers run the script again.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.config.study import StudyConfig
from hpo.runner.function_trial import SEED_ATTRIBUTE, trial_seed
from hpo.search.space import params_key
from hpo.storage.study import Study, open_or_create_study
from hpo.storage.tables.leftovers import CONFIRMATION_SUFFIX
from hpo.storage.tables.optuna_tables import FIXED_PARAMS
from hpo.tuning.confirmation import (
    CONFIRMATION_SEEDS,
    Confirmed,
    confirmation_config,
    ranking,
    repeat_names,
    sign_of,
)


def ranked(trials: Iterable[FrozenTrial], sign: int) -> list[FrozenTrial]:
    """Return the complete trials that satisfy their constraints, the best first and of equal ones the first."""
    valued = [trial for trial in trials if trial.state == TrialState.COMPLETE and is_feasible(trial)]
    numbers = [(trial.values[0], trial) for trial in valued if trial.values and not math.isnan(trial.values[0])]
    return [trial for _, trial in sorted(numbers, key=lambda pair: (-sign * pair[0], pair[1].number))]


def is_feasible(trial: FrozenTrial) -> bool:
    """Return whether a trial satisfies its constraints, as Optuna defines them."""
    return all(value <= 0 for value in trial.constraints.values())


def optuna_view(study: Study) -> optuna.Study:
    """Return a study as an object of Optuna that reads all choices of a script without a warning."""
    return optuna.load_study(study_name=study.name, storage=study.leased_storage())


def candidates(study: Study) -> list[FrozenTrial]:
    """Return the best trial of each set of parameters, the best first."""
    best: dict[Any, FrozenTrial] = {}
    for trial in ranked(optuna_view(study).get_trials(deepcopy=False), sign_of(study)):
        best.setdefault(params_key(trial.params), trial)
    return list(best.values())


def has_read_seed(trial: FrozenTrial, config: StudyConfig) -> bool:
    """Return whether the function of a trial has read the seed of hpo. A script may set an attribute of this name."""
    return bool(trial.user_attrs.get(SEED_ATTRIBUTE) == trial_seed(config.study.seed, trial.number))


def open_confirmation(study: Study, config: StudyConfig) -> Study:
    """Open the confirmation study, and create it if it is missing."""
    second, directions = confirmation_config(config), study.directions
    return open_or_create_study(study.database, second, study.fingerprint, None, directions, allow_changes=True)


def enqueue_repeats(second: Study, config: StudyConfig, best: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Enqueue the missing repeats of trials.

    Args:
        second: The confirmation study.
        config: The study file of the search.
        best: The trials to repeat.

    Returns:
        All trials of the confirmation study.
    """
    seed_of_all = confirmation_config(config).study.seed
    seeds = [trial_seed(seed_of_all, repeat) for repeat in range(CONFIRMATION_SEEDS)]
    # Another launch of the script may enqueue the same repeats.
    with second.database.creation_lock():
        known = {(params_key(repeat.params), repeat.user_attrs.get(SEED_ATTRIBUTE)) for repeat in read_repeats(second)}
        for trial in best:
            for seed in seeds:
                if (params_key(trial.params), seed) not in known:
                    second.optuna_study.enqueue_trial(trial.params, {SEED_ATTRIBUTE: seed})
    return read_repeats(second)


def read_repeats(second: Study) -> list[FrozenTrial]:
    """Return the trials of a confirmation study, with all parameters that were enqueued.

    A trial that fails early has not recorded its parameters.
    """
    repeats = optuna_view(second).get_trials()
    for repeat in repeats:
        repeat.params = repeat.system_attrs.get(FIXED_PARAMS, repeat.params)
    return repeats


def find_confirmation(study: Study) -> Study | None:
    """Return the confirmation study, None if there is none."""
    return study.find_sibling(f"{study.name}{CONFIRMATION_SUFFIX}")


def names_of_repeats(study: Study, second: Study) -> dict[int, str]:
    """Return the name of each repeat: the trial that it repeats, and its seed."""
    return repeat_names(candidates(study), read_repeats(second), sign_of(study))


def confirmed_trials(study: Study) -> list[Confirmed]:
    """Return the ranking of the confirmed trials, empty without a confirmation of the best trial."""
    second = find_confirmation(study)
    return [] if second is None else ranking(candidates(study), read_repeats(second), sign_of(study))


def to_json(confirmed: Sequence[Confirmed]) -> dict[str, Any] | None:
    """Return the exported part of a ranking, None for an empty ranking."""
    if not confirmed:
        return None
    winner = confirmed[0]
    trials = [{"trial": entry.trial.number, "value": entry.trial.value, **entry.figures} for entry in confirmed]
    return {"seeds": len(winner.repeats), **winner.figures, "trials": trials}
