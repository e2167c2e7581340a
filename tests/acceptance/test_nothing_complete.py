"""A study without a complete trial says why, and what to do."""

import pytest
from commands import ENDLESS, TINY, hpo, write_study

pytestmark = pytest.mark.slow

DIVERGING = TINY.replace("low = 1e-3, high = 1e-1", "low = 1e6, high = 1e9")
DIVERGED = "hpo: all 4 trials diverged (loss nan): lower the learning rate, under another study.name"


def launch_in_vain(text, *arguments):
    """Return the last line of a launch and of an export, which both fail."""
    study = write_study(text)
    launched = hpo("launch", study, "--workers", 2, "--no-dashboard", *arguments)
    exported = hpo("export", study)
    for done in (launched, exported):
        assert (done.returncode, done.stdout) == (1, "")
        assert "Traceback" not in done.stderr
    return launched.stderr.splitlines()[-1], exported.stderr.rstrip("\n")


def test_diverged_trials_are_named():
    assert launch_in_vain(DIVERGING, "--trials", 4) == (DIVERGED, DIVERGED)


def test_diverged_trials_of_unscaled_data_are_named():
    text = DIVERGING.replace("pca = 0.9", 'scale = "none"')
    line, _ = launch_in_vain(text, "--trials", 1)
    assert line.startswith("hpo: the only trial diverged (loss ")
    assert line.endswith("lower the learning rate, and scale the features (data.scale), under another study.name")


def test_trials_over_their_timeout_are_named():
    line, exported = launch_in_vain(ENDLESS, "--trials", 2, "--trial-timeout", "1s")
    assert exported.startswith("hpo: all 2 trials were over their --trial-timeout: raise --trial-timeout")
    assert line == exported
