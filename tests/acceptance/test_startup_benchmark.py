"""The benchmark of the overhead of a launch. Its figures depend on the machine and are not tested."""

import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, strict_json

pytestmark = pytest.mark.slow


def test_startup_benchmark_writes_figures():
    output = Path("figures.json").absolute()
    settings = ["--rounds", "1", "--studies", "1", "--trials", "4", "--json", str(output)]
    command = [sys.executable, "-m", "benchmarks.startup", *settings]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    figures = strict_json(output.read_text())
    for name in ("first_step_over_imports", "digits_wall_over_training"):
        assert figures[name] > 0
        assert figures[name] == figures["spread"][name]["median"]
        assert name.replace("_", " ") in done.stdout
    assert set(figures["seconds"]) == {"imports", "first_step", "first_step_without_dashboard", "study", "training"}
    assert min(seconds["low"] for seconds in figures["seconds"].values()) > 0
    assert figures["machine"]["cores"] > 0
    assert figures["versions"]["numpy"]
