"""Optuna's public storage tests, unmodified, on hpo's storage."""

from collections.abc import Iterator

import pytest
from factories import open_storage
from optuna.storages import RDBStorage
from optuna.testing.pytest_storages import StorageTestCase

from hpo.storage.database.connection import Database, close
from hpo.storage.leased_storage import LeasedStorage
from hpo.storage.tables import leftovers


@pytest.fixture
def storage(database: Database) -> Iterator[LeasedStorage]:
    rdb: RDBStorage = open_storage(database)
    leftovers.remove_leftovers(rdb.engine)
    yield LeasedStorage(rdb, database.timings)
    close(rdb)


class TestLeasedStorage(StorageTestCase):
    pass
