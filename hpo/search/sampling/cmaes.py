"""CMA-ES (Hansen 2016, arXiv:1604.00772) on a list of trials.

Consecutive trial numbers form a generation. The state learns from a generation as soon as all trials of the generation
have finished, whatever the state of earlier generations. A long trial therefore delays only its own generation, and all
workers compute the same state. Each parameter is an axis from 0 to 1. An integer or a choice is the middle of its
share.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any

import cmaes
import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from hpo.search.space import Params, Space, cardinality, from_unit, to_unit

# Standard deviation of the first generation, as in Optuna.
INITIAL_SIGMA = 1 / 6

_UNFINISHED_STATES = {TrialState.RUNNING, TrialState.WAITING}

_Generation = Sequence[FrozenTrial]


class CmaEs:
    """Covariance matrix adaptation evolution strategy."""

    def propose(self, space: Space, trials: Sequence[FrozenTrial], seed: int) -> Iterator[Params]:
        """Yield points of the current generation without end.

        A space with a single point gets no proposals.
        """
        if cardinality(space) == 1:
            return iter(())
        searched = tuple((name, distribution) for name, distribution in space.items() if not distribution.single())
        state = _cma_state(searched, seed)
        state.learn(list(_finished_generations(trials, state.population_size)))
        return state.points(len(trials), space)


def _finished_generations(trials: Sequence[FrozenTrial], population_size: int) -> Iterator[_Generation]:
    for start in range(0, len(trials) - population_size + 1, population_size):
        generation = trials[start : start + population_size]
        if _UNFINISHED_STATES.isdisjoint(map(attrgetter("state"), generation)):
            yield generation


class _CmaState:
    """State of CMA-ES after a list of generations; it restarts at a random point after convergence."""

    def __init__(self, searched: tuple[tuple[str, BaseDistribution], ...], seed: int) -> None:
        self._searched = dict(searched)
        self._seed = seed
        self._start()

    @property
    def population_size(self) -> int:
        return int(self._cma.population_size)

    def learn(self, generations: Sequence[_Generation]) -> None:
        """Update the state to these generations.

        The state starts again if it has learned from other generations.
        """
        if generations[: len(self._learned)] != self._learned:
            self._start()
        for generation in generations[len(self._learned) :]:
            self._learned.append(generation)
            self._learn_generation(generation)

    def points(self, number: int, space: Space) -> Iterator[Params]:
        """Yield points of the next generation for trial ``number``, without end."""
        self._cma.reseed_rng(_derive_seed(self._seed, number))
        while True:
            units = dict(zip(self._searched, self._cma.ask(), strict=True))
            yield {
                name: from_unit(distribution, _below_one(units.get(name, 0.5))) for name, distribution in space.items()
            }

    def _start(self) -> None:
        self._learned: list[_Generation] = []
        self._restarts = itertools.count(1)
        # The worst value of the last generation with a value. Before that, the constant has no influence.
        self._worst = 0.0
        self._cma = self._new_cma(np.full(len(self._searched), 0.5))

    def _learn_generation(self, generation: _Generation) -> None:
        # A failed trial has no value and ranks with the worst trial of its generation. Only the ranks matter: in a
        # generation without any value, all trials rank alike.
        self._worst = min((trial.value for trial in generation if trial.value is not None), default=self._worst)
        values = [self._worst if trial.value is None else trial.value for trial in generation]
        self._cma.tell([(self._units(trial), -value) for trial, value in zip(generation, values, strict=True)])
        if self._cma.should_stop():
            rng = np.random.default_rng(_derive_seed(self._seed, next(self._restarts), 0))
            self._cma = self._new_cma(rng.random(len(self._searched)))

    def _new_cma(self, mean: NDArray[np.float64]) -> Any:
        bounds = np.array([[0.0, 1.0]] * len(mean))
        return cmaes.CMA(mean, INITIAL_SIGMA, bounds=bounds, n_max_resampling=10 * len(mean), seed=0)

    def _units(self, trial: FrozenTrial) -> NDArray[np.float64]:
        return np.array([to_unit(distribution, trial.params[name]) for name, distribution in self._searched.items()])


# The cache avoids a replay of all generations for each proposal.
_cma_state = lru_cache(maxsize=4)(_CmaState)


def _derive_seed(seed: int, *key: int) -> int:
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1)[0])


def _below_one(u: float) -> float:
    return min(float(u), 1 - 2**-53)
