"""Fixtures for tests on real databases."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from factories import make_database, open_storage, open_study
from optuna.storages import RDBStorage

from hpo.storage.database.connection import Database, close
from hpo.storage.study import Study

if TYPE_CHECKING:
    from workers import WorkerFactory


@pytest.fixture
def database(storage_url: str) -> Database:
    """Return an empty database."""
    return make_database(storage_url)


@pytest.fixture
def rdb(database: Database) -> Iterator[RDBStorage]:
    """Yield Optuna's storage with hpo's tables."""
    rdb = open_storage(database)
    yield rdb
    close(rdb)


@pytest.fixture
def stored_study(database: Database) -> Iterator[Study]:
    """Yield an open study without trials."""
    with open_study(database) as study:
        yield study


@pytest.fixture
def bench(storage_url: str, tmp_path: Path) -> Iterator["WorkerFactory"]:
    """Yield a factory of studies in one database and of workers for them."""
    from workers import WorkerFactory

    bench = WorkerFactory(storage_url, tmp_path)
    yield bench
    bench.close()
