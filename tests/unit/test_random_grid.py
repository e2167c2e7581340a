"""Random grid: its axes and its points."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from search_trials import REPORT_SPACE, make_failed

from hpo.search.sampling.samplers import RandomGrid, RandomGridSampler

seeds = st.integers(0, 2**32 - 1)


def make_grid(space, seed=0):
    return RandomGrid(tuple(space.items()), seed)


@given(seed=seeds)
def test_report_grid_has_160000_points(seed):
    grid = make_grid(REPORT_SPACE, seed)
    assert grid.size == RandomGridSampler().n_points(REPORT_SPACE, seed) == 160_000
    for distribution, axis in zip(REPORT_SPACE.values(), grid.axes.values(), strict=True):
        assert len(set(axis)) == len(axis) == 20
        assert list(axis) == sorted(axis)
        assert all(distribution.low <= value <= distribution.high for value in axis)
        assert all(type(value) is type(distribution.low) for value in axis)
    assert len(set(grid.axes.values())) == 4


def test_axis_is_drawn_evenly_on_its_scale():
    grids = [make_grid(REPORT_SPACE, seed) for seed in range(100)]
    decades = Counter(math.floor(math.log10(value)) for grid in grids for value in grid.axes["learning_rate"])
    assert sorted(decades) == [-7, -6, -5, -4, -3]
    # The mean is 400.
    assert min(decades.values()) > 320
    sizes = [value for grid in grids for value in grid.axes["hidden_size"]]
    assert sum(sizes) / len(sizes) == pytest.approx(216, abs=8)


def test_short_axis_has_all_values():
    space = {
        "hidden_size": IntDistribution(1, 20),
        "epochs": IntDistribution(1, 21, log=True),
        "batch_size": CategoricalDistribution([50, 20, 50]),
        "momentum": CategoricalDistribution([index / 100 for index in range(40)]),
        "learning_rate": FloatDistribution(0.5, 0.5),
        "features": CategoricalDistribution(["sqrt", 0.5]),
    }
    sizes, epochs, batches, momenta, rates, features = make_grid(space, 3).axes.values()
    assert sizes == tuple(range(1, 21))
    assert len(set(epochs)) == 20
    assert set(epochs) < set(range(1, 22))
    assert batches == (20, 50)
    assert len(set(momenta)) == 20
    assert set(momenta) < set(space["momentum"].choices)
    assert rates == (0.5,)
    assert features == (0.5, "sqrt")


def test_axis_of_neighboring_floats_has_all_floats():
    low, high = 1.0, math.nextafter(1.0, 2.0)
    assert make_grid({"x": FloatDistribution(low, high)}).axes == {"x": (low, high)}


def test_axes_equal_those_of_former_versions():
    axes = make_grid(REPORT_SPACE, 7).axes
    assert axes["learning_rate"][:2] == (1.4248845804988113e-07, 4.860470173926103e-07)
    assert axes["hidden_size"][:10] == (62, 71, 87, 88, 125, 149, 158, 165, 204, 216)


@given(seed=seeds, start=st.integers(0, 2_000))
def test_points_are_distinct_and_on_grid(seed, start):
    grid = make_grid(REPORT_SPACE, seed)
    points = [grid.point(number) for number in range(start, start + 50)]
    assert len({tuple(point.items()) for point in points}) == 50
    for name, axis in grid.axes.items():
        assert {point[name] for point in points} <= set(axis)


@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3), seed=seeds)
def test_each_point_is_drawn_once(sizes, seed):
    grid = make_grid({str(axis): IntDistribution(1, size) for axis, size in enumerate(sizes)}, seed)
    assert len({tuple(grid.point(number).values()) for number in range(grid.size)}) == grid.size == math.prod(sizes)


@given(numbers=st.lists(st.integers(0, 1_000), min_size=1, max_size=10), seed=seeds)
def test_point_does_not_depend_on_earlier_calls(numbers, seed):
    grid = make_grid(REPORT_SPACE, seed)
    points = [grid.point(number) for number in numbers]
    assert points == [make_grid(REPORT_SPACE, seed).point(number) for number in numbers]


def test_sampler_continues_with_earlier_points():
    space = {"hidden_size": IntDistribution(1, 5)}
    sampler = RandomGridSampler()
    from_start = list(sampler.propose(space, [], 0))
    assert sorted(point["hidden_size"] for point in from_start) == [1, 2, 3, 4, 5]
    assert list(sampler.propose(space, make_failed(3), 0)) == [*from_start[3:], *from_start[:3]]


def test_each_value_of_axis_is_drawn_equally_often():
    grid = make_grid(REPORT_SPACE)
    points = [grid.point(number) for number in range(4000)]
    for name in REPORT_SPACE:
        counts = Counter(point[name] for point in points).values()
        assert len(counts) == 20
        # Chi-squared with 19 degrees of freedom.
        assert sum((count - 200) ** 2 / 200 for count in counts) < 50


def test_huge_grid_needs_little_memory():
    grid = make_grid({str(axis): FloatDistribution(0.0, 1.0) for axis in range(30)})
    assert grid.size == 20**30
    assert len({tuple(grid.point(number).values()) for number in range(300)}) == 300


def test_other_seed_draws_other_grid_and_order():
    one, other = make_grid(REPORT_SPACE, 0), make_grid(REPORT_SPACE, 1)
    assert not set(one.axes["learning_rate"]) & set(other.axes["learning_rate"])
    space = {"x": IntDistribution(1, 20), "y": IntDistribution(1, 20)}
    first = [[make_grid(space, seed).point(number) for number in range(5)] for seed in (0, 1)]
    assert first[0] != first[1]
