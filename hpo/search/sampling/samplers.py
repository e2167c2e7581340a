"""Samplers: the parameters of a trial as a function of its number and of the trials before it.

A proposal needs no database. Samplers that do not learn therefore propose the same trials for any number of workers. No
two trials of a study get the same parameters.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, islice
from operator import attrgetter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from hpo.config.study import Parameter, StudyConfig
from hpo.errors import StudyFileError
from hpo.search.pruning.pruners import PRUNERS
from hpo.search.registry import find_factory
from hpo.search.sampling.tpe import GaussianProcess, TreeParzenEstimator, running_trial, with_last_value_as_final
from hpo.search.space import (
    Params,
    Space,
    cardinality,
    from_unit,
    misfit,
    n_values,
    params_key,
    point_at,
    points_after,
    sort_values,
    values,
)

_GOLDEN_RATIO = 0.6180339887498949
# Candidates that may have the parameters of a former trial, before a finite space is searched exhaustively.
MAX_CANDIDATES = 100
# Candidates in an infinite space. Only a range of a few neighboring floats can need so many.
MAX_INFINITE_CANDIDATES = 10_000
# Candidates of a learner before the quasi-random points, because a learner may repeat its one best point.
LEARNED_CANDIDATES = 3
# Values of a parameter in the random grid.
GRID_VALUES = 20
# Draws of these values. A range of a few neighboring floats has fewer values.
_MAX_GRID_DRAWS = 10_000
# Points that are computed at a time.
_BLOCK = 256

_params = attrgetter("params")


class Sampler(Protocol):
    """Source of parameters for new trials: a function of its arguments, in each process.

    Attributes:
        learns: Whether a proposal depends on the results of the trials.
    """

    learns: bool = False

    def propose(self, space: Space, trials: Sequence[FrozenTrial], seed: int) -> Iterator[Params]:
        """Yield candidates for trial ``len(trials)``, at least one, the best first.

        Args:
            space: The search space, not empty.
            trials: All trials of the study in the order of their numbers, including running and paused ones. Greater
                values are better. The sampler does not change them.
            seed: The seed of the study.
        """
        ...

    def n_points(self, space: Space, seed: int) -> float:
        """Return the number of different points that the sampler can propose."""
        return cardinality(space)


class Learner(Protocol):
    """Model of the finished trials that proposes points, as a function of its arguments."""

    def propose(self, space: Space, trials: Sequence[FrozenTrial], seed: int) -> Iterator[Params]:
        """Yield candidates for trial ``len(trials)``, none if the trials do not suffice.

        Args:
            space: The search space, not empty.
            trials: All trials of the study in the order of their numbers. An unfinished or pruned trial with a report
                is shown as complete with its last value.
            seed: The seed of the study.
        """
        ...


class RandomSampler(Sampler):
    """Independent uniform draws with one random number generator per trial number."""

    def propose(self, space: Space, trials: Sequence[FrozenTrial], seed: int) -> Iterator[Params]:
        """Yield random points without end."""
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(len(trials),)))
        while True:
            yield _params_at(space, rng.random(len(space)))


class QuasiRandomSampler(Sampler):
    """Scrambled Sobol sequence, of which trial ``n`` gets point ``n``."""

    def propose(self, space: Space, trials: Sequence[FrozenTrial], seed: int) -> Iterator[Params]:
        """Yield the points from the trial's number on, without end."""
        for number in itertools.count(len(trials)):
            block, index = divmod(number, _BLOCK)
            yield _params_at(space, _sobol_block(len(space), seed, block)[index])


class LearningSampler(Sampler):
    """Sampler that follows a learner, and quasi-random points where the learner has no new candidate.

    Args:
        learner: The learner.
    """

    learns = True

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._quasi_random = QuasiRandomSampler()

    def propose(self, space: Space, trials: Sequence[FrozenTrial], seed: int) -> Iterator[Params]:
        """Yield a few candidates of the learner, then quasi-random points without end."""
        learned = self._learner.propose(space, with_last_value_as_final(trials), seed)
        return chain(islice(learned, LEARNED_CANDIDATES), self._quasi_random.propose(space, trials, seed))


