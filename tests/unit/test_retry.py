"""Retries during outages, and queries that may hang."""

import threading

import pytest
import sqlalchemy
from factories import make_outage
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import OperationalError, PendingRollbackError

from hpo.errors import DatabaseTimeoutError, StorageError
from hpo.storage.database.connection import Database
from hpo.storage.database.retry import (
    BackgroundQuery,
    is_outage,
    retry_while_unavailable,
    suppress_outages,
)

MAX_WAIT_S = 0.001


def test_retry_after_outage_succeeds():
    answers = iter([make_outage(), make_outage(), "back"])

    def query() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert retry_while_unavailable(query, timeout_s=60, max_wait_s=MAX_WAIT_S)() == "back"


def test_retry_passes_arguments():
    assert retry_while_unavailable(divmod, timeout_s=60)(7, 2) == (3, 1)


def test_retry_timeout_raises_outage():
    with pytest.raises(OperationalError):
        retry_while_unavailable(raise_outage, timeout_s=0.01, max_wait_s=MAX_WAIT_S)()


def test_retry_stop_raises_outage():
    stop = threading.Event()

    def query() -> None:
        stop.set()
        raise make_outage()

    with pytest.raises(OperationalError):
        retry_while_unavailable(query, timeout_s=3600, stop=stop)()


def test_retry_other_error_raises_immediately():
    calls = []

    def query() -> None:
        calls.append(1)
        raise sqlalchemy.exc.ProgrammingError("SELEC 1", {}, Exception("syntax"))

    with pytest.raises(sqlalchemy.exc.ProgrammingError):
        retry_while_unavailable(query, timeout_s=60)()
    assert calls == [1]


def test_is_outage_accepts_broken_session():
    database = Database.parse("postgresql://hpo:secret@127.0.0.1/hpo")
    try:
        try:
            raise make_outage("the connection was lost")
        except OperationalError:
            raise PendingRollbackError("roll it back first")  # noqa: B904  # Optuna raises it without a cause
    except PendingRollbackError as error:
        internal = StorageInternalError("an exception is raised during the commit")
        internal.__cause__ = error
    assert is_outage(internal)
    assert database.error_summary(internal) == "the connection was lost"


@pytest.mark.parametrize(
    "error",
    [
        sqlalchemy.exc.IntegrityError("INSERT", {}, Exception("duplicate key")),
        PendingRollbackError("after another error"),
        StorageError("has no study"),
        KeyError("a bug"),
    ],
)
def test_is_outage_rejects_other_errors(error):
    assert not is_outage(error)


def test_suppress_outages_passes_other_errors():
    with suppress_outages():
        raise make_outage()
    with pytest.raises(sqlalchemy.exc.IntegrityError), suppress_outages():
        raise sqlalchemy.exc.IntegrityError("INSERT", {}, Exception("duplicate key"))


def test_error_summary_hides_password():
    database = Database.parse("postgresql://hpo:battery@127.0.0.1/hpo")
    summary = database.error_summary(make_outage("\n no login with 'battery'\n on two addresses"))
    assert summary == "no login with '***'"


def test_query_returns_result():
    assert BackgroundQuery(lambda: 42).result(30) == 42


@pytest.mark.parametrize("error", [KeyError("missing"), TimeoutError("the function's own")])
def test_query_raises_own_error(error):
    def query() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        BackgroundQuery(query).result(30)
    assert caught.value is error


def test_query_calls_on_done():
    done = threading.Event()
    BackgroundQuery(raise_outage, done.set)
    assert done.wait()


def test_hanging_query_raises_timeout():
    answer = threading.Event()
    hanging = BackgroundQuery(answer.wait)
    with pytest.raises(DatabaseTimeoutError) as caught:
        hanging.result(0.01)
    assert is_outage(caught.value)
    assert not hanging.done
    answer.set()
    assert hanging.result(30)


def raise_outage() -> None:
    raise make_outage()
