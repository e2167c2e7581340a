"""Imports of the backends in a process of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

import hpo
from hpo.config.study import StudyConfig

WARM_UP = """
import sys
from hpo.models.base import warm_up
from hpo.config.study import StudyConfig
for backend in ("numpy", "torch"):
    warm_up(StudyConfig.model_validate_json(sys.argv[1].replace("BACKEND", backend)))
    print(backend, "torch" in sys.modules, "hpo.models.trainer" in sys.modules)
"""


def test_torch_backend_alone_imports_torch():
    pytest.importorskip("torch", reason="no PyTorch: pip install 'hpo[torch]'")
    train = {"learning_rate": 0.1, "regularization": 0.0, "hidden_size": 4, "epochs": 9, "backend": "BACKEND"}
    config = StudyConfig.model_validate({"study": {"name": "s"}, "data": {"dataset": "digits"}, "train": train})
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WARM_UP, config.model_dump_json()],
        cwd=Path(hpo.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("numpy False False\ntorch True False\n", "")
