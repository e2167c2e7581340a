"""``python -m hpo.launch``, as a person runs it."""

import json
import platform
import signal
import urllib.request
from importlib.metadata import version
from pathlib import Path

import pytest
from commands import ENDLESS, hpo, ledger, read_until, started, strict_json, write_study

from benchmarks.postgres import free_port

KEYS = [
    "schema_version", "study", "trial", "params", "metrics", "confirmation", "trials", "data", "seed", "created",
    "versions",
]  # fmt: skip
PARAMS = ["learning_rate", "regularization", "hidden_size", "epochs"]
PACKAGES = ["hpo", "optuna", "numpy", "scikit-learn", "sqlalchemy"]
VERSIONS = {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}
METRICS = ["train_accuracy", "validation_accuracy", "test_accuracy", "train_loss"]


def test_a_study_ends_with_its_best_parameters_on_stdout_and_in_the_output_folder():
    done = hpo("launch", write_study(), "--workers", 3, "--no-dashboard", "--output", "out")
    assert done.returncode == 0, done.stderr
    best = strict_json(done.stdout)
    assert list(best) == KEYS
    assert list(best["params"])[:4] == PARAMS
    assert list(best["metrics"]) == METRICS
    assert best["trials"] == {"complete": 8, "pruned": 0, "failed": 0}
    assert best["data"]["pca"]["variance"] == 0.9
    assert best["versions"] == VERSIONS
    assert Path("out/best.json").read_text() == done.stdout
    assert ledger() == [(number, "COMPLETE") for number in range(8)]
    assert "8/8 trials: 8 complete" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_finished_study_starts_no_trial_and_a_higher_number_adds():
    study = write_study()
    first = hpo("launch", study, "--workers", 2, "--no-dashboard")
    again = hpo("launch", study, "--workers", 2, "--no-dashboard")
    assert again.returncode == 0
    assert again.stdout == first.stdout
    assert len(ledger()) == 8
    more = hpo("launch", study, "--workers", 2, "--no-dashboard", "--trials", 11)
    assert more.returncode == 0, more.stderr
    assert ledger() == [(number, "COMPLETE") for number in range(11)]
    assert strict_json(more.stdout)["trials"]["complete"] == 11


def test_two_launches_of_one_second_share_a_fresh_database():
    study = write_study()
    with (
        started("launch", study, "--workers", 2, "--trials", 20, "--output", "a", "--no-dashboard") as one,
        started("launch", study, "--workers", 2, "--trials", 20, "--output", "b", "--no-dashboard") as other,
    ):
        outputs = [process.communicate() for process in (one, other)]
        assert [one.returncode, other.returncode] == [0, 0], outputs
    assert ledger() == [(number, "COMPLETE") for number in range(20)]
    assert outputs[0][0] == outputs[1][0]


def test_postgresql_serves_as_well(postgres):
    done = hpo("launch", write_study(), "--workers", 2, "--no-dashboard", HPO_STORAGE=postgres.new_database())
    assert done.returncode == 0, done.stderr
    assert strict_json(done.stdout)["trials"]["complete"] == 8


def test_the_learning_samplers_and_the_pruners_end_the_budget_too():
    text = write_study().read_text()
    for sampler, pruner in (("tpe", "asha"), ("qmc", "hyperband"), ("tpe", "median")):
        changed = text.replace('"random"', f'"{sampler}"').replace('"none"', f'"{pruner}"')
        study = write_study(changed.replace('"tiny"', f'"{sampler}-{pruner}"'))
        done = hpo("launch", study, "--workers", 2, "--trials", 14, "--no-dashboard", "--quiet", "--storage",
                   f"sqlite:///{sampler}-{pruner}.db")  # fmt: skip
        assert done.returncode == 0, done.stderr
        states = ledger(f"{sampler}-{pruner}.db")
        assert [number for number, _ in states] == list(range(14))
        assert {state for _, state in states} <= {"COMPLETE", "PRUNED"}


def test_the_dashboard_lists_the_study_while_it_runs_and_goes_with_it():
    # A port of its own: another test's dashboard could take the usual one as soon as it is free.
    with started("launch", write_study(ENDLESS), "--workers", 1, "--port", free_port()) as process:
        address = read_until(process, "dashboard:").split()[-1]
        read_until(process, "running")
        with urllib.request.urlopen(f"{address}/api/studies") as response:
            studies = json.load(response)["study_summaries"]
        assert [study["study_name"] for study in studies] == ["endless"]
        process.send_signal(signal.SIGINT)
        assert "python -m hpo.dashboard" in process.communicate()[1]
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address)


def test_two_dashboards_take_two_ports():
    study = write_study(ENDLESS)
    with started("launch", study, "--workers", 1) as one:
        first = read_until(one, "dashboard:").split()[-1]
        port = first.rpartition(":")[2]
        with started("launch", study, "--workers", 1, "--port", port) as other:
            assert read_until(other, "is taken").startswith(f"port {port}")
            assert read_until(other, "dashboard:").split()[-1] != first


def test_an_environment_twin_is_overruled_by_its_flag():
    done = hpo("launch", write_study(), "--no-dashboard", "--trials", 3, HPO_TRIALS="5", HPO_WORKERS="2")
    assert done.returncode == 0, done.stderr
    assert len(ledger()) == 3


def test_the_time_that_was_given_ends_the_launch_in_peace():
    text = ENDLESS.replace("{ low = 10000000, high = 10000000 }", "{ choices = [5, 10000000] }")
    done = hpo("launch", write_study(text), "--workers", 2, "--timeout", "12s", "--no-dashboard", "--confirm", 3)
    assert done.returncode == 0, done.stderr
    assert "the time is up" in done.stderr
    assert "confirmation of" not in done.stderr
    assert strict_json(done.stdout)["confirmation"] is None
    assert strict_json(done.stdout)["params"]["epochs"] == 5
    states = ledger()
    assert len([state for _, state in states if state == "RUNNING"]) == 2


def test_quiet_says_nothing_but_the_result():
    done = hpo("launch", write_study(), "--no-dashboard", "--quiet", "--workers", 2)
    assert done.returncode == 0
    assert done.stderr == ""
    strict_json(done.stdout)


@pytest.mark.parametrize("arguments", [["--workers", "0"], ["--trials", "many"], ["--timeout", "5"], ["--bogus"]])
def test_wrong_usage_is_2(arguments):
    done = hpo("launch", *arguments)
    assert done.returncode == 2
    assert "Usage:" in done.stderr
    assert done.stdout == ""
