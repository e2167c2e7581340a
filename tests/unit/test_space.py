"""Search space: its quantile function, its number of points, and their order."""

import math
from collections import Counter

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from hpo.config.study import StudyConfig
from hpo.search.space import build_space, cardinality, from_unit, params_key, point_at, points_after, to_unit, values

ALMOST_ONE = 1 - 2**-53

TABLES = {
    "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
    "regularization": {"low": 0.0, "high": 0.01},
    "hidden_size": {"low": 32, "high": 400},
    "epochs": {"low": 100, "high": 500, "log": True},
    "batch_size": {"choices": [50, 100, 200]},
    "hidden_layers": {"choices": [[200, 100], [50]]},
}


def make_config(space):
    return StudyConfig.model_validate({"study": {"name": "s"}, "space": space})


units = st.floats(0, 1, exclude_max=True)


def sorted_pair(elements):
    return st.tuples(elements, elements).map(sorted)


linear_floats = sorted_pair(st.floats(-1e6, 1e6)).map(lambda ends: FloatDistribution(*ends))
log_floats = sorted_pair(st.floats(1e-12, 1e6)).map(lambda ends: FloatDistribution(*ends, log=True))
linear_ints = sorted_pair(st.integers(-(10**6), 10**6)).map(lambda ends: IntDistribution(*ends))
log_ints = sorted_pair(st.integers(1, 10**6)).map(lambda ends: IntDistribution(*ends, log=True))
choices = st.lists(st.integers(1, 100), min_size=1, max_size=8, unique=True).map(
    lambda values: CategoricalDistribution(sorted(values))
)
ordered = linear_floats | log_floats | linear_ints | log_ints


# Space of a study file


def test_build_space_uses_optunas_distributions():
    assert build_space(make_config(TABLES)) == {
        "learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
        "regularization": FloatDistribution(0.0, 0.01),
        "hidden_size": IntDistribution(32, 400),
        "epochs": IntDistribution(100, 500, log=True),
        "batch_size": CategoricalDistribution([50, 100, 200]),
        "hidden_layers": CategoricalDistribution(["[200, 100]", "[50]"]),
    }


@pytest.mark.parametrize(
    ("low", "high", "distribution"),
    [
        (1, 2, IntDistribution(1, 2)),
        (-10, 10, IntDistribution(-10, 10)),
        (1.0, 2, FloatDistribution(1.0, 2.0)),
        (1, 2.0, FloatDistribution(1.0, 2.0)),
        (-10.0, 10.0, FloatDistribution(-10.0, 10.0)),
    ],
)
def test_build_space_reads_type_off_both_ends(low, high, distribution):
    config = make_config({"x": {"low": low, "high": high}})
    assert build_space(config) == {"x": distribution}


def test_build_space_keeps_named_floats():
    config = make_config({"learning_rate": {"low": 1, "high": 2}, "size": {"low": 1, "high": 2}})
    space = build_space(config, frozenset(["learning_rate"]))
    assert space == {"learning_rate": FloatDistribution(1.0, 2.0), "size": IntDistribution(1, 2)}
    assert isinstance(space["learning_rate"].low, float)


# Quantile function


@given(distribution=ordered | choices, u=units)
def test_value_is_in_distribution(distribution, u):
    value = from_unit(distribution, u)
    if isinstance(distribution, CategoricalDistribution):
        assert value in distribution.choices
    else:
        assert distribution.low <= value <= distribution.high


@given(distribution=ordered | choices, pair=sorted_pair(units))
def test_value_increases_with_unit(distribution, pair):
    assert from_unit(distribution, pair[0]) <= from_unit(distribution, pair[1])


@given(distribution=linear_floats | log_floats)
def test_floats_reach_both_ends(distribution):
    size = max(abs(distribution.low), abs(distribution.high))
    assert from_unit(distribution, 0.0) == pytest.approx(distribution.low, rel=1e-9)
    assert from_unit(distribution, ALMOST_ONE) == pytest.approx(distribution.high, rel=1e-9, abs=1e-12 * size)


@given(distribution=linear_ints | log_ints)
def test_integers_reach_both_ends(distribution):
    assert from_unit(distribution, 0.0) == distribution.low
    assert from_unit(distribution, ALMOST_ONE) == distribution.high


@given(distribution=choices)
def test_choices_reach_both_ends(distribution):
    assert from_unit(distribution, 0.0) == distribution.choices[0]
    assert from_unit(distribution, ALMOST_ONE) == distribution.choices[-1]


@pytest.mark.parametrize(
    "distribution",
    [
        IntDistribution(3, 9),
        IntDistribution(-4, 2),
        IntDistribution(0, 1),
        IntDistribution(5, 5),
        CategoricalDistribution([3, 5, 8]),
    ],
)
def test_integers_and_choices_are_equally_likely(distribution):
    drawn = Counter(from_unit(distribution, (i + 0.5) / 8400) for i in range(8400))
    every = getattr(distribution, "choices", None) or range(distribution.low, distribution.high + 1)
    assert drawn == {value: 8400 / len(every) for value in every}


