"""Gaussian process: the contract of a sampler, and distinct trials. A proposal takes a second or more."""

import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import TrialState
from search_trials import SPACE, count_points, exhaust, is_in_space, make_failed, make_history, make_trial, propose_with

from hpo.search.sampling.samplers import make_sampler
from hpo.search.sampling.tpe import STARTUP_TRIALS
from hpo.testing.samplers import SamplerContract

pytest.importorskip("torch", reason="no PyTorch: pip install 'hpo[gp]'")
pytestmark = pytest.mark.slow


class TestGaussianProcess(SamplerContract):
    n_trials = STARTUP_TRIALS + 5

    def make_sampler(self):
        return make_sampler("gp")


def test_gp_proposes_points_of_space():
    trials = make_history("gp", STARTUP_TRIALS + 5)
    assert all(is_in_space(trial.params, SPACE) for trial in trials)
    quasi_random = [propose_with("qmc", make_failed(number)) for number in range(len(trials))]
    follows_model = [trial.params != point for trial, point in zip(trials, quasi_random, strict=True)]
    assert follows_model == [False] * STARTUP_TRIALS + [True] * 5


def test_gp_does_not_repeat_best_point():
    space = {"hidden_size": IntDistribution(3, 6), "batch_size": CategoricalDistribution([50, 100, 200])}
    states = [TrialState.COMPLETE] * 4 + [TrialState.PRUNED]
    assert count_points(exhaust("gp", 12, space, states, [0.1])) == 12


def test_gp_continues_elsewhere_than_tried_points():
    space = {"hidden_size": IntDistribution(1, 40)}
    # The optimum is at the end, so the model proposes the values there again.
    trials = [make_trial({"hidden_size": size}, size, space=space) for size in range(25, 41)]
    sizes = set()
    for number in range(10):
        params = propose_with("gp", trials, space)
        trials.append(make_trial(params, params["hidden_size"], space=space, number=16 + number))
        sizes.add(params["hidden_size"])
    assert len(sizes) == 10
    assert not sizes & set(range(25, 41))
