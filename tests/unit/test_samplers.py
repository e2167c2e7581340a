"""Samplers by name: the points, their dependence on the trials, and distinct trials."""

import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from scipy.stats import qmc
from search_trials import (
    NOT_LEARNING,
    REPORT_SPACE,
    SPACE,
    count_points,
    exhaust,
    is_in_space,
    make_failed,
    make_history,
    make_trial,
    propose_with,
    select,
)

from hpo.config.study import StudyConfig
from hpo.errors import StudyFileError
from hpo.search.sampling.samplers import (
    MAX_CANDIDATES,
    QuasiRandomSampler,
    RandomGridSampler,
    RandomSampler,
    Sampler,
    check_feasible,
    make_sampler,
    propose,
)
from hpo.search.sampling.tpe import STARTUP_TRIALS
from hpo.search.space import build_space, cardinality
from hpo.testing.samplers import SamplerContract

# The Gaussian process takes a second per proposal: tests/integration/test_samplers.py.
SAMPLERS = [*NOT_LEARNING, "tpe", "cmaes"]
TYPES = {name: float if name in ("learning_rate", "regularization", "momentum") else int for name in SPACE}
FINITE_SPACE = {"hidden_size": IntDistribution(3, 6), "batch_size": CategoricalDistribution([50, 100, 200])}

seeds = st.integers(0, 2**32 - 1)


class TestRandomSampler(SamplerContract):
    def make_sampler(self):
        return RandomSampler()


class TestRandomGridSampler(SamplerContract):
    def make_sampler(self):
        return RandomGridSampler()


class TestQuasiRandomSampler(SamplerContract):
    def make_sampler(self):
        return QuasiRandomSampler()


class TestTpe(SamplerContract):
    def make_sampler(self):
        return make_sampler("tpe", "size")


class TestCmaEs(SamplerContract):
    def make_sampler(self):
        return make_sampler("cmaes")


def propose_all(name, count, space=SPACE):
    return [propose_with(name, make_failed(number), space) for number in range(count)]


def make_config(sampler="random", pruner="asha", space=None):
    tables = {"study": {"name": "s", "sampler": sampler, "pruner": pruner}, "space": space or {}}
    return StudyConfig.model_validate(tables | {"path": Path("folder/s.toml")})


