"""Rows of deleted studies."""

import threading
import urllib.request

import optuna
import optuna_dashboard
import pytest
import waitress
from factories import create_trial, execute, make_database, make_storage_config, open_study
from optuna.trial import TrialState
from optuna.trial import create_trial as frozen_trial

from hpo.errors import StorageError
from hpo.storage.database.connection import close
from hpo.storage.tables.leases import Checkpoint
from hpo.storage.trial_store import TrialOutcome
from hpo.tuning.confirmation import confirmation_config
from hpo.ui.request_guard import RequestGuard

TABLES = ("hpo_leases", "hpo_checkpoints", "trials", "trial_params", "trial_intermediate_values", "studies")


def fill(database, config):
    """Create a study with a complete and a running trial."""
    with open_study(database, config) as study:
        lease = create_trial(study.store)
        study.store.report(lease, [(1, 0.5)])
        study.store.finish(lease, TrialOutcome(TrialState.COMPLETE, 0.5), weights=b"weights")
        study.store.report(create_trial(study.store, 1), [(1, 0.5)], Checkpoint(1, 1.0, b"state"))


def delete(database, name="s"):
    """Delete a study as the dashboard does."""
    rdb = database.open()
    optuna.delete_study(study_name=name, storage=rdb)
    close(rdb)


def count_rows(database):
    return {table: execute(database, f"SELECT count(*) FROM {table}")[0][0] for table in TABLES}


def test_deleted_study_leaves_no_rows(database):
    fill(database, make_storage_config())
    fill(database, confirmation_config(make_storage_config()))
    delete(database)
    assert set(count_rows(database).values()) == {0}
    assert execute(database, "SELECT * FROM study_user_attributes") == []
    fill(database, make_storage_config())


@pytest.fixture
def address(database):
    """Serve the dashboard of the database in this process, and return its address."""
    with database.creation_lock():
        close(database.open())
    rdb = database.open()
    server = waitress.create_server(RequestGuard(optuna_dashboard.wsgi(rdb), "127.0.0.1"), host="127.0.0.1", port=0)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield f"http://127.0.0.1:{server.effective_port}"
    server.trigger.pull_trigger(server.close)
    thread.join()
    close(rdb)


def test_study_deleted_in_dashboard_leaves_no_rows(database, address):
    fill(database, make_storage_config())
    fill(database, confirmation_config(make_storage_config()))
    ((study_id,),) = execute(database, "SELECT study_id FROM studies WHERE study_name = 's'")
    request = urllib.request.Request(f"{address}/api/studies/{study_id}", method="DELETE")
    with urllib.request.urlopen(request) as reply:
        assert reply.status == 204
    assert set(count_rows(database).values()) == {0}


def test_deleted_confirmation_leaves_its_study(database):
    fill(database, make_storage_config())
    before = count_rows(database)
    fill(database, confirmation_config(make_storage_config()))
    delete(database, "s:confirmation")
    assert count_rows(database) == before


def test_rows_of_other_studies_stay(database):
    fill(database, make_storage_config("other"))
    fill(database, confirmation_config(make_storage_config("other")))
    before = count_rows(database)
    fill(database, make_storage_config())
    delete(database)
    assert count_rows(database) == before


def test_confirmation_of_other_program_stays(database):
    fill(database, make_storage_config())
    rdb = database.open()
    optuna.create_study(study_name="s:confirmation", storage=rdb).add_trial(frozen_trial(value=0.5))
    close(rdb)
    delete(database)
    rows = count_rows(database)
    assert (rows["studies"], rows["trials"], rows["hpo_leases"]) == (1, 1, 0)


def test_renamed_study_keeps_its_rows(database):
    fill(database, make_storage_config())
    before = count_rows(database)["hpo_leases"]
    rdb = database.open()
    # The dashboard renames a study in this way.
    renamed = optuna.create_study(study_name="renamed", storage=rdb, direction="maximize")
    for key, value in optuna.load_study(study_name="s", storage=rdb).user_attrs.items():
        renamed.set_user_attr(key, value)
    close(rdb)
    delete(database)
    assert count_rows(database)["hpo_leases"] == before


def test_next_start_removes_rows_without_trigger(database):
    fill(database, make_storage_config())
    table = "" if database.is_sqlite else " ON study_user_attributes"
    execute(database, f"DROP TRIGGER hpo_study_deleted{table}")
    delete(database)
    assert count_rows(database)["hpo_leases"] == 2
    open_study(database, make_storage_config("other")).close()
    rows = count_rows(database)
    assert (rows["hpo_leases"], rows["hpo_checkpoints"]) == (0, 0)


def test_refused_study_leaves_no_tables(database):
    with database.creation_lock():
        rdb = database.open()
    optuna.create_study(study_name="s", storage=rdb, direction="minimize")
    close(rdb)
    with pytest.raises(StorageError, match="was not made by hpo"):
        open_study(database)
    master = "sqlite_master" if database.is_sqlite else "pg_tables"
    column = "name" if database.is_sqlite else "tablename"
    assert execute(database, f"SELECT {column} FROM {master} WHERE {column} LIKE 'hpo_leases'") == []


def test_trial_that_starts_during_deletion_is_removed(tmp_path):
    database = make_database(f"sqlite:///{tmp_path}/hpo.db")
    with open_study(database) as study:
        create_trial(study.store)
    # Optuna has deleted the study, but not the trial that had started after it read the trials.
    execute(database, "DELETE FROM study_directions")
    execute(database, "DELETE FROM study_user_attributes")
    execute(database, "DELETE FROM studies")
    with open_study(database) as study:
        assert study.trials == []
        assert create_trial(study.store).number == 0
    assert execute(database, "SELECT COUNT(*) FROM trial_params") == [(1,)]
