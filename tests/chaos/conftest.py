"""The undisturbed study that disturbed studies are compared with."""

import os
import subprocess
import sys
from typing import Any

import pytest
from commands import SHORT, UNCONFIRMED, contents
from filelock import FileLock


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, worker_id, data_dir) -> list[tuple[Any, ...]]:
    """All trials of ``SHORT`` without a disturbance. The test processes share them."""
    shared = tmp_path_factory.getbasetemp()
    folder = (shared if worker_id == "master" else shared.parent) / "undisturbed"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            (folder / "short.toml").write_text(SHORT)
            command = [sys.executable, "-m", "hpo.launch", "short.toml", "--workers", "2", "--no-dashboard", "--quiet"]
            environment = os.environ | UNCONFIRMED | {"HPO_DATA_DIR": str(data_dir)}
            subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        return contents(f"sqlite:///{folder}/hpo.db")
