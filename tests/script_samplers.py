"""Samplers that a script can pass, and studies in which they run trials."""

import math
import random
import warnings
from collections.abc import Callable, Iterable

import numpy as np
import optuna
from optuna.samplers import (
    BaseSampler,
    BruteForceSampler,
    CmaEsSampler,
    GPSampler,
    GridSampler,
    NSGAIIISampler,
    NSGAIISampler,
    PartialFixedSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.storages import BaseStorage
from optuna.trial import Trial

GRID = {"x": [-4.0, -1.0, 0.5, 2.0], "layers": [1, 2, 3], "kind": ["a", "b"]}


class FromGenerators(BaseSampler):
    """Sampler of a user with generators of NumPy and of Python."""

    def __init__(self, seed: int | None) -> None:
        self._generators = [np.random.default_rng(seed), np.random.RandomState(seed)]
        self._python = random.Random(seed)

    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, param_name, param_distribution):
        share = (self._generators[0].random() + self._generators[1].rand() + self._python.random()) / 3
        if isinstance(param_distribution, optuna.distributions.CategoricalDistribution):
            return param_distribution.choices[int(share * len(param_distribution.choices))]
        width = param_distribution.high - param_distribution.low
        value = param_distribution.low + share * width
        return value if isinstance(param_distribution, optuna.distributions.FloatDistribution) else int(value)


# The samplers by name; each factory takes a seed.
SAMPLERS: dict[str, Callable[[int | None], BaseSampler]] = {
    "random": lambda seed: RandomSampler(seed=seed),
    "tpe": lambda seed: TPESampler(seed=seed, n_startup_trials=5),
    "tpe-univariate": lambda seed: TPESampler(seed=seed, n_startup_trials=5, multivariate=False),
    "tpe-group": lambda seed: TPESampler(seed=seed, n_startup_trials=5, group=True),
    "cmaes": lambda seed: CmaEsSampler(seed=seed, n_startup_trials=3, popsize=4, warn_independent_sampling=False),
    "cmaes-margin": lambda seed: CmaEsSampler(
        seed=seed, n_startup_trials=3, popsize=4, warn_independent_sampling=False, with_margin=True
    ),
    "nsgaii": lambda seed: NSGAIISampler(seed=seed, population_size=5),
    "nsgaiii": lambda seed: NSGAIIISampler(seed=seed, population_size=5),
    "qmc": lambda seed: QMCSampler(seed=seed, warn_independent_sampling=False),
    "qmc-scrambled": lambda seed: QMCSampler(
        seed=seed, scramble=True, warn_independent_sampling=False, warn_asynchronous_seeding=False
    ),
    "grid": lambda seed: GridSampler(GRID, seed=seed),
    "brute-force": lambda seed: BruteForceSampler(seed=seed),
    "partial-fixed": lambda seed: PartialFixedSampler({"layers": 2}, TPESampler(seed=seed, n_startup_trials=5)),
    "generators": FromGenerators,
    # It imports PyTorch.
    "gp": lambda seed: GPSampler(seed=seed, n_startup_trials=4, warn_independent_sampling=False),
}
LIGHT_SAMPLERS = [name for name in SAMPLERS if name != "gp"]


def make_script_sampler(name: str, seed: int | None) -> BaseSampler:
    """Return a sampler without the warnings about experimental arguments."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[name](seed)


def suggest(trial: Trial) -> Iterable[object]:
    """Suggest parameters one after the other, some of them only in some trials, from finite sets."""
    yield (x := trial.suggest_float("x", -4, 4, step=0.5))
    yield (layers := trial.suggest_int("layers", 1, 3))
    yield (kind := trial.suggest_categorical("kind", ["a", "b"]))
    yield trial.suggest_int("constant", 7, 7)
    if trial.study.user_attrs.get("conditional") and kind == "a":
        yield trial.suggest_float("decay", 0, 1, step=0.1)
        yield from (trial.suggest_int(f"units_{layer}", 1, 9) for layer in range(layers))
    trial.set_user_attr("loss", (x - 1) ** 2 + math.sqrt(layers))


def run_trial(study: optuna.Study) -> dict[str, object]:
    """Run the next trial, and return its parameters."""
    trial = study.ask()
    for _ in suggest(trial):
        pass
    study.tell(trial, trial.user_attrs["loss"])
    return trial.params


def load(storage: BaseStorage, sampler: BaseSampler) -> optuna.Study:
    """Return the only study of a storage with another sampler."""
    return optuna.load_study(study_name=None, storage=storage, sampler=sampler)
