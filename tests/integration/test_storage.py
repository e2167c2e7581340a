"""Opening databases, and what is said when that fails."""

import multiprocessing
import socket
import sqlite3
import threading

import optuna
import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, OperationalError, PendingRollbackError

from benchmarks.postgres import PASSWORD, free_port
from hpo.errors import StorageError
from hpo.storage import database as storage
from hpo.storage import leases


def refuse(url: str) -> str:
    """The one line that is told for this database."""
    with pytest.raises(StorageError) as caught:
        parsed = storage.parse_url(url)
        storage.check_reachable(parsed)
        storage.open_storage(parsed)
    message = str(caught.value)
    assert "\n" not in message
    return message


def open_and_create(url: str) -> None:
    parsed = storage.parse_url(url)
    with storage.creation_lock(parsed):
        rdb = storage.open_storage(parsed)
        leases.create_table(rdb.engine)
        optuna.create_study(study_name="shared", storage=rdb, load_if_exists=True)
    storage.close(rdb)


def test_eight_processes_open_a_fresh_database_at_once(storage_url):
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=open_and_create, args=(storage_url,)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8


def test_sqlite_is_in_wal_mode(tmp_path):
    storage.check_reachable(storage.parse_url(f"sqlite:///{tmp_path}/new.db"))
    connection = sqlite3.connect(tmp_path / "new.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_a_wrong_password_is_not_repeated(postgres):
    message = refuse(postgres.locked_url("battery%20staple"))
    assert "password authentication failed" in message
    assert "battery" not in message
    storage.check_reachable(storage.parse_url(postgres.locked_url(PASSWORD.replace(" ", "%20"))))


def test_nobody_listens():
    assert f"127.0.0.1:{(port := free_port())}" in refuse(f"postgresql://hpo:secret@127.0.0.1:{port}/hpo")


def test_somebody_listens_and_says_nothing(monkeypatch):
    monkeypatch.setattr(storage, "CONNECT_TIMEOUT", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        message = refuse(f"postgresql://hpo:secret@127.0.0.1:{silent.getsockname()[1]}/hpo")
    assert "secret" not in message
    assert "timeout" in message


def test_a_missing_database(postgres):
    assert "does not exist" in refuse(f"postgresql://hpo@127.0.0.1:{postgres.port}/no_such")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("hpo.db", "not a database URL"),
        ("postgresql://user:pa:ss@host:port/x", "not a database URL"),
        ("mysql://user@host/x", "mysql is not supported"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:///no/such/folder/hpo.db", "create it first"),
    ],
)
def test_urls_that_are_none_of_ours(url, said):
    assert said in refuse(url)


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "notes.db").write_text("milk, eggs, bread\n" * 100)
    assert "not a database" in refuse(f"sqlite:///{tmp_path}/notes.db")


def test_the_old_name_of_postgres_works(postgres):
    url = postgres.new_database().replace("postgresql://", "postgres://")
    storage.check_reachable(storage.parse_url(url))


def test_a_database_that_was_never_made_is_not_made_by_looking(tmp_path):
    with pytest.raises(StorageError, match=r"no such file; start a study with: python -m hpo\.launch"):
        storage.check_exists(storage.parse_url(f"sqlite:///{tmp_path}/hpo.db"))
    assert list(tmp_path.iterdir()) == []


def outage() -> OperationalError:
    return OperationalError("SELECT 1", {}, ConnectionError("gone"))


def test_an_outage_is_waited_for():
    answers = iter([outage(), outage(), "back"])

    def ask() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert storage.retry_while_unavailable(ask, timeout=60, stop=threading.Event())() == "back"


def test_an_outage_is_one_however_it_is_told(tmp_path):
    url = storage.parse_url(f"postgresql://hpo@127.0.0.1:{free_port()}/hpo")
    with pytest.raises(StorageError) as caught:
        storage.open_storage(url)
    assert storage.is_outage(caught.value)
    assert not storage.is_outage(StorageError("has no study"))


def test_an_outage_is_one_even_if_optuna_goes_on_in_the_session_that_it_broke():
    url = storage.parse_url("postgresql://hpo:secret@127.0.0.1/hpo")
    try:
        try:
            raise outage()
        except OperationalError:
            raise PendingRollbackError("roll it back first")  # noqa: B904
    except PendingRollbackError as error:
        internal = StorageInternalError("an exception is raised during the commit")
        internal.__cause__ = error
    assert storage.is_outage(internal)
    assert storage.reason(internal, url) == "gone"


def test_a_server_that_can_only_be_read_is_one(postgres):
    rdb = storage.open_storage(storage.parse_url(postgres.new_database()))
    with pytest.raises(DBAPIError) as caught, rdb.engine.begin() as connection:
        connection.exec_driver_sql("SET TRANSACTION READ ONLY")
        connection.exec_driver_sql("CREATE TABLE t (x int)")
    assert storage.is_outage(caught.value)
    storage.close(rdb)


def test_a_refusal_is_no_outage():
    assert not storage.is_outage(sqlalchemy.exc.IntegrityError("INSERT", {}, Exception("twice")))
    assert not storage.is_outage(PendingRollbackError("after something else"))
    assert not storage.is_outage(KeyError("a bug"))


def test_a_question_is_answered_by_the_database_or_by_nobody():
    assert storage.BackgroundQuery(lambda: 42).answer(30) == 42
    with pytest.raises(KeyError):
        storage.BackgroundQuery(lambda: {}["missing"]).answer(30)
    with pytest.raises(TimeoutError, match="the function's own"):
        storage.BackgroundQuery(raise_timeout).answer(30)
    answer = threading.Event()
    hanging = storage.BackgroundQuery(answer.wait)
    with pytest.raises(storage.NoAnswerError) as caught:
        hanging.answer(0.01)
    assert storage.is_outage(caught.value)
    assert not hanging.answered
    answer.set()
    assert hanging.answer(30)


def raise_timeout() -> None:
    raise TimeoutError("the function's own")


def test_an_outage_is_not_waited_for_any_more_once_stopped():
    stop = threading.Event()

    def ask() -> None:
        stop.set()
        raise outage()

    with pytest.raises(OperationalError):
        storage.retry_while_unavailable(ask, timeout=3600, stop=stop)()


def test_other_errors_are_not_tried_again():
    calls = []

    def ask() -> None:
        calls.append(1)
        raise sqlalchemy.exc.ProgrammingError("SELEC 1", {}, Exception("syntax"))

    with pytest.raises(sqlalchemy.exc.ProgrammingError):
        storage.retry_while_unavailable(ask, timeout=60, stop=threading.Event())()
    assert calls == [1]
