"""Workers that are killed in the middle of an estimator's training."""

import os
import signal

import pytest
from commands import (
    Gates,
    contents,
    count_paused,
    count_resumable,
    hpo,
    leases,
    read_until,
    started,
    wait_until,
    wait_until_gone,
    workers,
    write_study,
)
from estimator_studies import SEVERAL, write_table

URL = "sqlite:///hpo.db"
BOOSTED = "HistGradientBoostingClassifier"


@pytest.mark.slow
@pytest.mark.parametrize("forest", ["RandomForestClassifier", BOOSTED])
def test_killed_workers_change_no_value(forest):
    write_table()
    text = SEVERAL.replace('"random"', '"random"\npruner = "none"').replace("RandomForestClassifier", forest)
    if forest == BOOSTED:
        text = text.replace("n_estimators", "max_iter").replace("bootstrap    = { choices = [true, false] }", "")
    study = write_study(text, "several.toml")
    arguments = ["launch", study, "--no-dashboard", "--workers", 3]
    undisturbed = hpo(*arguments, "--storage", "sqlite:///undisturbed.db")
    assert undisturbed.returncode == 0, undisturbed.stderr
    with Gates(range(3)) as gates, started(*arguments, **gates.environment) as process:
        wait_until(process, lambda: gates.reached == {0, 1, 2} and count_resumable(URL) == 3)
        for pid in workers(process.pid):
            os.kill(pid, signal.SIGKILL)
        wait_until(process, lambda: min(lease.attempt for lease in leases()) > 1)
        gates.open(0, 1, 2)
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert stderr.count("killed by SIGKILL") == 3
    assert contents(URL, "several") == contents("sqlite:///undisturbed.db", "several")


@pytest.mark.slow
def test_killed_workers_lose_no_paused_trial():
    write_table()
    unpruned = SEVERAL.replace('"random"', '"random"\npruner = "none"').replace('"several"', '"whole"')
    done = hpo("launch", write_study(unpruned, "whole.toml"), "--no-dashboard", "--workers", 2)
    assert done.returncode == 0, done.stderr
    whole = contents(URL, "whole")
    study, last = write_study(SEVERAL.replace('"several"', '"pruned"'), "pruned.toml"), len(whole) - 1
    arguments = ["launch", study, "--no-dashboard", "--workers", 2, "--storage", "sqlite:///pruned.db"]
    with Gates([last]) as gates, started(*arguments, **gates.environment) as process:
        read_until(process, "running")
        for kill in range(3):
            wait_until(process, lambda least=kill: count_paused("sqlite:///pruned.db") >= least)
            found: list[int] = []
            wait_until(process, lambda found=found: found.extend(workers(process.pid)) or found)
            os.kill(found[0], signal.SIGKILL)
            wait_until_gone(found[:1])
        gates.open(last)
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert stderr.count("killed by SIGKILL") == 3
    for trial, undisturbed in zip(contents("sqlite:///pruned.db", "pruned"), whole, strict=True):
        number, _, params, curve, value, _ = trial
        # The models report at the same steps without a pruner.
        assert curve == {step: accuracy for step, accuracy in undisturbed[3].items() if step <= max(curve)}
        assert (number, params, value) == (undisturbed[0], undisturbed[2], undisturbed[3][max(curve)])
