"""Proposals: where they lie, and what they depend on."""

import copy
import math
from collections import Counter
from importlib.util import find_spec
from itertools import islice

import numpy as np
import optuna
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial
from scipy.stats import qmc

from hpo.config.study import StudyConfig
from hpo.errors import StudyFileError
from hpo.search.cmaes import _evolution, evolved
from hpo.search.samplers import STARTUP_TRIALS, TPE_BEST, TPE_TRIALS, _prefer_cheapest, check_feasible, propose
from hpo.search.space import combinations, distributions

SPACE = {
    "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
    "regularization": {"low": 0.0, "high": 0.01},
    "hidden_size": {"low": 32, "high": 400},
    "epochs": {"low": 100, "high": 500, "log": True},
    "batch_size": {"choices": [50, 100, 200]},
    "momentum": {"choices": [0.0, 0.9]},
}
REPORT = {
    "learning_rate": {"low": 1e-7, "high": 1e-2, "log": True},
    "regularization": {"low": 1e-7, "high": 1e-2, "log": True},
    "hidden_size": {"low": 32, "high": 400},
    "epochs": {"low": 100, "high": 500},
}
TYPES = {name: float if name in ("learning_rate", "regularization", "momentum") else int for name in SPACE}
NOT_LEARNING = ["random", "random-grid", "qmc"]
WITH_TORCH = pytest.param(
    "gp", marks=pytest.mark.skipif(find_spec("torch") is None, reason="no PyTorch: pip install 'hpo[gp]'")
)
SAMPLERS = [*NOT_LEARNING, "tpe", "cmaes", WITH_TORCH]
FIXED = {"learning_rate": 0.1, "regularization": 0.0, "hidden_size": 4, "epochs": 9}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


