"""TPE: its start, its exploration, its preference for cheap trials, and the trials that it learns from."""

import copy
import math

import numpy as np
import pytest
from optuna.distributions import IntDistribution
from optuna.trial import TrialState
from search_trials import (
    SPACE,
    is_in_space,
    loss,
    make_failed,
    make_history,
    make_random_trials,
    make_trial,
    propose_with,
    select,
)

from hpo.search.sampling.tpe import (
    BEST_OBSERVATIONS,
    MAX_OBSERVATIONS,
    STARTUP_TRIALS,
    TreeParzenEstimator,
    _prefer_cheapest,
)


def propose(trials, space=SPACE):
    return propose_with("tpe", trials, space)


def quasi_random(number):
    return propose_with("qmc", make_failed(number))


@pytest.mark.parametrize("state", [TrialState.RUNNING, TrialState.COMPLETE])
@pytest.mark.parametrize("number", [0, 1, 5, 9])
def test_tpe_starts_with_quasi_random_points(state, number):
    trials = [make_trial(propose([]), 0.5, state)] * number
    assert propose(trials) == quasi_random(number)


def test_tpe_needs_finished_trials():
    trials = make_history("tpe", STARTUP_TRIALS)
    running = [make_trial(trial.params, None, TrialState.RUNNING) for trial in trials]
    expected = quasi_random(2 * STARTUP_TRIALS - 1)
    assert propose([*trials[1:], *running]) == expected
    assert propose([*trials, *running[1:]]) != expected


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_paused_trial_counts_like_pruned_trial(sampler):
    trials = make_history(sampler, 20)
    proposals = []
    for state in (TrialState.RUNNING, TrialState.PRUNED):
        changed = [copy.copy(trial) for trial in trials]
        for trial in changed[::2]:
            trial.state, trial.intermediate_values = state, {1: 0.1, 4: trial.value}
            trial.value = None if state == TrialState.RUNNING else trial.value
        proposals.append(propose_with(sampler, changed))
    assert proposals[0] == proposals[1]


def test_cheapest_of_four_proposals_is_taken():
    proposals = [{"steps": steps} for steps in (300, 200, 400, 201, 150, 160, 170, 180, 500)]
    assert list(_prefer_cheapest(iter(proposals), "steps")) == [{"steps": 200}, {"steps": 150}, {"steps": 500}]


def test_each_proposal_is_taken_without_cost_parameter():
    proposals = [{"learning_rate": rate} for rate in (1e-3, 1e-2, 1e-1)]
    assert list(_prefer_cheapest(iter(proposals), None)) == proposals


def test_cost_parameter_outside_space_is_ignored():
    trials = make_history("tpe", 13)
    first, second = (next(TreeParzenEstimator(name).propose(SPACE, trials, 0)) for name in (None, "steps"))
    assert first == second
    assert next(TreeParzenEstimator("epochs").propose(SPACE, trials, 0))["epochs"] <= first["epochs"]


def test_every_third_trial_is_quasi_random():
    trials = make_history("tpe", 24)
    follows_tpe = [propose(trials[:number]) != quasi_random(number) for number in range(12, 24)]
    assert follows_tpe == [False, True, True] * 4


def test_tpe_is_function_of_trials():
    trials = make_history("tpe", 16)
    first = propose(trials)
    assert propose(trials) == first
    better = [make_trial(trial.params, loss(trial.params)) for trial in trials]
    assert propose(better) != first


def test_tpe_keeps_trials_unchanged():
    trials = make_history("tpe", 12)
    before = [(trial.number, trial.state, trial.value, trial.params) for trial in trials]
    propose(trials)
    assert [(trial.number, trial.state, trial.value, trial.params) for trial in trials] == before


@pytest.mark.parametrize("state", [TrialState.RUNNING, TrialState.PRUNED, TrialState.FAIL])
def test_tpe_accepts_trials_of_state(state):
    trials = make_history("tpe", 12)
    others = [make_trial(trial.params, 0.1, state) for trial in trials[:6]]
    assert is_in_space(propose([*trials, *others]), SPACE)


def mean_distance(sampler, seed):
    trials = make_history(sampler, 40, select("learning_rate", "hidden_size"), seed)[STARTUP_TRIALS:]
    return np.mean([math.sqrt(loss(trial.params)) for trial in trials])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tpe_prefers_good_region(seed):
    assert mean_distance("tpe", seed) < 0.7 * mean_distance("random", seed)


@pytest.mark.parametrize("offset", [-1.0, -1000.0])
def test_tpe_depends_on_order_of_values(offset):
    trials = make_history("tpe", 16)
    shifted = [make_trial(trial.params, trial.value + offset) for trial in trials]
    assert propose(shifted) == propose(trials)


def test_tpe_ignores_old_trials_except_best():
    trials = make_random_trials(MAX_OBSERVATIONS + 50)
    for trial in trials[:BEST_OBSERVATIONS]:
        trial.value += 1
    proposed = propose(trials)
    for trial in trials[BEST_OBSERVATIONS : BEST_OBSERVATIONS + 50]:
        trial.params["learning_rate"] = 2e-4
    assert propose(trials) == proposed
    for trial in trials[:BEST_OBSERVATIONS]:
        trial.params["learning_rate"] = 2e-4
    assert propose(trials) != proposed


def test_tpe_learns_from_old_running_trial():
    trials = make_random_trials(MAX_OBSERVATIONS + 50)
    proposed = propose(trials)
    running = make_trial(proposed, None, TrialState.RUNNING, number=0)
    assert propose([running, *trials[1:]]) != proposed


def test_tpe_ignores_failed_trials():
    failed = [make_trial(trial.params, None, TrialState.FAIL) for trial in make_random_trials(STARTUP_TRIALS)]
    assert propose(failed) == propose_with("qmc", failed)


@pytest.mark.parametrize("log", [False, True])
def test_tpe_stays_in_long_integer_range(log):
    space = SPACE | {"hidden_size": IntDistribution(32, 400, log=log)}
    # All of the best trials are at one end.
    trials = [
        make_trial(trial.params | {"hidden_size": 400}, trial.value, space=space) for trial in make_random_trials(40)
    ]
    sizes = {propose(trials[:number], space)["hidden_size"] for number in range(STARTUP_TRIALS, 40)}
    assert 380 < max(sizes) <= 400
    assert all(isinstance(size, int) for size in sizes)


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_learner_does_not_repeat_trial(sampler):
    space = {"hidden_size": IntDistribution(1, 40)}
    # The optimum is at the end, so the model proposes the values there again.
    trials = [make_trial({"hidden_size": size}, size, space=space) for size in range(25, 41)]
    sizes = set()
    for number in range(10):
        params = propose_with(sampler, trials, space)
        trials.append(make_trial(params, params["hidden_size"], space=space, number=16 + number))
        sizes.add(params["hidden_size"])
    assert len(sizes) == 10
    assert not sizes & set(range(25, 41))
