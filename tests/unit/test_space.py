"""The space: its values, by units and one by one, and how many there are."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from hpo.config.study import StudyConfig
from hpo.search.space import at, combinations, distributions, points_after, size, unit, value

ALMOST_ONE = 1 - 2**-53

SPACE = {
    "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
    "regularization": {"low": 0.0, "high": 0.01},
    "hidden_size": {"low": 32, "high": 400},
    "epochs": {"low": 100, "high": 500, "log": True},
    "batch_size": {"choices": [50, 100, 200]},
    "momentum": {"choices": [0.0, 0.9]},
}
FIXED = {"learning_rate": 0.1, "regularization": 0.0, "hidden_size": 4, "epochs": 9}


def study(space):
    train = {name: value for name, value in FIXED.items() if name not in space}
    return StudyConfig.model_validate(
        {"study": {"name": "s"}, "data": {"dataset": "digits"}, "train": train, "space": space}
    )


# The quantile function

units = st.floats(0, 1, exclude_max=True)


def sorted_pair(values):
    return st.tuples(values, values).map(sorted)


linear_floats = sorted_pair(st.floats(-1e6, 1e6)).map(lambda ends: FloatDistribution(*ends))
log_floats = sorted_pair(st.floats(1e-12, 1e6)).map(lambda ends: FloatDistribution(*ends, log=True))
linear_ints = sorted_pair(st.integers(0, 10**6)).map(lambda ends: IntDistribution(*ends))
log_ints = sorted_pair(st.integers(1, 10**6)).map(lambda ends: IntDistribution(*ends, log=True))
choices = st.lists(st.integers(1, 100), min_size=1, max_size=8, unique=True).map(
    lambda values: CategoricalDistribution(sorted(values))
)
ordered = linear_floats | log_floats | linear_ints | log_ints


@given(distribution=ordered | choices, u=units)
def test_a_value_lies_within_its_distribution(distribution, u):
    value = at(distribution, u)
    if isinstance(distribution, CategoricalDistribution):
        assert value in distribution.choices
    else:
        assert distribution.low <= value <= distribution.high


@given(distribution=ordered | choices, pair=sorted_pair(units))
def test_a_larger_unit_gives_no_smaller_value(distribution, pair):
    assert at(distribution, pair[0]) <= at(distribution, pair[1])


@given(distribution=linear_floats | log_floats)
def test_floats_reach_both_ends(distribution):
    size = max(abs(distribution.low), abs(distribution.high))
    assert at(distribution, 0.0) == pytest.approx(distribution.low, rel=1e-9)
    assert at(distribution, ALMOST_ONE) == pytest.approx(distribution.high, rel=1e-9, abs=1e-12 * size)


@given(distribution=linear_ints | log_ints)
def test_integers_reach_both_ends(distribution):
    assert at(distribution, 0.0) == distribution.low
    assert at(distribution, ALMOST_ONE) == distribution.high


@given(distribution=choices)
def test_choices_reach_both_ends(distribution):
    assert at(distribution, 0.0) == distribution.choices[0]
    assert at(distribution, ALMOST_ONE) == distribution.choices[-1]


@pytest.mark.parametrize(
    "distribution",
    [IntDistribution(3, 9), IntDistribution(0, 1), IntDistribution(5, 5), CategoricalDistribution([3, 5, 8])],
)
def test_integers_and_choices_are_equally_likely(distribution):
    drawn = Counter(at(distribution, (i + 0.5) / 8400) for i in range(8400))
    values = getattr(distribution, "choices", None) or range(distribution.low, distribution.high + 1)
    assert drawn == {value: 8400 / len(values) for value in values}


def test_integers_on_a_logarithmic_scale_are_all_reachable_the_smaller_ones_more_often():
    drawn = Counter(at(IntDistribution(1, 40, log=True), (i + 0.5) / 20_000) for i in range(20_000))
    assert sorted(drawn) == list(range(1, 41))
    assert all(drawn[value] >= drawn[value + 1] for value in range(1, 40))
    assert drawn[2] / drawn[20] == pytest.approx(math.log(2.5 / 1.5) / math.log(20.5 / 19.5), rel=0.02)


@given(distribution=log_floats)
def test_the_median_on_a_logarithmic_scale_is_the_geometric_mean(distribution):
    assert at(distribution, 0.5) == pytest.approx(math.sqrt(distribution.low) * math.sqrt(distribution.high), rel=1e-9)


@given(distribution=linear_floats)
def test_the_median_on_a_linear_scale_is_the_mean(distribution):
    assume(distribution.high - distribution.low > 1e-6)
    assert at(distribution, 0.5) == pytest.approx((distribution.low + distribution.high) / 2, rel=1e-9, abs=1e-9)


# And back


@given(distribution=st.one_of(linear_ints, log_ints, choices), u=units)
def test_integers_and_choices_are_found_again(distribution, u):
    drawn = at(distribution, u)
    assert at(distribution, unit(distribution, drawn)) == drawn


@given(distribution=st.one_of(linear_floats, log_floats), u=units)
def test_floats_are_found_again(distribution, u):
    assume(distribution.high - distribution.low > 1e-6 * max(abs(distribution.low), abs(distribution.high), 1e-6))
    assert unit(distribution, at(distribution, u)) == pytest.approx(u, abs=1e-6)


@given(distribution=ordered | choices, u=units)
def test_units_are_no_less_than_0_and_no_more_than_1(distribution, u):
    assert 0 <= unit(distribution, at(distribution, u)) <= 1


# One value after the other


@pytest.mark.parametrize(
    ("distribution", "values"),
    [
        (IntDistribution(3, 6), [3, 4, 5, 6]),
        (IntDistribution(3, 5, log=True), [3, 4, 5]),
        (IntDistribution(7, 7), [7]),
        (CategoricalDistribution([8, 2, 5, 2]), [2, 5, 8]),
        (FloatDistribution(0.5, 0.5), [0.5]),
        (FloatDistribution(0.0, 5e-324), [0.0, 5e-324]),
        (FloatDistribution(-0.0, 5e-324), [0.0, 5e-324]),
        (FloatDistribution(1.0, np.nextafter(np.nextafter(1, 2), 2).item(), log=True),
         [1.0, 1.0000000000000002, 1.0000000000000004]),
    ],
)  # fmt: skip
def test_all_values_of_a_distribution(distribution, values):
    assert [value(distribution, index) for index in range(size(distribution))] == values


def test_a_range_of_floats_has_as_many_values_as_there_are_floats():
    assert size(FloatDistribution(1.0, 2.0)) == 2**52 + 1


narrow = {
    "hidden_size": IntDistribution(3, 5),
    "batch_size": CategoricalDistribution([40, 20]),
    "learning_rate": FloatDistribution(0.5, np.nextafter(0.5, 1).item()),
}


@given(units=st.tuples(units, units, units))
def test_the_odometer_shows_every_other_point_once(units):
    start = {name: at(distribution, u) for (name, distribution), u in zip(narrow.items(), units, strict=True)}
    others = [tuple(point.items()) for point in points_after(narrow, start)]
    assert combinations(narrow) == 12
    assert len(others) == 11
    assert len({*others, tuple(start.items())}) == 12
    assert all(narrow[name]._contains(narrow[name].to_internal_repr(v)) for point in others for name, v in point)


# The space


def test_the_space_in_optunas_terms():
    assert distributions(study(SPACE)) == {
        "learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
        "regularization": FloatDistribution(0.0, 0.01),
        "hidden_size": IntDistribution(32, 400),
        "epochs": IntDistribution(100, 500, log=True),
        "batch_size": CategoricalDistribution([50, 100, 200]),
        "momentum": CategoricalDistribution([0.0, 0.9]),
    }


def test_whole_ends_of_a_float_are_a_float_range():
    spec = study({"learning_rate": {"low": 1, "high": 2}})
    assert distributions(spec) == {"learning_rate": FloatDistribution(1.0, 2.0)}
