"""CMA-ES (Hansen 2016, arXiv:1604.00772) on a list of trials: its state is told anew by those that have ended.

Generations are made of trials that follow each other by their numbers. One is told when all of its trials have ended,
whatever became of those before, so that a long trial holds up none but its own, and workers that come and go all
see the same state. Each hyperparameter is an axis from 0 to 1, an integer or a choice the middle of its share.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any

import cmaes
import numpy as np
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from hpo.search.space import Space, at, unit

SIGMA = 1 / 6  # of the first generation, as in Optuna

_UNFINISHED = {TrialState.RUNNING, TrialState.WAITING}

_Generation = Sequence[FrozenTrial]


def evolved(space: Space, seed: int, trials: Sequence[FrozenTrial]) -> Iterator[dict[str, Any]]:
    """Points for the next trial, without end."""
    searched = tuple((name, distribution) for name, distribution in space.items() if not distribution.single())
    evolution = _evolution(searched, seed)
    evolution.learn(list(_generations(trials, evolution.population_size)))
    return evolution.points(len(trials), space)


def _generations(trials: Sequence[FrozenTrial], population_size: int) -> Iterator[_Generation]:
    for start in range(0, len(trials) - population_size + 1, population_size):
        generation = trials[start : start + population_size]
        if _UNFINISHED.isdisjoint(map(attrgetter("state"), generation)):
            yield generation


class _CmaState:
    """The state of CMA-ES, and what it was told; it starts again elsewhere when it has converged."""

    def __init__(self, searched: tuple[tuple[str, BaseDistribution], ...], seed: int) -> None:
        self._searched = dict(searched)
        self._seed = seed
        self._start()

    @property
    def population_size(self) -> int:
        return int(self._cma.population_size)

    def learn(self, generations: Sequence[_Generation]) -> None:
        """Be in the state that these lead to."""
        if generations[: len(self._told)] != self._told:
            self._start()
        for generation in generations[len(self._told) :]:
            self._told.append(generation)
            self._tell(generation)

    def points(self, number: int, space: Space) -> Iterator[dict[str, Any]]:
        """Points of the next generation for a trial of this number, without end."""
        self._cma.reseed_rng(_seed(self._seed, number))
        while True:
            units = dict(zip(self._searched, self._cma.ask(), strict=True))
            yield {name: at(distribution, _below_one(units.get(name, 0.5))) for name, distribution in space.items()}

    def _start(self) -> None:
        self._told: list[_Generation] = []
        self._restarts = itertools.count(1)
        self._cma = self._cma_from(np.full(len(self._searched), 0.5))

    def _tell(self, generation: _Generation) -> None:
        # A pruned trial counts with its last value: less than it could have reached. One that failed has none.
        worst = min((trial.value for trial in generation if trial.value is not None), default=0.0)
        self._cma.tell([(self._units(trial), -(worst if trial.value is None else trial.value)) for trial in generation])
        if self._cma.should_stop():
            rng = np.random.default_rng(_seed(self._seed, next(self._restarts), 0))
            self._cma = self._cma_from(rng.random(len(self._searched)))

    def _cma_from(self, mean: "np.ndarray[Any, np.dtype[np.float64]]") -> Any:
        bounds = np.array([[0.0, 1.0]] * len(mean))
        return cmaes.CMA(mean, SIGMA, bounds=bounds, n_max_resampling=10 * len(mean), seed=0)

    def _units(self, trial: FrozenTrial) -> "np.ndarray[Any, np.dtype[np.float64]]":
        return np.array([unit(distribution, trial.params[name]) for name, distribution in self._searched.items()])


# What was told to it is told once, as long as the same trials are there.
_evolution = lru_cache(maxsize=4)(_CmaState)


def _seed(seed: int, *key: int) -> int:
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1)[0])


def _below_one(u: float) -> float:
    return min(float(u), 1 - 2**-53)
