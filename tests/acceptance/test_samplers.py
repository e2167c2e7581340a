"""Every sampler with eight workers: no two trials are the same, and who does not learn gives what one worker gets."""

import json
from importlib.util import find_spec

import pytest
from commands import contents, hpo, write_study

from hpo.config.study import load_config
from hpo.search.samplers import propose

# Only a few hundred combinations, so that a sampler meets those that it has proposed.
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


def params_of_trials(sampler, trials, workers=8):
    study = write_study(NARROW.format(sampler=sampler, trials=trials))
    url = f"sqlite:///{sampler}-{workers}.db"
    done = hpo("launch", study, "--workers", workers, "--no-dashboard", "--quiet", "--storage", url)
    assert done.returncode == 0, done.stderr
    return [params for _, _, params, *_ in contents(url)]


def distinct(params):
    return len({json.dumps(one, sort_keys=True) for one in params})


def one_after_the_other(sampler, trials):
    spec, proposed = load_config(write_study(NARROW.format(sampler=sampler, trials=trials))), []
    for _ in range(trials):
        proposed.append(Proposed(propose(spec, proposed)))
    return [one.params for one in proposed]


class Proposed:
    """All that a sampler that does not learn looks at."""

    def __init__(self, params):
        self.params = params


@pytest.mark.parametrize("sampler", ["random", "random-grid", "qmc"])
def test_samplers_that_do_not_learn_give_eight_workers_what_one_gets(sampler):
    params = params_of_trials(sampler, trials=200)
    assert params == one_after_the_other(sampler, trials=200)
    assert distinct(params) == 200


@pytest.mark.parametrize(("sampler", "trials"), [("tpe", 200), ("cmaes", 200)])
def test_samplers_that_learn_give_eight_workers_no_trial_twice(sampler, trials):
    assert distinct(params_of_trials(sampler, trials)) == trials


@pytest.mark.skipif(find_spec("torch") is None, reason="no PyTorch: pip install 'hpo[gp]'")
def test_a_gaussian_process_gives_eight_workers_no_trial_twice():
    # A proposal takes a second or more, and most are made in vain.
    assert distinct(params_of_trials("gp", trials=15)) == 15


def test_one_worker_gets_the_same():
    assert params_of_trials("random-grid", trials=30, workers=1) == one_after_the_other("random-grid", trials=30)