# All samplers


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_lists_of_sizes_are_proposed(sampler):
    sizes = [[200], [200, 150], [200, 150, 100], [200, 150, 100, 80]]
    layers = {"hidden_layers": {"choices": sizes}, "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}}
    config = make_config(sampler, space=layers)
    space, proposed = build_space(config), []

    def layers_of(params):
        return config.params_to_settings(params)["hidden_layers"]

    while len(proposed) < STARTUP_TRIALS + 5:
        params = propose_with(sampler, proposed, space)
        proposed.append(make_trial(params, len(layers_of(params)), space=space))
    assert {layers_of(trial.params) for trial in proposed} <= set(map(tuple, sizes))
    assert len({layers_of(trial.params) for trial in proposed}) > 1


@pytest.mark.parametrize("sampler", [*SAMPLERS, "gp"])
def test_empty_space_has_no_params(sampler):
    assert propose_with(sampler, [], {}) == {}
    assert propose_with(sampler, make_failed(20), {}) == {}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_proposals_are_plain_values_of_space(sampler):
    for trial in make_history(sampler, STARTUP_TRIALS + 5):
        assert list(trial.params) == list(SPACE)
        assert is_in_space(trial.params, SPACE)
        assert {name: type(value) for name, value in trial.params.items()} == TYPES


@pytest.mark.parametrize("sampler", ["random", "qmc"])
def test_200_trials_are_distinct(sampler):
    proposals = propose_all(sampler, 200)
    assert len({tuple(params.items()) for params in proposals}) == 200
    for name in ("learning_rate", "regularization"):
        assert len({params[name] for params in proposals}) == 200


@pytest.mark.parametrize("sampler", ["random", "qmc"])
def test_proposals_cover_parameter_evenly(sampler):
    rates = [math.log10(params["learning_rate"]) for params in propose_all(sampler, 200)]
    quarters = Counter(int((rate + 4) / 0.75) for rate in rates)
    assert sorted(quarters) == [0, 1, 2, 3]
    # The mean is 50.
    assert min(quarters.values()) >= 35


@pytest.mark.parametrize("sampler", [*SAMPLERS, "gp"])
def test_other_seed_proposes_other_trials(sampler):
    for number in (0, 1, 7):
        one, other = (propose_with(sampler, make_failed(number), seed=seed) for seed in (0, 1))
        assert one["learning_rate"] != other["learning_rate"]


def test_seed_and_number_are_independent():
    assert propose_with("random", make_failed(0), seed=1) != propose_with("random", make_failed(1), seed=0)
    assert propose_with("random", make_failed(7), seed=5) != propose_with("random", make_failed(5), seed=7)


@settings(max_examples=30, deadline=None)
@given(
    sampler=st.sampled_from(NOT_LEARNING),
    seed=seeds,
    finished=st.lists(st.tuples(st.sampled_from(list(TrialState)), st.floats(0, 1)), max_size=20),
)
def test_unlearned_proposal_depends_on_number_alone(sampler, seed, finished):
    params = propose_with(sampler, [], seed=seed)
    trials = [make_trial(params, value, state) for state, value in finished]
    assert propose_with(sampler, trials, seed=seed) == propose_with(sampler, make_failed(len(finished)), seed=seed)


def test_quasi_random_points_are_one_sequence():
    space = {"regularization": FloatDistribution(0.0, 1.0), "momentum": FloatDistribution(0.0, 0.5)}
    expected = qmc.Sobol(2, scramble=True, rng=5).random(1024) * [1, 0.5]
    for number in (0, 1, 255, 256, 257, 511, 512, 1000):
        assert list(propose_with("qmc", make_failed(number), space, seed=5).values()) == list(expected[number])


# Distinct trials

small_spaces = st.fixed_dictionaries(
    {},
    optional={
        "hidden_size": st.sampled_from([IntDistribution(3, 3), IntDistribution(-3, -1), IntDistribution(1, 8)]),
        "epochs": st.sampled_from([IntDistribution(1, 3, log=True), IntDistribution(2, 2, log=True)]),
        "batch_size": st.sampled_from(
            [CategoricalDistribution([50]), CategoricalDistribution([9, 3, 9, 5]), IntDistribution(50, 51)]
        ),
        "momentum": st.sampled_from([CategoricalDistribution([0.0, 0.9]), FloatDistribution(0.5, 0.5)]),
        "activation": st.sampled_from([CategoricalDistribution(["tanh", "relu"]), CategoricalDistribution(["a", 1])]),
    },
)
finished_states = st.sampled_from([TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.FAIL])


@pytest.mark.parametrize("sampler", SAMPLERS)
@settings(max_examples=20, deadline=None)
@given(
    space=small_spaces,
    seed=seeds,
    states=st.lists(finished_states, min_size=5, max_size=5),
    values=st.lists(st.floats(-1, 1), min_size=7, max_size=7),
)
def test_each_point_of_small_space_is_tried_once(sampler, space, seed, states, values):
    count = cardinality(space)
    assume(space and count <= 48)
    trials = exhaust(sampler, count, space, states, values, seed)
    assert count_points(trials) == count
    with pytest.raises(StudyFileError, match=f"only {count} combinations, but {count + 1} trials"):
        propose_with(sampler, trials, space, seed)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2**32 - 1))])
def test_trials_of_report_space_are_distinct(sampler, seed):
    states = [TrialState.COMPLETE] * 3 + [TrialState.PRUNED] * 2
    assert count_points(exhaust(sampler, 60, REPORT_SPACE, states, [0.5] * 7, seed)) == 60


