"""Versions of Optuna's tables and of hpo's."""

import sqlite3
from pathlib import Path

import pytest
from factories import execute, make_database, make_storage_config, open_study
from optuna.storages._rdb import models
from optuna.trial import TrialState

from hpo.errors import StorageError
from hpo.storage.study import load_study
from hpo.storage.tables.leases import ActiveTrial, InterruptionStats
from hpo.storage.trial_store import TrialOutcome

# Dump of a SQLite file that commit 3f715fc wrote.
OLD_DATABASE = Path(__file__).parent / "database_3f715fc.sql"


@pytest.mark.parametrize("open_it", [open_study, lambda database: load_study(database, make_storage_config())])
def test_other_optuna_schema_is_refused(database, monkeypatch, open_it):
    open_study(database).close()
    monkeypatch.setattr(models, "SCHEMA_VERSION", 13)
    with pytest.raises(
        StorageError, match=r"^Optuna 5\.0\.\d+ is not supported: .*version 13, .*version 12; .*'optuna>=5\.0,<5\.1'$"
    ):
        open_it(database)


@pytest.mark.parametrize("open_it", [open_study, lambda database: load_study(database, make_storage_config())])
def test_other_lease_columns_are_refused(database, open_it):
    open_study(database).close()
    execute(database, "ALTER TABLE hpo_leases DROP COLUMN died_after")
    with pytest.raises(StorageError, match="was used by another version of hpo; use another --storage"):
        open_it(database)


def test_old_database_resumes(tmp_path):
    path = tmp_path / "hpo.db"
    restore(OLD_DATABASE, path)
    config = make_storage_config()
    with open_study(make_database(f"sqlite:///{path}"), config, "0123456789abcdef") as study:
        store, trials = study.store, study.trials
        assert [trial.state for trial in trials] == [
            TrialState.COMPLETE,
            TrialState.PRUNED,
            TrialState.RUNNING,
            TrialState.RUNNING,
            TrialState.FAIL,
        ]
        assert (trials[0].value, trials[0].params["hidden_size"]) == (0.75, 40)
        assert (store.weights(0), store.retained_trials()) == (b"weights", [0])
        assert store.refresh().paused == {3: 1}
        assert store.active_trials() == [
            ActiveTrial(2, epoch=3, attempt=2, owned=False),
            ActiveTrial(3, epoch=2, attempt=1, owned=False),
        ]
        assert store.interruption_stats() == InterruptionStats(resumed=1, epochs_lost=5)
        lease = store.claim("worker_a")
        assert (lease.number, lease.attempt, lease.epoch, lease.checkpoint) == (2, 3, 3, b"after epoch 3")
        assert (lease.crashes_at_same_step, lease.crash_epoch, lease.crash_step) == (2, 4, 7)
        assert (lease.crashes_since_progress, lease.error) == (1, "killed by SIGSEGV")
        assert store.record_death("worker_a", "killed by SIGSEGV", 4, 7) == [2]
        assert store.claim("worker_b").crashes_at_same_step == 3
        promoted = store.resume("worker_c", 3, 1)
        assert promoted.checkpoint == b"after epoch 2"
        store.finish(promoted, TrialOutcome(TrialState.COMPLETE, 0.9), weights=b"new weights")
        assert store.retained_trials() == [3, 0]


def restore(dump: Path, path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(dump.read_text())
    connection.close()
