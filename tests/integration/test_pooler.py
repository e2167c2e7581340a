"""Studies behind a pooler in transaction mode."""

import threading

import psycopg
import pytest
from factories import create_trial, make_database, make_storage_config, open_study
from optuna.trial import TrialState
from pooler import running_pooler

from hpo.storage.database.connection import Database
from hpo.storage.study import load_study
from hpo.storage.tables.leases import Checkpoint
from hpo.storage.trial_store import TrialOutcome

# More than the executions after which psycopg prepares a statement.
TRIALS = 8


@pytest.fixture
def pooler(postgres):
    with running_pooler(postgres.new_database()) as pooler:
        yield pooler


def run_trials(url: str, owner: str) -> None:
    """Run all steps of some trials."""
    with open_study(make_database(url), make_storage_config(owner)) as study:
        for number in range(TRIALS):
            lease = create_trial(study.store, number, owner)
            study.store.report(lease, [(1, 0.5)], Checkpoint(1, 1.0, b"state"))
            study.store.finish(lease, TrialOutcome(TrialState.COMPLETE, 0.5), [(2, 0.5)], b"weights")
        assert len(study.trials) == TRIALS


def test_clients_share_connections_of_pooler(pooler):
    threads = [threading.Thread(target=run_trials, args=(pooler.url, f"worker_{n}")) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        with load_study(Database.parse(pooler.url), make_storage_config(f"worker_{number}")) as study:
            assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * TRIALS
    assert pooler.violations == []


def test_pooler_finds_session_state(pooler):
    with psycopg.connect(pooler.url, prepare_threshold=0, options="-c statement_timeout=1000") as connection:
        connection.execute("SET lock_timeout = 1")
        connection.execute("SELECT 1")
    # The option, the setting, and two prepared statements.
    assert len(pooler.violations) >= 3
