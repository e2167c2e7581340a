"""A study whose nets are PyTorch's."""

import subprocess
import sys

import pytest
from commands import TORCH, hpo, ledger, strict_json, write_study

pytest.importorskip("torch", reason="no PyTorch: pip install 'hpo[torch]'")

EXPORTED = """
import sys
import hpo
from pathlib import Path
from hpo.export import export_study
from hpo.config.study import load_config
text, predictor = export_study(load_config(Path("tiny.toml")), Path("tiny.toml"), "sqlite:///hpo.db")
predictor.save(Path("model.npz"))
X, y = hpo.load_split("tiny.toml")["test"]
print(hpo.load_predictor("model.npz").score(X, y), "torch" in sys.modules)
print(text, end="")
"""


def test_a_study_with_pytorch_ends_as_any_other_and_its_predictor_does_without():
    study = write_study(TORCH.replace('"none"', '"asha"').replace("{ low = 5, high = 20 }", "{ choices = [30] }"))
    done = hpo("launch", study, "--workers", 2, "--no-dashboard")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    best = strict_json(done.stdout)
    assert best["params"]["backend"] == "torch"
    assert best["versions"]["torch"]
    assert best["trials"]["complete"] >= 1
    assert best["trials"]["pruned"] >= 1
    assert best["metrics"]["validation_accuracy"] >= 0.85
    assert [number for number, _ in ledger()] == list(range(8))
    command = [sys.executable, "-W", "error", "-c", EXPORTED]
    exported = subprocess.run(command, capture_output=True, text=True, check=False)
    assert exported.stdout == f"{best['metrics']['test_accuracy']} False\n{done.stdout}", exported.stderr
