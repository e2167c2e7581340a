"""Search space of a study, as Optuna's distributions.

A sampler sees each distribution as an interval of units from 0 to 1, in which the values are uniform. A space without a
range of floats is also a finite list of points.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from hpo.config.study import MODEL, Parameter, Range, StudyConfig

Space = Mapping[str, BaseDistribution]
Params = Mapping[str, Any]
# Values of each parameter of a finite space.
Axes = Mapping[str, Sequence[Parameter]]


class Branch(NamedTuple):
    """Search of one model of a study.

    Attributes:
        space: The parameters of the model. Their names begin with the name of the model.
        max_steps: The steps of the longest trial of the model.
        cost_parameter: The parameter that the cost of a trial grows with, None without one.
    """

    space: Space
    max_steps: int
    cost_parameter: str | None


class ConditionalSpace(dict[str, BaseDistribution]):
    """Space of a study that compares models. A trial has the parameter ``model``, and the parameters of its model.

    Args:
        branches: The branch of each model by the model's name.
    """

    def __init__(self, branches: Mapping[str, Branch]) -> None:
        super().__init__({MODEL: CategoricalDistribution(list(branches))})
        for branch in branches.values():
            self.update(branch.space)
        self.branches = branches

    def __reduce__(self) -> tuple[type["ConditionalSpace"], tuple[Mapping[str, Branch]]]:
        return ConditionalSpace, (self.branches,)


def needed(space: Space, params: Params) -> Space:
    """Return the part of a space that a trial with these parameters needs."""
    if not isinstance(space, ConditionalSpace):
        return space
    # Another program may have a list as the model.
    branch = next((branch for name, branch in space.branches.items() if name == params.get(MODEL)), None)
    return {MODEL: space[MODEL], **(branch.space if branch is not None else {})}


def build_space(config: StudyConfig, float_names: frozenset[str] = frozenset()) -> Space:
    """Return the space of a study file.

    Args:
        config: The study file.
        float_names: Parameters that are floats even if both ends of their range are whole numbers.
    """
    return {name: _distribution(searched, name in float_names) for name, searched in config.space.items()}


def _distribution(searched: Any, is_float: bool) -> BaseDistribution:
    if not isinstance(searched, Range):
        return CategoricalDistribution(list(searched.stored))
    low, high = searched.ends
    if isinstance(low, int) and isinstance(high, int) and not is_float:
        return IntDistribution(low, high, log=searched.log)
    return FloatDistribution(float(low), float(high), log=searched.log)


def params_key(params: Params) -> frozenset[tuple[str, Any]]:
    """Return a hashable key that is equal for equal parameters."""
    try:
        return frozenset(params.items())
    except TypeError:
        # Another program may have lists as parameters.
        return frozenset((name, repr(value)) for name, value in params.items())


def misfit(space: Space, params: Params) -> str | None:
    """Return why a trial of another program cannot have these parameters, None if it can."""
    own = needed(space, params)
    for name, value in params.items():
        if name not in own:
            if name in space and MODEL not in params:
                return f"{name} needs the parameter {MODEL}"
            model = f" for the model {params[MODEL]}" if name in space else ""
            return f"the study does not search {name}{model}"
        if not _contains(space[name], value):
            return f"{name} = {value!r} is not in the search space"
    return None


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    kind = int if isinstance(distribution, IntDistribution) else int | float
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return is_number and distribution.low <= value <= distribution.high


def from_unit(distribution: BaseDistribution, u: float) -> Parameter:
    """Return the value at ``u`` in [0, 1), the quantile function of the distribution."""
    match distribution:
        case FloatDistribution(log=True):
            low, high = math.log(distribution.low), math.log(distribution.high)
            value = math.exp(low + u * (high - low))
            return min(max(value, distribution.low), distribution.high)
        case FloatDistribution():
            return distribution.low + u * (distribution.high - distribution.low)
        case IntDistribution(log=True):
            # Each integer has half a unit on both sides, as in Optuna's transformation.
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
    """Return the unit of a value.

    The unit of an integer or of a choice is the middle of its share.
    """
    match distribution:
        case FloatDistribution() if distribution.single():
            return 0.5
        case FloatDistribution(log=True):
            low, high = math.log(distribution.low), math.log(distribution.high)
            # Neighbouring floats can have the same logarithm.
            return (math.log(value) - low) / (high - low) if low < high else 0.5
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


def cardinality(space: Space) -> float:
    """Return the number of points, infinity with a range of floats."""
    sizes = list(map(n_values, space.values()))
    # A product of infinity and a large integer overflows.
    return math.inf if math.inf in sizes else math.prod(sizes)


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


def values(distribution: BaseDistribution) -> Sequence[Parameter]:
    """Return the values of a finite distribution in ascending order."""
    match distribution:
        case FloatDistribution() if distribution.single():
            return (distribution.low,)
        case IntDistribution():
            return range(distribution.low, distribution.high + 1)
        case CategoricalDistribution():
            return sort_values(distribution.choices)
    raise TypeError(distribution)


def sort_values(unsorted: Iterable[Any]) -> tuple[Parameter, ...]:
    """Return the distinct values in ascending order, texts after numbers."""
    return tuple(sorted(set(unsorted), key=lambda value: (isinstance(value, str), value)))


def points_after(space: Space, params: Params) -> Iterator[dict[str, Any]]:
    """Yield each point of a finite space, from a point's successor on."""
    axes = {name: values(distribution) for name, distribution in space.items()}
    start = 0
    for name, axis in axes.items():
        start = start * len(axis) + axis.index(params[name])
    total = math.prod(map(len, axes.values()))
    for offset in range(1, total + 1):
        yield point_at(axes, (start + offset) % total)


def point_at(axes: Axes, index: int) -> dict[str, Any]:
    """Return the point of this index, from 0, in a product of axes."""
    point = {}
    for name in reversed(list(axes)):
        index, position = divmod(index, len(axes[name]))
        point[name] = axes[name][position]
    return {name: point[name] for name in axes}