def test_exhaustive_search_follows_taken_candidates():
    class OnePoint(Sampler):
        def propose(self, space, trials, seed):
            while True:
                yield {"x": 10**9, "y": 1}

    space = {"x": IntDistribution(0, 2 * 10**9), "y": IntDistribution(0, 1)}
    trials = []
    for expected in ({"x": 10**9, "y": 1}, {"x": 10**9 + 1, "y": 0}, {"x": 10**9 + 1, "y": 1}):
        assert propose(OnePoint(), space, trials, 0) == expected
        trials.append(make_trial(expected, 0.5, space=space))


def test_neighboring_floats_are_refused_after_last_value():
    space = {"learning_rate": FloatDistribution(0.5, math.nextafter(0.5, 1))}
    trials = exhaust("random", 2, space, [TrialState.COMPLETE], [0.5])
    assert count_points(trials) == 2
    with pytest.raises(StudyFileError, match=r"^space: no new combination in 10000 draws; search a wider range$"):
        propose_with("random", trials, space)


def test_candidates_of_finite_space_are_limited():
    drawn = []

    class Counting(Sampler):
        def propose(self, space, trials, seed):
            while True:
                drawn.append(1)
                yield {"x": 0}

    space = {"x": IntDistribution(0, 5)}
    assert propose(Counting(), space, [make_trial({"x": 0}, 0.5, space=space)], 0) == {"x": 1}
    assert len(drawn) == MAX_CANDIDATES


def test_negative_range_is_searched():
    space = {"x": FloatDistribution(-10.0, 10.0), "n": IntDistribution(-4, -2)}
    for sampler in SAMPLERS:
        trials = exhaust(sampler, 30, space, [TrialState.COMPLETE], [-3.0, -1.0, -2.0, -5.0])
        assert count_points(trials) == 30
        assert {trial.params["n"] for trial in trials} == {-4, -3, -2}
        assert min(trial.params["x"] for trial in trials) < 0 < max(trial.params["x"] for trial in trials)


# Checks before a launch


@pytest.mark.parametrize("sampler", [*SAMPLERS, "gp"])
def test_budget_up_to_combinations_is_feasible(sampler):
    config = make_config(sampler)
    check_feasible(config, FINITE_SPACE, 12)
    with pytest.raises(
        StudyFileError, match=r"^space: only 12 combinations, but 100 trials are required; use --trials 12 or less, or "
    ):
        check_feasible(config, FINITE_SPACE, 100)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_complete_trial_without_value_does_no_harm(sampler):
    space = select("learning_rate", "hidden_size")
    trials = make_history("random", 25, space)
    # Another program has completed the trial with infinity or NaN.
    trials[7].value = None
    assert is_in_space(propose_with(sampler, trials, space), space)


def test_empty_space_allows_any_budget():
    check_feasible(make_config("random"), {}, 1000)


def test_single_point_allows_one_trial():
    space = {"hidden_size": IntDistribution(3, 3)}
    check_feasible(make_config("tpe"), space, 1)
    with pytest.raises(StudyFileError, match="only 1 combinations"):
        check_feasible(make_config("tpe"), space, 2)


def test_random_grid_allows_its_points():
    space = select("learning_rate")
    check_feasible(make_config("random"), space, 21)
    with pytest.raises(StudyFileError, match="only 20 combinations, but 21 trials"):
        check_feasible(make_config("random-grid"), space, 21)


SAMPLER_NAMES = "'tpe', 'random', 'random-grid', 'qmc', 'cmaes' or 'gp'"
PRUNER_NAMES = "'asha', 'hyperband', 'median' or 'none'"


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ({"sampler": "tpee"}, f"study.sampler: {SAMPLER_NAMES} is allowed, not 'tpee'"),
        ({"pruner": "ash"}, f"study.pruner: {PRUNER_NAMES} is allowed, not 'ash'"),
    ],
)
def test_unknown_name_is_refused(names, problem):
    with pytest.raises(StudyFileError) as error:
        check_feasible(make_config(**names), {}, 1)
    assert str(error.value) == f"folder/s.toml: {problem}"


def test_unknown_sampler_is_not_made():
    with pytest.raises(StudyFileError, match=r"^study\.sampler: 'tpe', .* or 'gp' is allowed, not 'magic'$"):
        make_sampler("magic")
