"""Search space of a study in Optuna's distributions, and its mapping to the unit cube."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from hpo.config.study import Parameter, Range, StudyConfig

Space = Mapping[str, BaseDistribution]
Params = Mapping[str, Any]


def build_space(config: StudyConfig, float_names: frozenset[str] = frozenset()) -> dict[str, BaseDistribution]:
    """Return the search space of a study file.

    Args:
        config: The study file.
        float_names: Parameters that are floats even if both ends of their range are integers.
    """
    return {name: _distribution(searched, name in float_names) for name, searched in config.space.items()}


def _distribution(searched: Any, is_float: bool) -> BaseDistribution:
    if not isinstance(searched, Range):
        return CategoricalDistribution(list(searched.stored))
    if is_float or not (isinstance(searched.low, int) and isinstance(searched.high, int)):
        return FloatDistribution(float(searched.low), float(searched.high), log=searched.log)
    return IntDistribution(searched.low, searched.high, log=searched.log)


def from_unit(distribution: BaseDistribution, u: float) -> Parameter:
    """Return the value at ``u`` in [0, 1): the quantile function of the uniform choice."""
    match distribution:
        case FloatDistribution(log=True):
            low, high = math.log(distribution.low), math.log(distribution.high)
            value = math.exp(low + u * (high - low))
            return min(max(value, distribution.low), distribution.high)
        case FloatDistribution():
            return distribution.low + u * (distribution.high - distribution.low)
        case IntDistribution(log=True):
            # Each integer owns half a unit on both sides, as in Optuna's own transformation.
            low, high = math.log(distribution.low - 0.5), math.log(distribution.high + 0.5)
            value = round(math.exp(low + u * (high - low)))
            return min(max(value, distribution.low), distribution.high)
        case IntDistribution():
            return distribution.low + int(u * (distribution.high - distribution.low + 1))
        case CategoricalDistribution():
            choice = distribution.choices[int(u * len(distribution.choices))]
            assert isinstance(choice, int | float | str)
            return choice
    raise TypeError(distribution)


def to_unit(distribution: BaseDistribution, value: Any) -> float:
    """Return the place of a value in [0, 1], the middle of its share for integers and choices."""
    match distribution:
        case FloatDistribution() if distribution.single():
            return 0.5
        case FloatDistribution(log=True):
            low, high = math.log(distribution.low), math.log(distribution.high)
            return (math.log(value) - low) / (high - low)
        case FloatDistribution():
            return float(value - distribution.low) / (distribution.high - distribution.low)
        case IntDistribution(log=True):
            low, high = math.log(distribution.low - 0.5), math.log(distribution.high + 0.5)
            return (math.log(value) - low) / (high - low)
        case IntDistribution():
            return float(value - distribution.low + 0.5) / (distribution.high - distribution.low + 1)
        case CategoricalDistribution():
            return (distribution.choices.index(value) + 0.5) / len(distribution.choices)
    raise TypeError(distribution)


def params_from_unit(space: Space, point: Sequence[float]) -> dict[str, Any]:
    """Return the parameters at a point of the unit cube."""
    return {
        name: from_unit(distribution, float(u)) for (name, distribution), u in zip(space.items(), point, strict=True)
    }


def n_values(distribution: BaseDistribution) -> float:
    """Return the number of values, infinity for a range of floats."""
    match distribution:
        case FloatDistribution():
            return 1 if distribution.single() else math.inf
        case IntDistribution():
            return distribution.high - distribution.low + 1
        case CategoricalDistribution():
            return len(set(distribution.choices))
    raise TypeError(distribution)


def cardinality(space: Space) -> float:
    """Return the number of points, infinity if a range of floats is searched."""
    return math.prod(map(n_values, space.values()))


def values_of(distribution: BaseDistribution) -> Sequence[Parameter]:
    """Return all values of a finite distribution in ascending order."""
    match distribution:
        case FloatDistribution() if distribution.single():
            return [distribution.low]
        case IntDistribution():
            return range(distribution.low, distribution.high + 1)
        case CategoricalDistribution():
            return sorted(set(distribution.choices))
    raise TypeError(distribution)


def points_after(space: Space, params: Params) -> Iterator[dict[str, Any]]:
    """Yield each point of a finite space once: first those after a point, then the others."""

    def points() -> Iterator[dict[str, Any]]:
        for point in itertools.product(*map(values_of, space.values())):
            yield dict(zip(space, point, strict=True))

    later = itertools.dropwhile(lambda point: point != params, points())
    yield from itertools.islice(later, 1, None)
    yield from itertools.takewhile(lambda point: point != params, points())
    yield dict(params)
