"""Samplers: the parameters of a trial as a function of its number and of the trials before it.

A proposal needs no database. Samplers that do not learn therefore propose the same trials for any number of workers.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from operator import attrgetter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from hpo.config.study import Parameter, StudyConfig
from hpo.errors import StudyFileError
from hpo.search.space import Params, Space, cardinality, from_unit, points_after, values

# Candidates that may have the parameters of a former trial, before a finite space is searched exhaustively.
MAX_CANDIDATES = 100
# Candidates in an infinite space. Only a range of a few neighbouring floats can need so many.
MAX_DRAWS = 10_000
# Values of a hyperparameter in the random grid.
GRID_VALUES = 20

# Points that are computed at a time.
_BLOCK = 256

_params = attrgetter("params")


def params_from_unit(space: Space, point: Iterable[float]) -> dict[str, Any]:
    """Return the parameters at a point of the unit cube."""
    return {
        name: from_unit(distribution, float(u)) for (name, distribution), u in zip(space.items(), point, strict=True)
    }


class Sampler(Protocol):
    """Source of parameters for new trials."""

    def propose(self, space: Space, trials: Sequence[FrozenTrial], seed: int) -> Iterator[Params]:
        """Yield candidates for trial ``len(trials)``, the best first.

        Args:
            space: The search space, not empty.
            trials: All trials of the study in the order of their numbers, including running and paused ones.
            seed: The seed of the study.
        """

    def n_points(self, space: Space, seed: int) -> float:
        """Return the number of different points that the sampler can propose."""


class RandomSampler:
    """Independent uniform draws, one random number generator per trial number."""

    def propose(self, space: Space, trials: Sequence[FrozenTrial], seed: int) -> Iterator[Params]:
        """Yield random points without end."""
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(len(trials),)))
        while True:
            yield params_from_unit(space, rng.random(len(space)))

    def n_points(self, space: Space, seed: int) -> float:
        """Return the number of points of the space."""
        return cardinality(space)


class QuasiRandomSampler:
    """Scrambled Sobol sequence; trial ``n`` gets its point ``n``."""

    def propose(self, space: Space, trials: Sequence[FrozenTrial], seed: int) -> Iterator[Params]:
        """Yield the points of the sequence from the trial's number on, without end."""
        for number in itertools.count(len(trials)):
            block, index = divmod(number, _BLOCK)
            yield params_from_unit(space, _sobol_block(len(space), seed, block)[index])

    def n_points(self, space: Space, seed: int) -> float:
        """Return the number of points of the space."""
        return cardinality(space)


class RandomGridSampler:
    """Draws without repetition from a grid of at most 20 random values per hyperparameter."""

    def propose(self, space: Space, trials: Sequence[FrozenTrial], seed: int) -> Iterator[Params]:
        """Yield the draws from the trial's number to the last."""
        axes = grid_axes(space, seed)
        draws = _grid_draws(tuple(map(len, axes)), seed)
        for number in range(len(trials), _n_grid_points(axes)):
            indices = draws.at(number)
            yield {name: axis[index] for name, axis, index in zip(space, axes, indices, strict=True)}

    def n_points(self, space: Space, seed: int) -> float:
        """Return the number of points of the grid."""
        return _n_grid_points(grid_axes(space, seed))


def grid_axes(space: Space, seed: int) -> list[Sequence[Parameter]]:
    """Return the values of each hyperparameter in the random grid, in ascending order."""
    return [_grid_axis(distribution, seed, position) for position, distribution in enumerate(space.values())]


class _GridDraws:
    """Distinct random points of a grid, drawn in order and kept.

    Args:
        sizes: The number of values on each axis.
        seed: The seed of the study.
    """

    def __init__(self, sizes: tuple[int, ...], seed: int) -> None:
        self._sizes = np.array(sizes)
        self._rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(len(sizes), GRID_VALUES)))
        # A dictionary keeps the order of its keys.
        self._drawn: dict[tuple[int, ...], None] = {}
        self._points: list[tuple[int, ...]] = []

    def at(self, number: int) -> tuple[int, ...]:
        """Return the indices of draw ``number``, which must be less than the number of points."""
        while number >= len(self._drawn):
            block = self._rng.integers(self._sizes, size=(_BLOCK, len(self._sizes)))
            self._drawn.update(dict.fromkeys(map(tuple, block.tolist())))
        if number >= len(self._points):
            self._points = list(self._drawn)
        return self._points[number]


_grid_draws = lru_cache(maxsize=8)(_GridDraws)


def _n_grid_points(axes: Sequence[Sequence[Parameter]]) -> int:
    product = 1
    for axis in axes:
        product *= len(axis)
    return product


