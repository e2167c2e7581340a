"""Proposals: where they lie, and what they depend on."""

import math
from collections import Counter

import numpy as np
import optuna
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from hpo.sampling import STARTUP_TRIALS, TPE_BEST, TPE_TRIALS, at, distributions, propose
from hpo.spec import StudySpec

ALMOST_ONE = 1 - 2**-53

SPACE = {
    "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
    "regularization": {"low": 0.0, "high": 0.01},
    "hidden_size": {"low": 32, "high": 400},
    "epochs": {"low": 100, "high": 500, "log": True},
    "batch_size": {"choices": [50, 100, 200]},
    "momentum": {"choices": [0.0, 0.9]},
}
TYPES = {name: float if name in ("learning_rate", "regularization", "momentum") else int for name in SPACE}
FIXED = {"learning_rate": 0.1, "regularization": 0.0, "hidden_size": 4, "epochs": 9}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


def study(sampler, seed=0, space=SPACE):
    return StudySpec.model_validate(
        {
            "study": {"name": "s", "seed": seed, "sampler": sampler},
            "data": {"dataset": "digits"},
            "train": {name: value for name, value in FIXED.items() if name not in space},
            "space": space,
        }
    )


def finished(spec, params, value, state=TrialState.COMPLETE):
    value = None if state in (TrialState.RUNNING, TrialState.FAIL) else value
    return create_trial(state=state, params=params, distributions=distributions(spec), value=value)


def values_of(params):
    """A function with one best point, in units of the ranges: learning rate 1e-3, hidden size 100."""
    return math.log10(params["learning_rate"] / 1e-3) / 3, (params["hidden_size"] - 100) / 368


def loss_of(params):
    return sum(distance**2 for distance in values_of(params))


def history(spec, count):
    """Trials as one worker would make them, valued by ``loss_of``."""
    trials = []
    while len(trials) < count:
        params = propose(spec, trials)
        trials.append(finished(spec, params, 1 - loss_of(params)))
    return trials


def empty(count):
    return [create_trial(state=TrialState.FAIL)] * count


def all_params(spec, count):
    return [propose(spec, empty(number)) for number in range(count)]


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


# The space


def test_the_space_in_optunas_terms():
    assert distributions(study("tpe")) == {
        "learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
        "regularization": FloatDistribution(0.0, 0.01),
        "hidden_size": IntDistribution(32, 400),
        "epochs": IntDistribution(100, 500, log=True),
        "batch_size": CategoricalDistribution([50, 100, 200]),
        "momentum": CategoricalDistribution([0.0, 0.9]),
    }


def test_whole_ends_of_a_float_are_a_float_range():
    spec = study("tpe", space={"learning_rate": {"low": 1, "high": 2}})
    assert distributions(spec) == {"learning_rate": FloatDistribution(1.0, 2.0)}


# All samplers


@pytest.mark.parametrize("sampler", ["random", "qmc", "tpe"])
def test_an_empty_space_proposes_nothing(sampler):
    assert propose(study(sampler, space={}), []) == {}
    assert propose(study(sampler, space={}), empty(20)) == {}


@pytest.mark.parametrize("sampler", ["random", "qmc", "tpe"])
def test_proposals_lie_in_the_space_and_are_plain_numbers(sampler):
    spec = study(sampler)
    space = distributions(spec)
    for trial in history(spec, STARTUP_TRIALS + 5):
        params = trial.params
        assert list(params) == list(SPACE)
        assert all(space[name]._contains(space[name].to_internal_repr(value)) for name, value in params.items())
        assert {name: type(value) for name, value in params.items()} == TYPES


@pytest.mark.parametrize("sampler", ["random", "qmc"])
def test_no_two_of_two_hundred_trials_are_the_same(sampler):
    proposals = all_params(study(sampler), 200)
    assert len({tuple(params.items()) for params in proposals}) == 200
    for name in ("learning_rate", "regularization"):
        assert len({params[name] for params in proposals}) == 200


@pytest.mark.parametrize("sampler", ["random", "qmc"])
def test_proposals_cover_every_parameter_evenly(sampler):
    rates = [math.log10(params["learning_rate"]) for params in all_params(study(sampler), 200)]
    quarters = Counter(int((rate + 4) / 0.75) for rate in rates)
    assert sorted(quarters) == [0, 1, 2, 3]
    assert min(quarters.values()) >= 35  # of 50


def test_no_two_of_tpes_trials_are_the_same():
    proposals = [trial.params for trial in history(study("tpe"), 40)]
    assert len({params["learning_rate"] for params in proposals}) == 40


@pytest.mark.parametrize("sampler", ["random", "qmc", "tpe"])
def test_another_seed_proposes_other_trials(sampler):
    for number in (0, 1, 7):
        one, other = (propose(study(sampler, seed), empty(number)) for seed in (0, 1))
        assert one["learning_rate"] != other["learning_rate"]


def test_seeds_and_numbers_are_not_added_up():
    assert propose(study("random", 1), empty(0)) != propose(study("random", 0), empty(1))
    assert propose(study("random", 5), empty(7)) != propose(study("random", 7), empty(5))


