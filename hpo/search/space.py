"""The space of a study in Optuna's terms, and what the samplers need to know of each of its distributions.

All are looked at in two ways: as an interval of units from 0 to 1, on which they are uniform, and as a finite list of
values, since floats are no more than that.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from hpo.config.study import Parameter, Range, StudyConfig, is_whole

Space = Mapping[str, BaseDistribution]


def distributions(spec: StudyConfig) -> dict[str, BaseDistribution]:
    """The space of a study in Optuna's terms."""
    space: dict[str, BaseDistribution] = {}
    for name, searched in spec.space.items():
        if not isinstance(searched, Range):
            space[name] = CategoricalDistribution(list(searched.stored))
        elif is_whole(name):
            space[name] = IntDistribution(int(searched.low), int(searched.high), log=searched.log)
        else:
            space[name] = FloatDistribution(float(searched.low), float(searched.high), log=searched.log)
    return space


def at(distribution: BaseDistribution, u: float) -> Parameter:
    """The value of a distribution at ``u`` in [0, 1): its quantile function."""
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


def unit(distribution: BaseDistribution, value: Any) -> float:
    """Where ``at`` gives this value: of integers and choices the middle of its share."""
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


def size(distribution: BaseDistribution) -> int:
    """How many values it has."""
    match distribution:
        case FloatDistribution():
            return _ordinal(distribution.high) - _ordinal(distribution.low) + 1
        case IntDistribution():
            return distribution.high - distribution.low + 1
        case CategoricalDistribution():
            return len(set(distribution.choices))
    raise TypeError(distribution)


def combinations(space: Space) -> int:
    """How many points it has."""
    return math.prod(map(size, space.values()))


def points_after(space: Space, params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every other point, as an odometer shows them that stands at this one."""
    total, index = combinations(space), 0
    for name, distribution in space.items():
        index = index * size(distribution) + _index(distribution, params[name])
    for offset in range(1, total):
        yield _point(space, (index + offset) % total)


def value(distribution: BaseDistribution, index: int) -> Parameter:
    """One of its values, in ascending order."""
    match distribution:
        case FloatDistribution():
            found: float = struct.unpack("<d", struct.pack("<q", _ordinal(distribution.low) + index))[0]
            return found
        case IntDistribution():
            return distribution.low + index
    choice: Parameter = _sorted_choices(distribution)[index]
    return choice


def _point(space: Space, index: int) -> dict[str, Any]:
    point = {}
    for name, distribution in reversed(list(space.items())):
        index, digit = divmod(index, size(distribution))
        point[name] = value(distribution, digit)
    return {name: point[name] for name in space}


def _index(distribution: BaseDistribution, value: Any) -> int:
    match distribution:
        case FloatDistribution():
            return _ordinal(value) - _ordinal(distribution.low)
        case IntDistribution():
            return int(value) - distribution.low
    return _sorted_choices(distribution).index(value)


def _sorted_choices(distribution: BaseDistribution) -> list[Any]:
    assert isinstance(distribution, CategoricalDistribution)
    return sorted(set(distribution.choices))


def _ordinal(value: float) -> int:
    """The rank of a float among all that are not negative; no hyperparameter can be."""
    ordinal: int = struct.unpack("<q", struct.pack("<d", abs(value)))[0]
    return ordinal