def study(sampler, seed=0, space=SPACE):
    hidden_size = ["hidden_size"] if "hidden_layers" in space else []
    return StudyConfig.model_validate(
        {
            "study": {"name": "s", "seed": seed, "sampler": sampler},
            "data": {"dataset": "digits"},
            "train": {name: value for name, value in FIXED.items() if name not in (*space, *hidden_size)},
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


# All samplers


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_lists_of_sizes_are_proposed_and_learned_from(sampler):
    sizes = [[200], [200, 150], [200, 150, 100], [200, 150, 100, 80]]
    layers = {"hidden_layers": {"choices": sizes}, "learning_rate": SPACE["learning_rate"]}
    spec = study(sampler, space=layers)
    proposed = []
    while len(proposed) < STARTUP_TRIALS + 5:
        params = propose(spec, proposed)
        proposed.append(finished(spec, params, len(spec.hyperparameters(params).hidden_sizes)))
    assert len({spec.hyperparameters(trial.params).hidden_sizes for trial in proposed}) > 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_empty_space_proposes_nothing(sampler):
    assert propose(study(sampler, space={}), []) == {}
    assert propose(study(sampler, space={}), empty(20)) == {}


@pytest.mark.parametrize("sampler", SAMPLERS)
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


@pytest.mark.parametrize("sampler", SAMPLERS)
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
    sampler=st.sampled_from(NOT_LEARNING),
    seed=st.integers(0, 2**32 - 1),
    ended=st.lists(st.tuples(states, st.floats(0, 1)), max_size=20),
)
def test_what_does_not_learn_depends_on_the_number_alone(sampler, seed, ended):
    spec = study(sampler, seed)
    params = propose(spec, [])
    trials = [finished(spec, params, value, state) for state, value in ended]
    assert propose(spec, trials) == propose(spec, empty(len(ended)))


# No two trials are the same

NEXT = math.nextafter(0.5, 1)

small_spaces = st.fixed_dictionaries(
    {},
    optional={
        "hidden_size": st.sampled_from([{"low": 3, "high": 3}, {"low": 3, "high": 5}, {"low": 1, "high": 8}]),
        "epochs": st.sampled_from([{"low": 1, "high": 3, "log": True}, {"low": 2, "high": 2, "log": True}]),
        "batch_size": st.sampled_from([{"choices": [50]}, {"choices": [9, 3, 9, 5]}, {"low": 50, "high": 51}]),
        "momentum": st.sampled_from([{"choices": [0.0, 0.9]}, {"low": 0.5, "high": 0.5}]),
        "learning_rate": st.sampled_from([{"low": 0.5, "high": NEXT}, {"low": 0.5, "high": NEXT, "log": True}]),
    },
)
ends = st.sampled_from([TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.FAIL])


def exhausted(spec, count, states, accuracies):
    """So many trials, each valued by chance."""
    trials = []
    for number in range(count):
        trials.append(finished(spec, propose(spec, trials), accuracies[number % 7], states[number % 5]))
        trials[-1].number = number
    return trials


def points(trials):
    return {tuple(trial.params.items()) for trial in trials}


@pytest.mark.parametrize("sampler", ["random", "random-grid", "qmc", "tpe", "cmaes"])
@settings(max_examples=20, deadline=None)
@given(
    space=small_spaces,
    seed=st.integers(0, 2**32 - 1),
    states=st.lists(ends, min_size=5, max_size=5),
    accuracies=st.lists(st.floats(0, 1), min_size=7, max_size=7),
)
def test_every_combination_of_a_small_space_is_tried_once(sampler, space, seed, states, accuracies):
    spec = study(sampler, seed, space)
    count = combinations(distributions(spec))
    assume(space and count <= 48)
    trials = exhausted(spec, count, states, accuracies)
    assert len(points(trials)) == count
    with pytest.raises(StudyFileError, match=f"only {count} combinations, but {count + 1} trials"):
        propose(spec, trials)


@pytest.mark.parametrize("sampler", ["random", "random-grid", "qmc", "tpe", "cmaes"])
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_two_trials_of_the_reports_space_are_the_same(sampler, seed):
    trials = exhausted(study(sampler, seed, REPORT), 60, [TrialState.COMPLETE] * 3 + [TrialState.PRUNED] * 2, [0.5] * 7)
    assert len(points(trials)) == 60


def test_the_gaussian_process_does_not_repeat_its_best_point():
    pytest.importorskip("torch", reason="no PyTorch: pip install 'hpo[gp]'")
    space = {"hidden_size": {"low": 3, "high": 6}, "batch_size": {"choices": [50, 100, 200]}}
    trials = exhausted(study("gp", space=space), 12, [TrialState.COMPLETE] * 4 + [TrialState.PRUNED], [0.1] * 7)
    assert len(points(trials)) == 12


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", WITH_TORCH])
def test_what_has_been_learned_does_not_repeat_a_trial_but_goes_on_elsewhere(sampler):
    spec = study(sampler, space={"hidden_size": {"low": 1, "high": 40}})
    # The best lies at the end, and so do all proposals but for those that are taken.
    trials = [finished(spec, {"hidden_size": size}, size) for size in range(25, 41)]
    sizes = set()
    for number in range(10):
        params = propose(spec, trials)
        trials.append(finished(spec, params, params["hidden_size"]))
        trials[-1].number = 16 + number
        sizes.add(params["hidden_size"])
    assert len(sizes) == 10
    assert not sizes & set(range(25, 41))


@pytest.mark.parametrize("sampler", ["random", "random-grid", "qmc", "tpe", "cmaes", "gp"])
def test_a_budget_of_no_more_than_the_combinations_is_feasible(sampler):
    spec = study(sampler, space={"hidden_size": {"low": 3, "high": 6}, "batch_size": {"choices": [50, 100, 200]}})
    check_feasible(spec, 12)
    with pytest.raises(StudyFileError, match=r"^space: only 12 combinations, but 100 trials are asked for; .* 12, or"):
        check_feasible(spec, 100)


def test_where_nothing_is_searched_any_budget_is_feasible():
    check_feasible(study("random", space={}), 1000)


def test_one_point_is_one_trial():
    spec = study("tpe", space={"hidden_size": {"low": 3, "high": 3}})
    check_feasible(spec, 1)
    with pytest.raises(StudyFileError, match="only 1 combinations"):
        check_feasible(spec, 2)


def test_a_grid_has_fewer_points_than_its_space():
    spec = study("random-grid", space={"learning_rate": SPACE["learning_rate"]})
    check_feasible(study("random", space={"learning_rate": SPACE["learning_rate"]}), 21)
    with pytest.raises(StudyFileError, match="only 20 combinations, but 21 trials"):
        check_feasible(spec, 21)


# CMA-ES


def distances(sampler, count=96):
    spec = study(sampler, space={name: SPACE[name] for name in ("learning_rate", "hidden_size", "momentum")})
    return [loss_of(trial.params) for trial in history(spec, count)]


def test_cma_es_converges():
    early, late = np.mean(distances("cmaes")[:16]), np.mean(distances("cmaes")[-16:])
    assert late < 0.1 * early


def test_cma_es_is_a_function_of_the_trials():
    spec = study("cmaes")
    trials = history(spec, 30)
    first = propose(spec, trials)
    _evolution.cache_clear()
    assert propose(spec, trials) == first
    assert propose(spec, [finished(spec, trial.params, trial.value) for trial in trials]) == first
    worse = [finished(spec, trial.params, 1 - trial.value) for trial in trials]
    assert propose(spec, worse) != first
    assert propose(spec, trials) == first


def test_cma_es_waits_for_a_generation_and_for_no_other():
    spec = study("cmaes")
    trials = history(spec, 27)
    size = _evolution(tuple(distributions(spec).items()), 0).population_size
    assert size == 9
    running = finished(spec, trials[4].params, None, TrialState.RUNNING)
    waiting = [*trials[:4], running, *trials[5:]]
    assert propose(spec, waiting) != propose(spec, trials)
    other = finished(spec, trials[3].params, 0.0)
    assert propose(spec, [*trials[:3], other, running, *trials[5:]]) == propose(spec, waiting)
    other = finished(spec, trials[20].params, 0.0)
    assert propose(spec, [*waiting[:20], other, *trials[21:]]) != propose(spec, waiting)


def test_cma_es_counts_a_pruned_trial_with_its_last_value_and_a_failed_one_as_the_worst():
    spec = study("cmaes")
    trials = history(spec, 9)
    values = sorted(trial.value for trial in trials)
    pruned = [finished(spec, trial.params, trial.value, TrialState.PRUNED) for trial in trials]
    assert propose(spec, pruned) == propose(spec, trials)
    failed = [
        trial if trial.value > values[0] else finished(spec, trial.params, 0, TrialState.FAIL) for trial in trials
    ]
    assert [trial.state for trial in failed].count(TrialState.FAIL) == 1
    assert propose(spec, failed) == propose(spec, trials)


def test_cma_es_starts_again_elsewhere_once_it_has_converged():
    spec = study("cmaes", space={"learning_rate": SPACE["learning_rate"]})
    narrow = [finished(spec, {"learning_rate": 1e-3 + 1e-9 * number}, 0.5) for number in range(76)]

    def rates(trials):
        points = islice(evolved(distributions(spec), 0, trials), 20)
        return [math.log10(point["learning_rate"]) for point in points]

    # The last of 19 generations of 4 says that all have the same value.
    assert np.std(rates(narrow[:72])) < 0.01
    assert np.std(rates(narrow)) > 0.2
    assert abs(np.mean(rates(narrow)) + 2.5) > 0.01  # the middle, where it first started


# The quasi-random sequence


def test_quasi_random_points_are_one_sequence():
    spec = study("qmc", 5, {"regularization": {"low": 0.0, "high": 1.0}, "momentum": {"low": 0.0, "high": 0.5}})
    wanted = qmc.Sobol(2, scramble=True, rng=5).random(1024) * [1, 0.5]
    for number in (0, 1, 255, 256, 257, 511, 512, 1000):
        assert list(propose(spec, empty(number)).values()) == list(wanted[number])


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


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_a_trial_that_waits_tells_as_much_as_one_that_was_pruned_there(sampler):
    spec = study(sampler)
    trials = history(spec, 20)
    proposals = []
    for state in (TrialState.RUNNING, TrialState.PRUNED):
        told = [copy.copy(trial) for trial in trials]
        for trial in told[::2]:
            trial.state, trial.intermediate_values = state, {1: 0.1, 4: trial.value}
            trial.value = None if state == TrialState.RUNNING else trial.value
        proposals.append(propose(spec, told))
    assert proposals[0] == proposals[1]


def test_of_every_four_proposals_the_shortest_is_taken():
    space = distributions(study("tpe"))
    proposals = [{"epochs": epochs} for epochs in (300, 200, 400, 201, 150, 160, 170, 180, 500)]
    assert list(_prefer_cheapest(space, iter(proposals))) == [{"epochs": 200}, {"epochs": 150}, {"epochs": 500}]


def test_where_epochs_are_fixed_every_proposal_is_taken():
    space = distributions(study("tpe", space={"learning_rate": SPACE["learning_rate"]}))
    proposals = [{"learning_rate": rate} for rate in (1e-3, 1e-2, 1e-1)]
    assert list(_prefer_cheapest(space, iter(proposals))) == proposals


def test_every_third_trial_is_the_quasi_random_one():
    spec = study("tpe")
    trials = history(spec, 24)
    followed = [propose(spec, trials[:n]) != propose(study("qmc"), empty(n)) for n in range(12, 24)]
    assert followed == [False, True, True] * 4


def test_tpe_is_a_function_of_the_trials():
    spec = study("tpe")
    trials = history(spec, 16)
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
    points = [propose(study("random", seed=seed), empty(number)) for number in range(n)]
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
    assert 380 < max(sizes) <= 400
    assert all(isinstance(size, int) for size in sizes)
