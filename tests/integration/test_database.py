"""URLs, connections and their errors."""

import multiprocessing
import pickle
import socket

import optuna
import pytest
from factories import execute, make_database, open_storage
from sqlalchemy.exc import DBAPIError

from benchmarks.postgres import PASSWORD, free_port
from hpo.errors import StorageError
from hpo.storage.database.connection import Database, StorageTimings, autocommit, close
from hpo.storage.database.retry import is_outage


def error_of(url: str, **timings: int) -> str:
    """Return the one line that describes why this database cannot be opened."""
    with pytest.raises(StorageError) as caught:
        database = Database.parse(url, StorageTimings(**timings))
        database.check_reachable()
        database.open()
    message = str(caught.value)
    assert "\n" not in message
    return message


def open_and_create(url: str) -> None:
    database = Database.parse(url)
    rdb = open_storage(database)
    with database.creation_lock():
        optuna.create_study(study_name="shared", storage=rdb, load_if_exists=True)
    close(rdb)


def test_eight_processes_open_fresh_database(storage_url):
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=open_and_create, args=(storage_url,)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8


def test_creation_sets_wal_mode(tmp_path):
    database = make_database(f"sqlite:///{tmp_path}/new.db")
    with database.creation_lock():
        assert execute(database, "PRAGMA journal_mode") == [("wal",)]


def test_check_reachable_creates_no_file(tmp_path):
    make_database(f"sqlite:///{tmp_path}/new.db")
    assert list(tmp_path.iterdir()) == []


def test_database_survives_pickling(storage_url):
    database = make_database(storage_url, lease_s=42.0)
    # The fork server passes a database to its workers in this way.
    assert pickle.loads(pickle.dumps(database)) == database  # noqa: S301  # written in the same line


def test_wrong_password_is_hidden(postgres):
    message = error_of(postgres.locked_url("battery%20staple"))
    assert "password authentication failed" in message
    assert "battery" not in message
    Database.parse(postgres.locked_url(PASSWORD.replace(" ", "%20"))).check_reachable()


@pytest.mark.parametrize("shown", [str, repr, lambda database: database.shown])
def test_shown_url_has_no_password(shown):
    database = Database.parse("postgresql://hpo:battery@host/hpo?application_name=x")
    assert "battery" not in shown(database)
    assert database.shown == "postgresql://hpo:***@host/hpo"


def test_closed_port_is_named():
    assert f"127.0.0.1:{(port := free_port())}" in error_of(f"postgresql://hpo:secret@127.0.0.1:{port}/hpo")


def test_silent_server_times_out():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://hpo:secret@127.0.0.1:{silent.getsockname()[1]}/hpo"
        message = error_of(url, connect_timeout_s=2)
    assert "secret" not in message
    assert "timeout" in message


def test_missing_database_is_refused(postgres):
    assert "does not exist" in error_of(f"postgresql://hpo@127.0.0.1:{postgres.port}/no_such")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:///no/such/folder/hpo.db", "create it first"),
    ],
)
def test_unsupported_url_is_refused(url, message):
    assert message in error_of(url)


def test_other_file_is_refused(tmp_path):
    (tmp_path / "notes.db").write_text("milk, eggs, bread\n" * 100)
    assert "not a database" in error_of(f"sqlite:///{tmp_path}/notes.db")


def test_postgres_scheme_is_accepted(postgres):
    make_database(postgres.new_database().replace("postgresql://", "postgres://"))


def test_check_exists_creates_no_file(tmp_path):
    with pytest.raises(StorageError, match=r"no such file; start a study with: python -m hpo\.launch"):
        Database.parse(f"sqlite:///{tmp_path}/hpo.db").check_exists()
    assert list(tmp_path.iterdir()) == []


def test_failed_connection_is_outage():
    with pytest.raises(StorageError) as caught:
        Database.parse(f"postgresql://hpo@127.0.0.1:{free_port()}/hpo").open()
    assert is_outage(caught.value)


def test_read_only_server_is_outage(postgres):
    rdb = Database.parse(postgres.new_database()).open()
    with pytest.raises(DBAPIError) as caught, rdb.engine.begin() as connection:
        connection.exec_driver_sql("SET TRANSACTION READ ONLY")
        connection.exec_driver_sql("CREATE TABLE t (x int)")
    assert is_outage(caught.value)
    close(rdb)


def test_transactions_get_settings(database):
    rdb = database.open()
    query = "PRAGMA synchronous" if database.is_sqlite else "SHOW idle_in_transaction_session_timeout"
    with rdb.engine.connect() as connection:
        assert connection.exec_driver_sql(query).scalar_one() == (1 if database.is_sqlite else "10s")
    close(rdb)


def test_transactions_leave_no_setting_in_session(postgres):
    rdb = make_database(postgres.new_database()).open()
    with rdb.engine.begin() as connection:
        connection.exec_driver_sql("SELECT 1")
    with autocommit(rdb.engine).connect() as connection:
        setting = connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar_one()
    close(rdb)
    assert setting == "0"


def test_options_of_url_have_precedence(postgres):
    rdb = make_database(postgres.new_database() + "?application_name=mine").open()
    with rdb.engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW application_name").scalar_one() == "mine"
    close(rdb)


def test_wrong_password_explains_encoding(postgres):
    assert "write @ as %40" in error_of(postgres.locked_url("a%2Fb"))
