"""The output of the benchmarks. Their figures depend on the machine and are not tested."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import ROOT, strict_json

pytestmark = pytest.mark.slow

RATIOS = ["step_over_products", "torch_over_step", "sklearn_over_step"]


def measured(name: str, *arguments: object) -> dict:
    """Run a benchmark, which prints nothing on stderr, and return its figures."""
    output = Path("figures.json").absolute()
    command = [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments), "--json", output]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    figures = strict_json(output.read_text())
    assert figures["machine"]["cores"] > 0
    assert figures["versions"]["numpy"]
    return figures


def test_step_benchmark_compares_libraries():
    figures = measured("step", "--rounds", 1, "--hidden", 32, "--hidden", 128, "--rows", 400)
    missing = set() if find_spec("torch") else {"torch_over_step"}
    spreads = figures["spread"]
    for part, spread in (figures, spreads["momentum_0"]), (figures["momentum_0.9"], spreads["momentum_0.9"]):
        assert {name for name in RATIOS if part[name] == {"32": None, "128": None}} == missing
        for name in set(RATIOS) - missing:
            assert set(part[name]) == {"32", "128"}
            assert min(part[name].values()) > 0
            assert {value["n"] for value in spread[name].values()} == {1}


@pytest.mark.cifar10
def test_scaling_benchmark_compares_two_processes():
    figures = measured("scaling", "--rounds", 1, "--seconds", 0.2)
    for name in ("two_over_one", "products_two_over_one", "memory_per_worker_mb", "proportional_set_size_mb"):
        spread = figures["spread"][name]
        assert 0 < spread["low"] <= figures[name] <= spread["high"]
        assert spread["n"] > 0


def test_search_benchmark_compares_searches():
    ours, report, stock = "tpe + asha", "random-grid + none", "Optuna's TPE + Hyperband"
    figures = measured("search", "--seeds", 2, "--only", ours, "--only", report, "--only", stock)
    for key in ("compute_random_grid_over_ours", "compute_stock_hyperband_over_ours"):
        assert figures[key].keys() == {"ratio", "low", "high", "n"}
        assert figures[key]["low"] >= 0
        assert figures[key]["n"] == 2
    assert set(figures["studies"]) == {ours, report, stock}
    for study in figures["studies"].values():
        assert study["n"] == 2
        assert all(0 <= low <= median <= high <= 1 for low, median, high in study["best"].values())


def test_search_benchmark_refuses_unknown_search():
    command = [sys.executable, "-m", "benchmarks.search", "--only", "luck"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no luck; there are tpe + asha" in done.stderr


def test_table_benchmark_continues_from_its_file():
    output = Path("tables.json").absolute()
    command = [sys.executable, "-m", "benchmarks.tables", "--tables", "iris", "--json", output, "--trials", "2"]

    def run(contestants, seeds):
        arguments = ["--contestants", contestants, "--seeds", str(seeds), "--seconds", "60"]
        done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout, strict_json(output.read_text())["records"]

    _, first = run("hpo mlp,linear", 1)
    assert [record["contestant"] for record in first] == ["hpo mlp", "linear"]
    assert first[0]["trials"] == 2
    assert all(0.5 < record["value"] <= 1 for record in first)
    table, second = run("hpo mlp,linear,svm", 1)
    assert second[:2] == first
    assert "| table (metric) | hpo mlp | linear | svm |" in table
