"""Errors of real databases: which are worth a retry."""

import contextlib
import sqlite3

import pytest
import sqlalchemy as sa
from factories import execute, make_database
from sqlalchemy.exc import DBAPIError

from hpo.storage.database.connection import Database
from hpo.storage.database.retry import is_outage

# Statements that need another statement first, and whether an error of the second is worth a retry.
REFUSALS = [
    ("", "SELECT * FROM missing"),
    ("CREATE TABLE t (a INTEGER)", "SELECT b FROM t"),
    ("CREATE TABLE t (a INTEGER)", "INSERT INTO t (b) VALUES (1)"),
    ("CREATE TABLE t (a INTEGER CHECK (a > 0))", "INSERT INTO t VALUES (-1)"),
    ("CREATE TABLE t (a INTEGER NOT NULL)", "INSERT INTO t VALUES (NULL)"),
    ("CREATE TABLE t (a INTEGER PRIMARY KEY); INSERT INTO t VALUES (1)", "INSERT INTO t VALUES (1)"),
]
POSTGRESQL_REFUSALS = [
    ("CREATE TABLE t (a VARCHAR(2))", "INSERT INTO t VALUES ('long')"),
    ("CREATE TABLE t (a INTEGER)", "SET ROLE pg_monitor; INSERT INTO t VALUES (1)"),
    ("", "DO $$ BEGIN RAISE EXCEPTION 'no more trials'; END $$"),
    ("", "SELECT 1 / 0"),
]
POSTGRESQL_OUTAGES = [
    "SET statement_timeout = 1; SELECT pg_sleep(60)",
    "SET default_transaction_read_only = on; COMMIT; BEGIN; CREATE TABLE t (a INTEGER)",
    "SELECT pg_terminate_backend(pg_backend_pid())",
    *(
        f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{state}'; END $$"
        # Serialization failure, deadlock, full disk, too many connections, lock timeout, shutdown, recovery.
        for state in ("40001", "40P01", "53100", "53300", "55P03", "57P01", "57P03")
    ),
]


def error_of(database: Database, preparation: str, statement: str) -> Exception:
    """Return the error of a statement."""
    for part in filter(None, preparation.split("; ")):
        execute(database, part)
    with pytest.raises(DBAPIError) as caught:
        execute(database, statement)
    return caught.value


@pytest.mark.parametrize(("preparation", "statement"), REFUSALS)
def test_refusal_is_not_an_outage(database, preparation, statement):
    assert not is_outage(error_of(database, preparation, statement))


@pytest.mark.parametrize(("preparation", "statement"), POSTGRESQL_REFUSALS)
def test_refusal_of_postgresql_is_not_an_outage(postgres, preparation, statement):
    assert not is_outage(error_of(make_database(postgres.new_database()), preparation, statement))


@pytest.mark.parametrize("statement", POSTGRESQL_OUTAGES)
def test_transient_error_of_postgresql_is_an_outage(postgres, statement):
    assert is_outage(error_of(make_database(postgres.new_database()), "", statement))


@pytest.mark.parametrize("event", ["INSERT", "UPDATE", "DELETE"])
def test_trigger_of_sqlite_that_raises_is_not_an_outage(tmp_path, event):
    database = make_database(f"sqlite:///{tmp_path}/hpo.db")
    execute(database, "CREATE TABLE t (a INTEGER)")
    execute(database, "INSERT INTO t VALUES (1)")
    execute(database, f"CREATE TRIGGER no BEFORE {event} ON t BEGIN SELECT RAISE(ABORT, 'not allowed'); END")
    statement = {"INSERT": "INSERT INTO t VALUES (2)", "UPDATE": "UPDATE t SET a = 2", "DELETE": "DELETE FROM t"}
    assert not is_outage(error_of(database, "", statement[event]))


def test_locked_sqlite_file_is_an_outage(tmp_path):
    database = make_database(f"sqlite:///{tmp_path}/hpo.db", busy_timeout_s=0.0)
    execute(database, "CREATE TABLE t (a INTEGER)")
    with contextlib.closing(sqlite3.connect(tmp_path / "hpo.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        engine = sa.create_engine(database._url, connect_args={"timeout": 0})
        with engine.connect() as connection, pytest.raises(DBAPIError) as caught:
            connection.exec_driver_sql("INSERT INTO t VALUES (1)")
        engine.dispose()
    assert is_outage(caught.value)
