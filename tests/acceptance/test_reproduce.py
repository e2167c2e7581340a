"""``python -m hpo.reproduce``: the experiments of the report, its figures beside ours."""

import json
import signal
from pathlib import Path

import optuna
import pytest
from commands import ENDLESS, descendants, hpo, outliving, read_until, started, write_study

from hpo.paper.experiments import BEST_PARAMS, LAYERS
from hpo.ui.cli import EXPERIMENTS

TABLE = Path("results", "reproduction.md")


def rows_of(text: str) -> list[list[str]]:
    """The cells of the table, without its heading."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == ["experiment", "the report", "ours", "how it was run", "difference, and the likely reason"]
    return lines[2:]


def test_what_needs_no_images_can_be_had_alone():
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


@pytest.mark.cifar10
def test_quick_has_a_row_for_each_experiment_and_trains_nothing_twice():
    once = hpo("reproduce", "--quick", "--workers", 2, "--output", "quick.md")
    assert once.returncode == 0, once.stderr
    assert Path("quick.md").read_text() == once.stdout
    rows = rows_of(once.stdout)
    assert len(rows) == len(EXPERIMENTS) + 1  # the deep nets have two
    assert all(len(row) == 5 and all(row) for row in rows[1:])
    check_deep_nets(rows)
    (enqueued,) = trials_of("cifar10_report_quick")
    assert enqueued.params == BEST_PARAMS | {"epochs": 20}
    again = hpo("reproduce", "--quick", "--only", "best", "--only", "saved", "--output", "quick.md")
    assert rows_of(again.stdout) == [rows[5], rows[-1]]
    assert again.stderr == "written to quick.md\n"  # and nothing of a study


def test_ctrl_c_leaves_what_the_same_command_goes_on_with():
    Path("studies").mkdir()
    # A study of this folder comes before the one that ships.
    write_study(ENDLESS.replace('"endless"', '"cifar10_random_grid"'), "studies/cifar10_random_grid.toml")
    for _ in range(2):
        with started("reproduce", "--only", "random-grid", "--workers", 2) as process:
            read_until(process, "2 running")
            children = descendants(process.pid)
            process.send_signal(signal.SIGINT)
            assert outliving(process, children) == []
            stdout, stderr = process.communicate()
            assert (process.returncode, stdout) == (130, ""), stderr
            assert "0 of 8 trials are finished; the same command goes on" in stderr
    assert not TABLE.exists()


def trials_of(study: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=study, storage="sqlite:///hpo.db").trials


def check_deep_nets(rows: list[list[str]]) -> None:
    """The figures are those of the trials with these layers and this regularization."""
    trials = {
        (one.params["hidden_layers"], one.params["regularization"]): one for one in trials_of("cifar10_deep_quick")
    }
    for row, regularization in zip(rows[-3:-1], (1e-2, 1e-7), strict=True):
        values = [trials[json.dumps(layers), regularization].value for layers in LAYERS]
        assert f"NumPy: validation {', '.join(f'{value:.3f}' for value in values)}; test" in row[2]
    assert f"--trial {trials['[200, 150, 100]', 1e-7].number} --model" in rows[-1][3]


def test_quiet_says_nothing():
    done = hpo("reproduce", "--only", "toy", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")


def test_an_experiment_that_is_not_there_is_wrong_usage():
    done = hpo("reproduce", "--only", "toys")
    assert (done.returncode, done.stdout) == (2, "")
    assert "'toys' is not one of 'gradients', 'toy', 'raw'" in done.stderr
