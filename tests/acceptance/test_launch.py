"""The command ``python -m hpo.launch``."""

import json
import platform
import signal
import urllib.request
from importlib.metadata import version
from pathlib import Path

import pytest
from commands import ENDLESS, Gates, hpo, ledger, read_until, started, strict_json, write_study

from benchmarks.postgres import free_port

KEYS = [
    "schema_version",
    "study",
    "trial",
    "params",
    "metrics",
    "confirmation",
    "trials",
    "data",
    "seed",
    "created",
    "versions",
    "metric",
    "validation",
]
PARAMS = ["learning_rate", "regularization", "hidden_size", "epochs"]
PACKAGES = ["hpo", "optuna", "numpy", "scikit-learn", "sqlalchemy"]
VERSIONS = {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}
METRICS = ["train_accuracy", "validation_accuracy", "test_accuracy", "train_loss"]


def test_launch_prints_and_writes_best_parameters():
    done = hpo("launch", write_study(), "--workers", 3, "--no-dashboard", "--output", "out")
    assert done.returncode == 0, done.stderr
    best = strict_json(done.stdout)
    assert list(best) == KEYS
    assert list(best["params"])[:4] == PARAMS
    assert list(best["metrics"])[: len(METRICS)] == METRICS
    assert best["trials"] == {"complete": 8, "pruned": 0, "failed": 0, "unfinished": 0}
    assert best["data"]["pca"]["variance"] == 0.9
    assert best["versions"] == VERSIONS
    assert Path("out/best.json").read_text() == done.stdout
    assert ledger() == [(number, "COMPLETE") for number in range(8)]
    assert "8/8 trials finished: 8 complete" in done.stderr
    assert "Traceback" not in done.stderr


def test_finished_study_adds_trials_for_higher_budget():
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


def test_two_launches_share_new_database():
    study = write_study()
    with (
        started("launch", study, "--workers", 2, "--trials", 20, "--output", "a", "--no-dashboard") as first,
        started("launch", study, "--workers", 2, "--trials", 20, "--output", "b", "--no-dashboard") as second,
    ):
        outputs = [process.communicate() for process in (first, second)]
        assert [first.returncode, second.returncode] == [0, 0], outputs
    assert ledger() == [(number, "COMPLETE") for number in range(20)]
    assert outputs[0][0] == outputs[1][0]


def test_launch_on_postgresql_finishes(postgres):
    done = hpo("launch", write_study(), "--workers", 2, "--no-dashboard", HPO_STORAGE=postgres.new_database())
    assert done.returncode == 0, done.stderr
    assert strict_json(done.stdout)["trials"]["complete"] == 8


@pytest.mark.slow
def test_learning_samplers_and_pruners_finish_budget():
    text = write_study().read_text()
    for sampler, pruner in (("tpe", "asha"), ("qmc", "hyperband"), ("tpe", "median")):
        changed = text.replace('"random"', f'"{sampler}"').replace('"none"', f'"{pruner}"')
        study = write_study(changed.replace('"tiny"', f'"{sampler}-{pruner}"'))
        done = hpo(
            "launch",
            study,
            "--workers",
            2,
            "--trials",
            14,
            "--no-dashboard",
            "--quiet",
            "--storage",
            f"sqlite:///{sampler}-{pruner}.db",
        )
        assert done.returncode == 0, done.stderr
        states = ledger(f"{sampler}-{pruner}.db")
        assert [number for number, _ in states] == list(range(14))
        assert {state for _, state in states} <= {"COMPLETE", "PRUNED"}


def test_dashboard_ends_with_launch():
    # Not the default port, which the dashboard of another test could take as soon as it is free.
    arguments = ["launch", write_study(ENDLESS), "--workers", 1, "--port", free_port()]
    with Gates([0]) as gates, started(*arguments, **gates.environment) as process:
        address = read_until(process, "dashboard:").split()[-1]
        read_until(process, "running")
        with urllib.request.urlopen(f"{address}/api/studies") as response:
            studies = json.load(response)["study_summaries"]
        assert [study["study_name"] for study in studies] == ["endless"]
        process.send_signal(signal.SIGINT)
        assert "python -m hpo.dashboard" in process.communicate()[1]
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address)


def test_second_dashboard_takes_free_port():
    study = write_study(ENDLESS)
    with Gates([0, 1]) as gates, started("launch", study, "--workers", 1, **gates.environment) as first:
        address = read_until(first, "dashboard:").split()[-1]
        port = address.rpartition(":")[2]
        with started("launch", study, "--workers", 1, "--port", port, **gates.environment) as second:
            assert f"port {port}" in read_until(second, "is taken")
            assert read_until(second, "dashboard:").split()[-1] != address


def test_flag_overrides_environment():
    done = hpo("launch", write_study(), "--no-dashboard", "--trials", 3, HPO_TRIALS="5", HPO_WORKERS="2")
    assert done.returncode == 0, done.stderr
    assert len(ledger()) == 3


def test_timeout_stops_launch_and_exports_best():
    study = write_study()
    arguments = ["launch", study, "--workers", 2, "--no-dashboard"]
    first = hpo(*arguments, "--trials", 1)
    assert first.returncode == 0, first.stderr
    # The other trials wait at their gates until the time is up, on a machine of any speed.
    with Gates(range(1, 8)) as gates:
        done = hpo(*arguments, "--timeout", "5s", "--confirm", 3, **gates.environment)
    assert done.returncode == 0, done.stderr
    assert "the time is up" in done.stderr
    assert "confirmation of" not in done.stderr
    assert strict_json(done.stdout)["confirmation"] is None
    assert strict_json(done.stdout)["params"] == strict_json(first.stdout)["params"]
    states = ledger()
    assert states == [(0, "COMPLETE"), *((number, "RUNNING") for number in range(1, len(states)))]
    assert len(states) <= 3


def test_quiet_prints_only_result():
    done = hpo("launch", write_study(), "--no-dashboard", "--quiet", "--workers", 2)
    assert done.returncode == 0
    assert done.stderr == ""
    strict_json(done.stdout)


@pytest.mark.parametrize("arguments", [["--workers", "0"], ["--trials", "many"], ["--timeout", "5"], ["--bogus"]])
def test_wrong_usage_exits_with_2(arguments):
    done = hpo("launch", *arguments)
    assert done.returncode == 2
    assert "Usage:" in done.stderr
    assert done.stdout == ""