def test_logarithmic_integers_favor_small_values():
    drawn = Counter(from_unit(IntDistribution(1, 40, log=True), (i + 0.5) / 20_000) for i in range(20_000))
    assert sorted(drawn) == list(range(1, 41))
    assert all(drawn[value] >= drawn[value + 1] for value in range(1, 40))
    assert drawn[2] / drawn[20] == pytest.approx(math.log(2.5 / 1.5) / math.log(20.5 / 19.5), rel=0.02)


@given(distribution=log_floats)
def test_logarithmic_median_is_geometric_mean(distribution):
    median = math.sqrt(distribution.low) * math.sqrt(distribution.high)
    assert from_unit(distribution, 0.5) == pytest.approx(median, rel=1e-9)


@given(distribution=linear_floats)
def test_linear_median_is_mean(distribution):
    assume(distribution.high - distribution.low > 1e-6)
    mean = (distribution.low + distribution.high) / 2
    assert from_unit(distribution, 0.5) == pytest.approx(mean, rel=1e-9, abs=1e-9)


@given(distribution=st.one_of(linear_ints, log_ints, choices), u=units)
def test_unit_of_integer_or_choice_gives_same_value(distribution, u):
    drawn = from_unit(distribution, u)
    assert from_unit(distribution, to_unit(distribution, drawn)) == drawn


@given(distribution=st.one_of(linear_floats, log_floats), u=units)
def test_unit_of_float_is_inverse(distribution, u):
    assume(distribution.high - distribution.low > 1e-6 * max(abs(distribution.low), abs(distribution.high), 1e-6))
    assert to_unit(distribution, from_unit(distribution, u)) == pytest.approx(u, abs=1e-6)


@given(distribution=ordered | choices, u=units)
# Both ends have the same logarithm.
@example(distribution=FloatDistribution(1e-12, 1.0000000000000002e-12, log=True), u=0.0)
def test_unit_is_between_0_and_1(distribution, u):
    assert 0 <= to_unit(distribution, from_unit(distribution, u)) <= 1


# Points of a finite space


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        (IntDistribution(3, 6), [3, 4, 5, 6]),
        (IntDistribution(-1, 1), [-1, 0, 1]),
        (IntDistribution(3, 5, log=True), [3, 4, 5]),
        (IntDistribution(7, 7), [7]),
        (CategoricalDistribution([8, 2, 5, 2]), [2, 5, 8]),
        (CategoricalDistribution(["sqrt", 0.5, "log"]), [0.5, "log", "sqrt"]),
        (FloatDistribution(0.5, 0.5), [0.5]),
        (FloatDistribution(-0.5, -0.5), [-0.5]),
        (FloatDistribution(1e-3, 1e-3, log=True), [1e-3]),
    ],
)
def test_values_are_sorted_and_distinct(distribution, expected):
    assert list(values(distribution)) == expected
    assert cardinality({"x": distribution}) == len(expected)


@pytest.mark.parametrize(
    "distribution", [FloatDistribution(-10, 10), FloatDistribution(1.0, 2.0), FloatDistribution(1e-9, 1e-8, log=True)]
)
def test_float_range_is_infinite(distribution):
    with pytest.raises(TypeError):
        values(distribution)
    assert cardinality({"x": distribution, "n": IntDistribution(0, 10**400)}) == math.inf


FINITE_SPACE = {
    "hidden_size": IntDistribution(-1, 1),
    "batch_size": CategoricalDistribution([40, 20]),
    "learning_rate": FloatDistribution(0.5, 0.5),
    "epochs": IntDistribution(1, 2),
}


@given(units=st.tuples(units, units, units, units))
def test_points_after_yields_each_point_once(units):
    start = {
        name: from_unit(distribution, u) for (name, distribution), u in zip(FINITE_SPACE.items(), units, strict=True)
    }
    points = list(points_after(FINITE_SPACE, start))
    assert cardinality(FINITE_SPACE) == len(points) == len(set(map(params_key, points))) == 12
    assert points[-1] == start
    assert all(list(point) == list(FINITE_SPACE) for point in points)
    assert all(value in values(FINITE_SPACE[name]) for point in points for name, value in point.items())


def test_points_after_changes_last_parameter_first():
    start = {"hidden_size": 1, "batch_size": 40, "learning_rate": 0.5, "epochs": 1}
    first, second, *_ = points_after(FINITE_SPACE, start)
    assert first == start | {"epochs": 2}
    assert second == {"hidden_size": -1, "batch_size": 20, "learning_rate": 0.5, "epochs": 1}


def test_point_at_counts_from_first_point():
    axes = {"x": ("a", "b"), "y": range(3)}
    points = [point_at(axes, index) for index in range(6)]
    assert points == [{"x": x, "y": y} for x in "ab" for y in range(3)]


def test_params_key_ignores_order_and_type():
    assert params_key({"x": 1, "y": "a"}) == params_key({"y": "a", "x": 1.0})
    assert params_key({"x": 1}) != params_key({"x": 2})
