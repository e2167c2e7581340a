"""Samplers with eight workers: distinct trials, and the same trials as with one worker if a sampler does not learn."""

import json
from importlib.util import find_spec

import pytest
from commands import contents, hpo, write_study
from search_trials import make_trial, propose_with

from hpo.config.loader import load_config
from hpo.models.nets.hyperparameters import FLOAT_HYPERPARAMETERS
from hpo.search.space import build_space

# The space has 288 points, so that a sampler proposes points that have a trial.
NARROW = """
[study]
name = "tiny"
trials = {trials}
sampler = "{sampler}"
pruner = "none"

[data]
dataset = "digits"
split = {{ train = 200, validation = 50, test = 50 }}
pca = 0.8

[train]
regularization = 0.0

[space]
learning_rate = {{ choices = [0.01, 0.03, 0.1] }}
hidden_size   = {{ low = 4, high = 7 }}
epochs        = {{ low = 1, high = 3 }}
batch_size    = {{ low = 20, high = 27 }}
"""


def run_study(sampler, trials, workers=8):
    """Return the parameters of all trials of a launch."""
    study = write_study(NARROW.format(sampler=sampler, trials=trials))
    url = f"sqlite:///{sampler}-{workers}.db"
    done = hpo("launch", study, "--workers", workers, "--no-dashboard", "--quiet", "--storage", url)
    assert done.returncode == 0, done.stderr
    return [params for _, _, params, *_ in contents(url)]


def propose_in_order(sampler, trials):
    """Return the parameters that a single worker proposes."""
    config = load_config(write_study(NARROW.format(sampler=sampler, trials=trials)))
    space, proposed = build_space(config, FLOAT_HYPERPARAMETERS), []
    for number in range(trials):
        params = propose_with(sampler, proposed, space, config.study.seed)
        proposed.append(make_trial(params, 0.5, space=space, number=number))
    return [trial.params for trial in proposed]


def count_distinct(all_params):
    return len({json.dumps(params, sort_keys=True) for params in all_params})


@pytest.mark.parametrize(
    "sampler", ["random", *(pytest.param(name, marks=pytest.mark.slow) for name in ("random-grid", "qmc"))]
)
def test_unlearned_trials_do_not_depend_on_workers(sampler):
    params = run_study(sampler, trials=200)
    assert params == propose_in_order(sampler, trials=200)
    assert count_distinct(params) == 200


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_learned_trials_are_distinct(sampler):
    assert count_distinct(run_study(sampler, trials=200)) == 200


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torch") is None, reason="no PyTorch: pip install 'hpo[gp]'")
def test_trials_of_gp_are_distinct():
    # A proposal takes a second or more, and most proposals are discarded.
    assert count_distinct(run_study("gp", trials=15)) == 15


def test_single_worker_runs_proposed_trials():
    assert run_study("random-grid", trials=30, workers=1) == propose_in_order("random-grid", trials=30)