class RandomGridSampler(Sampler):
    """Draws without repetition from a grid of at most 20 random values per parameter."""

    def propose(self, space: Space, trials: Sequence[FrozenTrial], seed: int) -> Iterator[Params]:
        """Yield each point of the grid once, from the trial's draw on.

        The earlier draws follow after the last draw.
        """
        grid, number = _grid(tuple(space.items()), seed), len(trials)
        return map(grid.point, chain(range(number, grid.size), range(min(number, grid.size))))

    def n_points(self, space: Space, seed: int) -> float:
        """Return the number of points of the grid."""
        return _grid(tuple(space.items()), seed).size


class RandomGrid:
    """Product of random values of each parameter, with its points in random order.

    Args:
        space: The names and distributions of the parameters.
        seed: The seed of the study.

    Attributes:
        axes: The values of each parameter in ascending order.
        size: The number of points.
    """

    def __init__(self, space: tuple[tuple[str, BaseDistribution], ...], seed: int) -> None:
        self.axes = {name: _grid_axis(distribution, seed, axis) for axis, (name, distribution) in enumerate(space)}
        self.size = math.prod(map(len, self.axes.values()))
        self._rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(len(space), GRID_VALUES)))
        self._drawn: set[int] = set()
        self._order: list[int] = []

    def point(self, number: int) -> dict[str, Any]:
        """Return the point of draw ``number``, which is less than the size."""
        while len(self._order) <= number:
            self._draw_block()
        return point_at(self.axes, self._order[number])

    def _draw_block(self) -> None:
        """Draw a block of points, without points that were drawn before."""
        sizes = list(map(len, self.axes.values()))
        for positions in self._rng.integers(sizes, size=(_BLOCK, len(sizes))).tolist():
            # The index of a point can exceed 64 bits.
            index = 0
            for size, position in zip(sizes, positions, strict=True):
                index = index * size + position
            if index not in self._drawn:
                self._drawn.add(index)
                self._order.append(index)


# The cache keeps the draws of a study.
_grid = lru_cache(maxsize=8)(RandomGrid)


def _grid_axis(distribution: BaseDistribution, seed: int, axis: int) -> tuple[Parameter, ...]:
    """Return at most 20 values of a parameter, drawn at random if it has more."""
    if n_values(distribution) <= GRID_VALUES:
        return tuple(values(distribution))
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(axis, GRID_VALUES)))
    drawn: set[Parameter] = set()
    for u in rng.random(_MAX_GRID_DRAWS):
        drawn.add(from_unit(distribution, float(u)))
        if len(drawn) == GRID_VALUES:
            break
    return sort_values(drawn)


def _params_at(space: Space, point: NDArray[np.float64]) -> dict[str, Any]:
    """Return the parameters at a point of the unit cube."""
    return {
        name: from_unit(distribution, float(u)) for (name, distribution), u in zip(space.items(), point, strict=True)
    }


@lru_cache(maxsize=16)
def _sobol_block(dimensions: int, seed: int, block: int) -> NDArray[np.float64]:
    # The import is slow, and only a worker needs it.
    from scipy.stats import qmc

    sequence = qmc.Sobol(dimensions, scramble=True, rng=seed)
    # SciPy cannot fast-forward by 0.
    if block:
        sequence.fast_forward(block * _BLOCK)
    points: NDArray[np.float64] = sequence.random(_BLOCK)
    return points


def _make_cmaes(_: str | None) -> Sampler:
    # Only studies with this sampler need the package cmaes.
    from hpo.search.sampling.cmaes import CmaEs

    return LearningSampler(CmaEs())


# Samplers by their name in a study file. A factory takes the name of the cost parameter.
SAMPLERS: dict[str, Callable[[str | None], Sampler]] = {
    "tpe": lambda cost_parameter: LearningSampler(TreeParzenEstimator(cost_parameter)),
    "random": lambda _: RandomSampler(),
    "random-grid": lambda _: RandomGridSampler(),
    "qmc": lambda _: QuasiRandomSampler(),
    "cmaes": _make_cmaes,
    "gp": lambda _: LearningSampler(GaussianProcess()),
}


