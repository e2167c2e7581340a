"""The command ``python -m hpo.reproduce``: the experiments of the report next to its figures."""

import json
import signal
from pathlib import Path

import optuna
import pytest
from commands import ENDLESS, Gates, descendants, hpo, read_until, started, wait_for_end, write_study

from hpo.paper.experiments import BEST_PARAMS, LAYERS
from hpo.paper.names import EXPERIMENTS

TABLE = Path("results", "reproduction.md")


def rows_of(text: str) -> list[list[str]]:
    """Return the cells of the table without its heading."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == ["experiment", "the report", "ours", "how it was run", "difference, and the likely reason"]
    return lines[2:]


@pytest.mark.slow
def test_reproduce_without_images_prints_rows():
    done = hpo("reproduce", "--only", "toy", "--only", "gradients")
    assert done.returncode == 0, done.stderr
    assert TABLE.read_text() == done.stdout
    gradients, toy = rows_of(done.stdout)
    errors = [float(word.strip(",")) for word in gradients[2].replace("<br>", " ").split() if "e-" in word]
    assert len(errors) in (4, 8)
    assert max(errors) < 1e-6
    loss, loss_before = (float(word) for word in toy[2].split() if word.startswith("0."))
    assert loss < loss_before
    assert loss <= 0.02
    assert "study toy: 1 trial in sqlite:///hpo.db" in done.stderr


@pytest.mark.slow
@pytest.mark.cifar10
def test_quick_reproduction_trains_each_experiment_once():
    once = hpo("reproduce", "--quick", "--workers", 2, "--output", "quick.md")
    assert once.returncode == 0, once.stderr
    assert Path("quick.md").read_text() == once.stdout
    rows = rows_of(once.stdout)
    # The deep nets have two rows.
    assert len(rows) == len(EXPERIMENTS) + 1
    assert all(len(row) == 5 and all(row) for row in rows[1:])
    check_deep_nets(rows)
    (enqueued,) = trials_of("cifar10_report_quick")
    assert enqueued.params == BEST_PARAMS | {"epochs": 20}
    again = hpo("reproduce", "--quick", "--only", "best", "--only", "saved", "--output", "quick.md")
    assert rows_of(again.stdout) == [rows[5], rows[-1]]
    # No study was opened.
    (line,) = again.stderr.splitlines()
    assert line.endswith(" written to quick.md")


@pytest.mark.slow
def test_interrupted_reproduction_resumes():
    Path("studies").mkdir()
    # A study in this folder has precedence over the shipped study.
    write_study(ENDLESS.replace('"endless"', '"cifar10_random_grid"'), "studies/cifar10_random_grid.toml")
    arguments = ["reproduce", "--only", "random-grid", "--workers", 2]
    for _ in range(2):
        with Gates([0, 1]) as gates, started(*arguments, **gates.environment) as process:
            read_until(process, "2 running")
            children = descendants(process.pid)
            process.send_signal(signal.SIGINT)
            wait_for_end(process, children)
            stdout, stderr = process.communicate()
            assert (process.returncode, stdout) == (130, ""), stderr
            assert "0 of 8 trials are finished" in stderr
    assert not TABLE.exists()


def trials_of(study: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=study, storage="sqlite:///hpo.db").trials


def check_deep_nets(rows: list[list[str]]) -> None:
    """Check the figures of the deep nets against their trials."""
    trials = {
        (trial.params["hidden_layers"], trial.params["regularization"]): trial
        for trial in trials_of("cifar10_deep_quick")
    }
    for row, regularization in zip(rows[-3:-1], (1e-2, 1e-7), strict=True):
        values = [trials[json.dumps(layers), regularization].value for layers in LAYERS]
        assert f"NumPy: validation {', '.join(f'{value:.3f}' for value in values)}; test" in row[2]
    assert f"--trial {trials['[200, 150, 100]', 1e-7].number} --model" in rows[-1][3]


def test_quiet_reproduction_prints_no_progress():
    done = hpo("reproduce", "--only", "toy", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")


def test_unknown_experiment_exits_with_2():
    done = hpo("reproduce", "--only", "toys")
    assert (done.returncode, done.stdout) == (2, "")
    assert "'toys' is not one of 'gradients', 'toy', 'raw'" in done.stderr
