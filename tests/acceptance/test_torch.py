"""A study whose nets are PyTorch's."""

import subprocess
import sys

import pytest
from commands import TORCH, hpo, ledger, strict_json, write_study

pytest.importorskip("torch", reason="no PyTorch: pip install 'hpo[torch]'")

LOADED = """
import sys, hpo
predictor = hpo.load_predictor("model.npz")
X, y = hpo.load_split("tiny.toml")["test"]
print(predictor.score(X, y), "torch" in sys.modules)
"""


def test_a_study_with_pytorch_ends_as_any_other_and_its_predictor_does_without():
    study = write_study(TORCH.replace('"none"', '"asha"').replace("{ low = 5, high = 20 }", "{ choices = [50] }"))
    done = hpo("launch", study, "--workers", 2, "--no-dashboard")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    best = strict_json(done.stdout)
    assert best["params"]["backend"] == "torch"
    assert best["trials"]["complete"] >= 1
    assert best["trials"]["pruned"] >= 1
    assert best["metrics"]["validation_accuracy"] >= 0.85
    assert [number for number, _ in ledger()] == list(range(8))
    exported = hpo("export", study, "--model", "model.npz")
    assert (exported.returncode, exported.stdout) == (0, done.stdout), exported.stderr
    loaded = subprocess.run([sys.executable, "-W", "error", "-c", LOADED], capture_output=True, text=True, check=False)
    assert loaded.stdout == f"{best['metrics']['test_accuracy']} False\n", loaded.stderr