def make_sampler(name: str, cost_parameter: str | None = None) -> Sampler:
    """Return a sampler.

    Args:
        name: The name in the study file.
        cost_parameter: The parameter that the cost of a trial grows with, None if there is none.

    Raises:
        StudyFileError: if no sampler has this name.
    """
    return find_factory(SAMPLERS, "study.sampler", name)(cost_parameter)


def propose(
    sampler: Sampler, space: Space, trials: Sequence[FrozenTrial], seed: int, taken: Iterable[Params] = ()
) -> Params:
    """Return the parameters of trial ``len(trials)``, which no former trial has.

    Args:
        sampler: The sampler of the study.
        space: The search space. If it is empty, a trial has no parameters.
        trials: All trials of the study in the order of their numbers, including running and paused ones.
        seed: The seed of the study.
        taken: Parameters of later trials, which the trial does not get either.

    Raises:
        StudyFileError: if the sampler has no new point.
    """
    if not space:
        return {}
    check_budget(sampler, space, len(trials) + 1, seed)
    trials = _comparable(space, trials)
    is_finite = math.isfinite(cardinality(space))
    limit = MAX_CANDIDATES if is_finite else MAX_INFINITE_CANDIDATES
    candidates = islice(sampler.propose(space, trials, seed), limit)
    first = next(candidates)
    others_params = [*map(_params, trials), *taken]
    if first not in others_params:
        return first
    tried = set(map(params_key, others_params))
    others = chain(candidates, points_after(space, first)) if is_finite else candidates
    for params in others:
        if params_key(params) not in tried:
            return params
    raise StudyFileError(f"space: no new combination in {limit} draws; search a wider range")


def _comparable(space: Space, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials, with a stand-in for each trial that lacks the study's parameters or its value.

    Trials of other programs may have other parameters, and a value that is not finite.
    """
    comparable = []
    known: Mapping[str, BaseDistribution] | None = None
    for trial in trials:
        # Trials share their distribution objects, so two trials compare faster than a trial and the space.
        has_params = trial.distributions == known
        if not has_params and trial.distributions == space:
            known, has_params = trial.distributions, True
        lacks_value = trial.state is TrialState.COMPLETE and trial.value is None
        is_comparable = (has_params or _fits(space, trial.params)) and not lacks_value
        comparable.append(trial if is_comparable else _stand_in(space, trial))
    return comparable


def _fits(space: Space, params: Params) -> bool:
    return params.keys() == space.keys() and misfit(space, params) is None


def _stand_in(space: Space, trial: FrozenTrial) -> FrozenTrial:
    """Return a trial without a value, with parameters that depend on the number, in the place of a trial."""
    state = TrialState.FAIL if trial.state.is_finished() else trial.state
    u = (trial.number + 1) * _GOLDEN_RATIO % 1
    params = {name: from_unit(distribution, u) for name, distribution in space.items()}
    stand_in = running_trial(trial.number, params, space)
    stand_in.state = state
    return stand_in


def check_feasible(config: StudyConfig, space: Space, budget: int) -> None:
    """Check the sampler, the pruner and the budget of a study.

    Raises:
        StudyFileError: if the sampler or the pruner does not exist, or the space has fewer points than the budget.
    """
    find_factory(PRUNERS, f"{config.path}: study.pruner", config.study.pruner)
    sampler = find_factory(SAMPLERS, f"{config.path}: study.sampler", config.study.sampler)(None)
    if space:
        check_budget(sampler, space, budget, config.study.seed)


def check_budget(sampler: Sampler, space: Space, budget: int, seed: int) -> None:
    """Check that a sampler can propose a different point for each trial.

    Raises:
        StudyFileError: if it cannot.
    """
    check_count(sampler.n_points(space, seed), budget)


def check_count(count: float, budget: int) -> None:
    """Check that each trial can have another point.

    Args:
        count: The number of points.
        budget: The number of trials.

    Raises:
        StudyFileError: if there are fewer points than trials.
    """
    if count < budget:
        raise StudyFileError(
            f"space: only {count:.0f} combinations, but {budget} trials are required; "
            f"use --trials {count:.0f} or less, or search a larger space"
        )