states = st.sampled_from(list(TrialState))


@settings(max_examples=30, deadline=None)
@given(
    sampler=st.sampled_from(["random", "qmc"]),
    seed=st.integers(0, 2**32 - 1),
    ended=st.lists(st.tuples(states, st.floats(0, 1)), max_size=20),
)
def test_what_does_not_learn_depends_on_the_number_alone(sampler, seed, ended):
    spec = study(sampler, seed)
    params = propose(spec, [])
    trials = [finished(spec, params, value, state) for state, value in ended]
    assert propose(spec, trials) == propose(spec, empty(len(ended)))


# TPE


@pytest.mark.parametrize("state", [TrialState.RUNNING, TrialState.COMPLETE])
@pytest.mark.parametrize("number", [0, 1, 5, 9])
def test_tpe_starts_with_the_quasi_random_points(state, number):
    trials = [finished(study("tpe"), propose(study("tpe"), []), 0.5, state)] * number
    assert propose(study("tpe"), trials) == propose(study("qmc"), empty(number))


def test_tpe_waits_for_finished_trials_not_for_running_ones():
    spec = study("tpe")
    trials = history(spec, STARTUP_TRIALS)
    running = [finished(spec, trial.params, None, TrialState.RUNNING) for trial in trials]
    quasi_random = propose(study("qmc"), empty(2 * STARTUP_TRIALS - 1))
    assert propose(spec, [*trials[1:], *running]) == quasi_random
    assert propose(spec, [*trials, *running[1:]]) != quasi_random


def test_tpe_is_a_function_of_the_trials():
    spec = study("tpe")
    trials = history(spec, 15)
    first = propose(spec, trials)
    assert propose(spec, trials) == first
    better = [finished(spec, trial.params, loss_of(trial.params)) for trial in trials]
    assert propose(spec, better) != first


def test_tpe_leaves_the_trials_as_they_were():
    spec = study("tpe")
    trials = history(spec, 12)
    before = [(trial.number, trial.state, trial.value, trial.params) for trial in trials]
    propose(spec, trials)
    assert [(trial.number, trial.state, trial.value, trial.params) for trial in trials] == before


@pytest.mark.parametrize("state", [TrialState.RUNNING, TrialState.PRUNED, TrialState.FAIL])
def test_tpe_takes_trials_of_every_state(state):
    spec = study("tpe")
    trials = history(spec, 12)
    others = [finished(spec, trial.params, 0.1, state) for trial in trials[:6]]
    params = propose(spec, [*trials, *others])
    space = distributions(spec)
    assert all(space[name]._contains(space[name].to_internal_repr(value)) for name, value in params.items())


def mean_distance(sampler, seed):
    space = {name: SPACE[name] for name in ("learning_rate", "hidden_size")}
    trials = history(study(sampler, seed, space), 40)[STARTUP_TRIALS:]
    return np.mean([math.sqrt(loss_of(trial.params)) for trial in trials])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tpe_prefers_the_good_region(seed):
    assert mean_distance("tpe", seed) < 0.7 * mean_distance("random", seed)


def random_trials(spec, n, seed=0):
    rng = np.random.default_rng(seed)
    points = [propose(study("random", seed=seed), [None] * number) for number in range(n)]
    trials = [finished(spec, point, float(rng.random())) for point in points]
    for number, trial in enumerate(trials):
        trial.number = number
    return trials


def test_tpe_forgets_the_old_ones_that_were_not_good():
    spec = study("tpe")
    trials = random_trials(spec, TPE_TRIALS + 50)
    for trial in trials[:TPE_BEST]:
        trial.value += 1
    proposed = propose(spec, trials)
    for trial in trials[TPE_BEST : TPE_BEST + 50]:
        trial.params["learning_rate"] = 2e-4
    assert propose(spec, trials) == proposed
    for trial in trials[:TPE_BEST]:
        trial.params["learning_rate"] = 2e-4
    assert propose(spec, trials) != proposed


def test_tpe_forgets_none_that_are_running():
    spec = study("tpe")
    trials = random_trials(spec, TPE_TRIALS + 50)
    proposed = propose(spec, trials)
    running = finished(spec, proposed, None, TrialState.RUNNING)
    running.number = 0
    assert propose(spec, [running, *trials[1:]]) != proposed


def test_tpe_is_not_taught_by_failures():
    spec = study("tpe")
    failed = [finished(spec, trial.params, None, TrialState.FAIL) for trial in random_trials(spec, STARTUP_TRIALS)]
    assert propose(spec, failed) == propose(study("qmc"), failed)


@pytest.mark.parametrize("log", [False, True])
def test_tpe_proposes_integers_of_long_ranges_within_them(log):
    spec = study("tpe", space=SPACE | {"hidden_size": {"low": 32, "high": 400, "log": log}})
    # All the best are at one end.
    trials = [finished(spec, trial.params | {"hidden_size": 400}, trial.value) for trial in random_trials(spec, 40)]
    sizes = {propose(spec, trials[:n])["hidden_size"] for n in range(STARTUP_TRIALS, 40)}
    assert max(sizes) == 400
    assert all(isinstance(size, int) for size in sizes)
