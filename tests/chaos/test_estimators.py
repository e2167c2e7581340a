"""Workers that are killed in the middle of an estimator's training."""

import os
import signal

import pytest
from commands import Gates, contents, count_resumable, hpo, leases, started, wait_until, workers, write_study
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
