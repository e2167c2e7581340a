"""The random grid: its axes, and how trials are drawn from their product."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from hpo.search.grid import axes, grid_point, grid_size, permuted

REPORT = {
    "learning_rate": FloatDistribution(1e-7, 1e-2, log=True),
    "regularization": FloatDistribution(1e-7, 1e-2, log=True),
    "hidden_size": IntDistribution(32, 400),
    "epochs": IntDistribution(100, 500),
}
seeds = st.integers(0, 2**32 - 1)


@given(seed=seeds)
def test_the_reports_grid(seed):
    values = axes(REPORT, seed)
    assert grid_size(REPORT, seed) == 160_000
    for distribution, axis in zip(REPORT.values(), values, strict=True):
        assert len(set(axis)) == len(axis) == 20
        assert all(distribution.low <= value <= distribution.high for value in axis)
        assert all(type(value) is type(distribution.low) for value in axis)
    assert len(set(values)) == 4


def test_axes_are_drawn_evenly_on_their_own_scale():
    drawn = [value for seed in range(100) for value in axes(REPORT, seed)[0]]
    decades = Counter(math.floor(math.log10(value)) for value in drawn)
    assert sorted(decades) == [-7, -6, -5, -4, -3]
    assert min(decades.values()) > 320  # of 400
    sizes = [value for seed in range(100) for value in axes(REPORT, seed)[2]]
    assert sum(sizes) / len(sizes) == pytest.approx(216, abs=8)


def test_few_values_are_an_axis_as_they_are_and_many_are_drawn_from():
    space = {
        "hidden_size": IntDistribution(1, 20),
        "epochs": IntDistribution(1, 21, log=True),
        "batch_size": CategoricalDistribution([50, 20, 50]),
        "momentum": CategoricalDistribution([index / 100 for index in range(40)]),
        "learning_rate": FloatDistribution(0.5, 0.5),
    }
    sizes, epochs, batches, momenta, rates = axes(space, 3)
    assert sizes == tuple(range(1, 21))
    assert len(set(epochs)) == 20
    assert set(epochs) < set(range(1, 22))
    assert batches == (20, 50)
    assert len(set(momenta)) == 20
    assert set(momenta) < set(space["momentum"].choices)
    assert rates == (0.5,)


@given(seed=seeds, start=st.integers(0, 159_000))
def test_all_points_are_distinct_and_on_the_grid(seed, start):
    points = [grid_point(REPORT, seed, number) for number in range(start, start + 50)]
    assert len({tuple(point.items()) for point in points}) == 50
    for name, axis in zip(REPORT, axes(REPORT, seed), strict=True):
        assert {point[name] for point in points} <= set(axis)


@given(total=st.integers(1, 500), seed=seeds)
def test_every_index_is_sent_to_another(total, seed):
    assert sorted(permuted(index, total, seed) for index in range(total)) == list(range(total))


def test_every_value_of_an_axis_is_drawn_equally_often():
    points = [grid_point(REPORT, 0, number) for number in range(4000)]
    for name in REPORT:
        counts = Counter(point[name] for point in points).values()
        assert len(counts) == 20
        assert sum((count - 200) ** 2 / 200 for count in counts) < 50  # chi-squared, 19 degrees of freedom


def test_a_product_that_fits_no_memory():
    space = {str(axis): FloatDistribution(0.0, 1.0) for axis in range(30)}
    points = [grid_point(space, 0, number) for number in (0, 1, 20**30 - 1)]
    assert len({tuple(point.values()) for point in points}) == 3


def test_another_seed_draws_another_grid_and_another_order():
    assert not set(axes(REPORT, 0)[0]) & set(axes(REPORT, 1)[0])
    assert [permuted(index, 1000, 0) for index in range(5)] != [permuted(index, 1000, 1) for index in range(5)]
