"""The undisturbed study that disturbed studies are compared with, and roles of PostgreSQL."""

import os
import subprocess
import sys
from typing import Any, NamedTuple

import pytest
from commands import SHORT, UNCONFIRMED, contents
from factories import execute, make_database
from filelock import FileLock
from sqlalchemy.engine import make_url


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


class Role(NamedTuple):
    """A role without special rights and its database; ``owner_url`` is the URL of the superuser."""

    name: str
    url: str
    owner_url: str


@pytest.fixture
def role(postgres) -> Role:
    """A role of PostgreSQL that is used by one test only."""
    owner_url = postgres.new_database()
    name = f"role_{make_url(owner_url).database}"
    postgres.execute(f"CREATE ROLE {name} LOGIN")
    execute(make_database(owner_url), f"GRANT ALL ON SCHEMA public TO {name}")
    return Role(name, owner_url.replace("hpo@", f"{name}@"), owner_url)
