"""The example scripts under plain Python and under a launch."""

import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, hpo, strict_json

pytestmark = pytest.mark.slow

EXAMPLES = {"loop": "numpy", "pytorch_training": "torch", "sklearn_partial_fit": "sklearn", "boosting": "xgboost"}


def script(name: str) -> Path:
    """Return the path of an example, or skip the test if the package that the example needs is missing."""
    pytest.importorskip(EXAMPLES[name], reason=f"examples/{name}.py needs {EXAMPLES[name]}, which is not installed")
    return ROOT / "examples" / f"{name}.py"


def run_plainly(path: Path) -> str:
    run = [sys.executable, "-W", "error", path]
    return subprocess.run(run, check=True, capture_output=True, text=True).stdout


def test_every_example_has_a_test():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs_under_plain_python(name):
    assert run_plainly(script(name)).startswith("best: {")
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs_under_launch(name):
    done = hpo("launch", script(name), "--workers", 2, "--trials", 4, "--no-dashboard")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("best: {")
    best = strict_json(Path("results", name, "best.json").read_text())
    assert sum(best["trials"].values()) == 4


def test_one_worker_repeats_plain_python():
    done = hpo("launch", script("loop"), "--workers", 1, "--no-dashboard", "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stdout == run_plainly(script("loop"))
