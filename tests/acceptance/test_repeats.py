"""Two launches of one study give the same trials where docs/guarantees.md promises it."""

import json
from pathlib import Path

import pytest
from commands import TINY, contents, hpo, strict_json, write_study

pytestmark = pytest.mark.slow

# The study file leaves the sampler and the pruner at their defaults, tpe and asha.
DEFAULTS = TINY.replace('sampler = "random"\npruner = "none"\n', "").replace("trials = 8", "trials = 20")


def launched(name, text, *arguments, workers=1):
    """Return the trials of a new study and its result without its time."""
    url = f"sqlite:///{name}.db"
    done = hpo("launch", write_study(text), "--workers", workers, "--storage", url, "--no-dashboard", *arguments)
    assert done.returncode == 0, done.stderr
    return contents(url), strict_json(done.stdout) | {"created": ""}


def params_of(trials):
    return [params for _, _, params, *_ in trials]


def test_default_sampler_and_pruner_repeat_with_one_worker():
    assert "sampler" not in DEFAULTS
    first, second = (launched(name, DEFAULTS, "--confirm", 1) for name in ("first", "second"))
    assert first == second
    assert len(first[0]) == 20


@pytest.mark.parametrize("sampler", ["random", "random-grid", "qmc"])
def test_unlearned_trials_without_pruner_repeat_with_any_workers(sampler):
    text = TINY.replace('"random"', f'"{sampler}"')
    one, two = (launched(f"workers-{workers}", text, workers=workers) for workers in (1, 2))
    assert one == two


def test_unlearned_proposals_with_pruner_do_not_depend_on_workers():
    text = TINY.replace('pruner = "none"', 'pruner = "asha"')
    one, two = (launched(f"workers-{workers}", text, workers=workers) for workers in (1, 2))
    assert params_of(one[0]) == params_of(two[0])


@pytest.mark.parametrize("other_sampler", ["tpe", "qmc"])
def test_trial_repeats_given_its_parameters_and_number(other_sampler):
    trials, _ = launched("first", TINY, workers=2)
    Path("given.json").write_text(json.dumps(trials[0][2]))
    text = TINY.replace('"random"', f'"{other_sampler}"')
    other, _ = launched("other", text, "--enqueue", "given.json", "--trials", 3, workers=2)
    assert other[0] == trials[0]