@lru_cache(maxsize=64)
def _grid_axis(distribution: BaseDistribution, seed: int, position: int) -> tuple[Parameter, ...]:
    every = values(distribution)
    if every is not None and len(every) <= GRID_VALUES:
        return tuple(every)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(position, GRID_VALUES)))
    drawn: set[Parameter] = set()
    while len(drawn) < GRID_VALUES:
        drawn.add(from_unit(distribution, float(rng.random())))
    return tuple(sorted(drawn))


@lru_cache(maxsize=16)
def _sobol_block(dimensions: int, seed: int, block: int) -> NDArray[np.float64]:
    # The import is slow, and a launch without this sampler does not need it.
    from scipy.stats import qmc

    sequence = qmc.Sobol(dimensions, scramble=True, rng=seed)
    # SciPy cannot fast-forward by 0.
    if block:
        sequence.fast_forward(block * _BLOCK)
    points: NDArray[np.float64] = sequence.random(_BLOCK)
    return points


def _make_tpe(cost_parameter: str | None) -> Sampler:
    from hpo.search.tpe import TpeSampler

    return TpeSampler(cost_parameter)


def _make_gp(_: str | None) -> Sampler:
    from hpo.search.tpe import GpSampler

    return GpSampler()


def _make_cmaes(_: str | None) -> Sampler:
    from hpo.search.cmaes import CmaEsSampler

    return CmaEsSampler()


# Samplers by their name in a study file; each factory takes the cost parameter.
SAMPLERS: dict[str, Callable[[str | None], Sampler]] = {
    "tpe": _make_tpe,
    "random": lambda _: RandomSampler(),
    "random-grid": lambda _: RandomGridSampler(),
    "qmc": lambda _: QuasiRandomSampler(),
    "cmaes": _make_cmaes,
    "gp": _make_gp,
}


def make_sampler(name: str, cost_parameter: str | None = None) -> Sampler:
    """Return the sampler of a study.

    Args:
        name: The name in the study file.
        cost_parameter: The parameter that the cost of a trial grows with, None if there is none.

    Raises:
        StudyFileError: if there is no sampler of this name.
    """
    if name not in SAMPLERS:
        raise StudyFileError(f"study.sampler: {name!r} is not a sampler; allowed are {', '.join(SAMPLERS)}")
    return SAMPLERS[name](cost_parameter)


def propose(sampler: Sampler, space: Space, trials: Sequence[FrozenTrial], seed: int) -> Params:
    """Return the parameters of trial ``len(trials)``, which no former trial has.

    Args:
        sampler: The sampler of the study.
        space: The search space. If it is empty, a trial has no parameters.
        trials: All trials of the study in the order of their numbers, including running and paused ones.
        seed: The seed of the study.

    Raises:
        StudyFileError: if each point of the space has a trial.
    """
    if not space:
        return {}
    check_budget(sampler, space, len(trials) + 1, seed)
    candidates = _candidates(sampler, space, trials, seed)
    first = next(candidates)
    if first not in map(_params, trials):
        return first
    taken = {frozenset(params.items()) for params in map(_params, trials)}
    for candidate in itertools.chain(candidates, _remaining_points(space, first)):
        if frozenset(candidate.items()) not in taken:
            return candidate
    raise StudyFileError(f"space: no new combination in {MAX_DRAWS} draws; search a wider range")


def _candidates(sampler: Sampler, space: Space, trials: Sequence[FrozenTrial], seed: int) -> Iterator[Params]:
    limit = MAX_CANDIDATES if np.isfinite(cardinality(space)) else MAX_DRAWS
    return islice(sampler.propose(space, trials, seed), limit)


def _remaining_points(space: Space, params: Params) -> Iterator[Params]:
    return points_after(space, params) if np.isfinite(cardinality(space)) else iter(())


def check_feasible(config: StudyConfig, space: Space, budget: int) -> None:
    """Check that a study can have as many different trials as its budget.

    Raises:
        StudyFileError: if the space has fewer combinations, or there is no sampler of this name.
    """
    if space:
        check_budget(make_sampler(config.study.sampler), space, budget, config.study.seed)


def check_budget(sampler: Sampler, space: Space, budget: int, seed: int) -> None:
    """Check that a sampler can propose as many different points as a budget.

    Raises:
        StudyFileError: if it cannot.
    """
    if (count := sampler.n_points(space, seed)) < budget:
        raise StudyFileError(
            f"space: only {count:.0f} combinations, but {budget} trials are required; "
            f"use --trials {count:.0f} or less, or search a larger space"
        )
