"""Fixtures for tests on real databases."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from workers import WorkerFactory

from hpo.storage import leases


@pytest.fixture(autouse=True)
def _server_has_been_up_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own may have started a moment ago."""
    monkeypatch.setattr(leases, "RESTART_GRACE_SECONDS", 0.0)


@pytest.fixture
def bench(storage_url: str, tmp_path: Path) -> Iterator[WorkerFactory]:
    """Studies in one database, and workers for them."""
    bench = WorkerFactory(storage_url, tmp_path)
    yield bench
    bench.close()
