"""The benchmark of the overhead of a trial. Its figures depend on the machine and are not tested."""

import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, strict_json

from benchmarks.filled import SqliteFiles, filled_database
from benchmarks.overhead import Figures, measure_real
from hpo.config.loader import find_study, load_config
from hpo.data.prepared.cache import prepare

pytestmark = pytest.mark.slow

STORAGES = {"sqlite", "postgresql"}


def test_overhead_benchmark_compares_with_optuna():
    output = Path("figures.json").absolute()
    little = ["--trials", 0, "--rounds", 1, "--instant", 2, "--many", 100, "--script-rounds", 1, "--script-trials", 2]
    command = [sys.executable, "-m", "benchmarks.overhead", *map(str, little), "--json", output]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    figures = strict_json(output.read_text())
    assert figures["cpu_ms_per_trial"] == {"sqlite": None, "postgresql": None}
    assert figures["share"] is None
    assert figures["growth_10000_over_100"] > 0
    assert figures["finished"] == [100, 100]
    for name in ("stock_cpu_ms_per_trial", "instant_cpu_ms_per_trial"):
        assert set(figures[name]) == STORAGES
        assert all(figures[name][storage] == figures["spread"][storage][name]["median"] > 0 for storage in STORAGES)
    assert {spread["n"] for storage in STORAGES for spread in figures["spread"][storage].values()} == {1}
    for storage in STORAGES:
        cases = figures["scripts"][storage]
        assert [case["sampler"] for case in cases] == ["random", "random", "TPE", "TPE"]
        assert all(case["ratio"]["cpu"]["median"] > 0 for case in cases)
    assert figures["machine"]["cores"] > 0
    assert figures["versions"]["optuna"]


def test_overhead_of_real_trial_has_parts(tmp_path):
    config = load_config(find_study("digits"))
    url = filled_database(SqliteFiles(tmp_path), config, 100)
    figures = Figures(measure_real(url, config, prepare(config), 2), [], [], [])
    assert 0 < figures.share < 1
    for trial in figures.real:
        assert trial.epochs > 0
        assert 0 < trial.parts["propose"] < trial.overhead
        assert 0 < trial.between_steps < trial.training
        assert {trial.counts[part] for part in ("allocate", "propose", "parameters", "end")} == {1}
        assert trial.counts["report"] > 0
