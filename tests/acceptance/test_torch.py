"""Study with the backend in PyTorch."""

import subprocess
import sys

import pytest
from commands import TORCH, hpo, ledger, strict_json, write_study

pytest.importorskip("torch", reason="no PyTorch: pip install 'hpo[torch]'")

EXPORT = """
import sys
import hpo
from pathlib import Path
from hpo.config.loader import load_config
from hpo.storage.database.connection import Database
from hpo.tuning.result import export_study, to_json
parameters, predictor = export_study(load_config(Path("tiny.toml")), Database.parse("sqlite:///hpo.db"))
predictor.save(Path("model.npz"))
X, y = hpo.load_split("tiny.toml")["test"]
print(hpo.load_predictor("model.npz").score(X, y), "torch" in sys.modules)
print(to_json(parameters), end="")
"""


@pytest.mark.slow
def test_study_with_torch_exports_predictor_without_torch():
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
    command = [sys.executable, "-W", "error", "-c", EXPORT]
    exported = subprocess.run(command, capture_output=True, text=True, check=False)
    assert exported.stdout == f"{best['metrics']['test_accuracy']} False\n{done.stdout}", exported.stderr
