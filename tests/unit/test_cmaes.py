"""CMA-ES: its convergence, its generations and its restarts."""

import math
from itertools import islice

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState
from search_trials import SPACE, loss, make_history, make_trial, propose_with, select

from hpo.search.sampling.cmaes import CmaEs, _cma_state


def propose(trials, space=SPACE):
    return propose_with("cmaes", trials, space)


def test_cmaes_converges():
    trials = make_history("cmaes", 96, select("learning_rate", "hidden_size", "momentum"))
    losses = [loss(trial.params) for trial in trials]
    assert np.mean(losses[-16:]) < 0.1 * np.mean(losses[:16])


def test_cmaes_is_function_of_trials():
    trials = make_history("cmaes", 30)
    first = propose(trials)
    _cma_state.cache_clear()
    assert propose(trials) == first
    assert propose([make_trial(trial.params, trial.value) for trial in trials]) == first
    worse = [make_trial(trial.params, 1 - trial.value) for trial in trials]
    assert propose(worse) != first
    assert propose(trials) == first


def test_generation_waits_for_its_own_trials_only():
    trials = make_history("cmaes", 27)
    assert _cma_state(tuple(SPACE.items()), 0).population_size == 9
    running = make_trial(trials[4].params, None, TrialState.RUNNING)
    waiting = [*trials[:4], running, *trials[5:]]
    assert propose(waiting) != propose(trials)
    # A trial of the unfinished generation makes no difference.
    other = make_trial(trials[3].params, 0.0)
    assert propose([*trials[:3], other, running, *trials[5:]]) == propose(waiting)
    # A trial of a later generation does.
    other = make_trial(trials[20].params, 0.0)
    assert propose([*waiting[:20], other, *trials[21:]]) != propose(waiting)


def test_pruned_trial_counts_with_last_value():
    trials = make_history("cmaes", 9)
    pruned = [make_trial(trial.params, trial.value, TrialState.PRUNED) for trial in trials]
    assert propose(pruned) == propose(trials)


@pytest.mark.parametrize("offset", [0.0, -100.0])
def test_failed_trial_counts_as_worst(offset):
    trials = [make_trial(trial.params, trial.value + offset) for trial in make_history("cmaes", 9)]
    worst = min(trial.value for trial in trials)
    failed = [trial if trial.value > worst else make_trial(trial.params, None, TrialState.FAIL) for trial in trials]
    assert [trial.state for trial in failed].count(TrialState.FAIL) == 1
    assert propose(failed) == propose(trials)


def test_failed_generation_ranks_alike():
    trials = make_history("cmaes", 18)
    for value in (-5.0, 0.0, 5.0):
        failed = [make_trial(trial.params, None, TrialState.FAIL) for trial in trials[9:]]
        equal = [make_trial(trial.params, value) for trial in trials[9:]]
        assert propose([*trials[:9], *failed]) == propose([*trials[:9], *equal])


@pytest.mark.parametrize("offset", [-1.0, -1000.0])
def test_cmaes_depends_on_order_of_values(offset):
    trials = make_history("cmaes", 30)
    assert propose([make_trial(trial.params, trial.value + offset) for trial in trials]) == propose(trials)


def test_cmaes_restarts_elsewhere_after_convergence():
    space = select("learning_rate")
    narrow = [make_trial({"learning_rate": 1e-3 + 1e-9 * number}, 0.5, space=space) for number in range(76)]

    def rates(trials):
        points = islice(CmaEs().propose(space, trials, 0), 20)
        return [math.log10(point["learning_rate"]) for point in points]

    # After the last of 19 generations of 4 trials, all generations have the same value.
    assert np.std(rates(narrow[:72])) < 0.01
    assert np.std(rates(narrow)) > 0.2
    # The first start is at the center.
    assert abs(np.mean(rates(narrow)) + 2.5) > 0.01


def test_cmaes_has_no_points_without_choice():
    space = {"momentum": CategoricalDistribution([0.9, 0.9])}
    assert list(CmaEs().propose(space, [], 0)) == []
