"""Databases, studies and trial stores for tests."""

from collections.abc import Mapping
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import RDBStorage
from sqlalchemy.exc import OperationalError

from hpo.config.study import StudyConfig
from hpo.storage.database.connection import Database, StorageTimings
from hpo.storage.study import Study, open_or_create_study
from hpo.storage.tables import schema
from hpo.storage.tables.leases import Lease
from hpo.storage.tables.weight_retention import KEPT_WEIGHTS
from hpo.storage.trial_store import TrialStore

HOUR_S = 3600.0
SPACE: dict[str, BaseDistribution] = {"learning_rate": FloatDistribution(1e-4, 1e-1, log=True)}
PARAMS = {"learning_rate": 1e-2}


def make_database(url: str, **timings: Any) -> Database:
    """Return a database of this URL that accepts connections.

    Its leases have no restart grace, because the tests' server may have started a moment ago.
    """
    database = Database.parse(url, StorageTimings(**{"restart_grace_s": 0.0, **timings}))
    database.check_reachable()
    return database


def make_storage_config(name: str = "s", **study: object) -> StudyConfig:
    """Return the config of a study whose trials are never trained."""
    return StudyConfig.model_validate(
        {
            "study": {"name": name, "trials": 10, **study},
            "data": {"dataset": "digits"},
            "train": {"epochs": 5},
            "space": {
                "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
                "regularization": {"low": 1e-7, "high": 1e-2, "log": True},
                "hidden_size": {"low": 32, "high": 400},
            },
        }
    )


def open_study(database: Database, config: StudyConfig | None = None, fingerprint: str = "data") -> Study:
    """Open or create a study. The test closes it."""
    return open_or_create_study(database, config or make_storage_config(), fingerprint, "validation accuracy")


def open_storage(database: Database) -> RDBStorage:
    """Open Optuna's storage with hpo's tables. The test closes it."""
    with database.creation_lock():
        rdb = database.open()
        schema.create_tables(rdb.engine)
    return rdb


def make_store(
    rdb: RDBStorage, name: str = "s", timings: StorageTimings | None = None, kept_weights: int = KEPT_WEIGHTS
) -> TrialStore:
    """Return the trials of a study that is created if it is missing."""
    study = optuna.create_study(study_name=name, storage=rdb, direction="maximize", load_if_exists=True)
    study.set_user_attr(schema.STUDY_KEY, name)
    timings = timings or StorageTimings(restart_grace_s=0.0)
    return TrialStore(rdb.engine, rdb.get_study_id_from_name(name), name, name, timings, kept_weights)


def create_trial(
    store: TrialStore, number: int = 0, owner: str = "worker_a", params: Mapping[str, Any] | None = None
) -> Lease:
    """Create a trial with one parameter."""
    store.raise_budget(number + 1)
    lease = store.allocate(owner)
    assert lease is not None
    assert lease.number == number
    store.write_params(lease, PARAMS if params is None else params, SPACE, distinct=False)
    return lease


def execute(database: Database, statement: str) -> list[tuple[object, ...]]:
    """Execute a statement in the database and return its rows."""
    engine = sa.create_engine(database._url)
    try:
        with engine.begin() as connection:
            result = connection.exec_driver_sql(statement)
            return [tuple(row) for row in result] if result.returns_rows else []
    finally:
        engine.dispose()


def expire_leases(database: Database) -> None:
    """Let each lease in the database expire."""
    execute(database, f"UPDATE hpo_leases SET expires = expires - {2 * HOUR_S}")


def make_outage(message: str = "the connection was lost") -> OperationalError:
    """Return the error of a statement during an outage."""
    return OperationalError("SELECT 1", {}, ConnectionError(message))
