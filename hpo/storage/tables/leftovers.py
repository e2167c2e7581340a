# ruff: noqa: S608 -- the statements consist of constants
"""Removal of a deleted study's rows in hpo's tables, and of its confirmation study.

Optuna and optuna-dashboard delete only Optuna's rows. A trigger deletes hpo's rows when the attribute with the study's
key is deleted. The dashboard renames a study by a copy and the deletion of the original, so nothing is deleted while
another study has the same key.
"""

import contextlib

from optuna.storages._rdb import models
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import ProgrammingError

from hpo.storage.tables.optuna_tables import studies, study_attributes, trials
from hpo.storage.tables.schema import STUDY_KEY, budgets, checkpoints, leases, parameters

# The name of a confirmation study is the name of its study and this suffix.
CONFIRMATION_SUFFIX = ":confirmation"

_TRIGGER = "hpo_study_deleted"
_TABLES = (checkpoints.name, leases.name, budgets.name, parameters.name)
_ATTRIBUTES, _STUDIES = study_attributes.name, studies.name

_KEYS = f"""SELECT replace(value_json, '"', '') FROM {_ATTRIBUTES} WHERE "key" = '{STUDY_KEY}'"""
_IS_LAST_KEY = f"""OLD."key" = '{STUDY_KEY}' AND NOT EXISTS (
    SELECT 1 FROM {_ATTRIBUTES} AS other WHERE other."key" = '{STUDY_KEY}' AND other.value_json = OLD.value_json)"""
_NAME = f"(SELECT study_name || '{CONFIRMATION_SUFFIX}' FROM {_STUDIES} WHERE study_id = OLD.study_id)"
# A study without a key was made by another program.
_CONFIRMATION = f"""SELECT study_id FROM {_ATTRIBUTES} WHERE "key" = '{STUDY_KEY}'
    AND study_id IN (SELECT study_id FROM {_STUDIES} WHERE study_name = {_NAME})"""


def remove_leftovers(engine: Engine) -> None:
    """Remove the rows of studies that were deleted before the trigger existed, and create the trigger."""
    with engine.begin() as connection:
        for table in _TABLES:
            orphans = f"{table} WHERE study NOT IN ({_KEYS})"
            # A deletion of no row would still wait for other writers of a SQLite file.
            if connection.exec_driver_sql(f"SELECT 1 FROM {orphans} LIMIT 1").first():
                connection.exec_driver_sql(f"DELETE FROM {orphans}")
    if engine.dialect.name == "sqlite":
        with engine.begin() as connection:
            _create_sqlite_trigger(connection)
    else:
        # Another user may own Optuna's tables. Then the next start of a study removes the rows.
        with contextlib.suppress(ProgrammingError), engine.begin() as connection:
            _create_postgresql_trigger(connection)


def remove_orphaned_trials(engine: Engine) -> None:
    """Remove trials without a study from a SQLite file, before a study is created.

    Optuna deletes the trials that it has read before, and SQLite has no foreign keys. A trial that started in between
    would belong to the next study, which gets the id of the deleted one.
    """
    if engine.dialect.name != "sqlite":
        return
    orphans = f"SELECT trial_id FROM {trials.name} WHERE study_id NOT IN (SELECT study_id FROM {_STUDIES})"
    with engine.begin() as connection:
        if not connection.exec_driver_sql(f"{orphans} LIMIT 1").first():
            return
        for table in reversed(models.BaseModel.metadata.sorted_tables):
            if "trial_id" in table.c:
                connection.exec_driver_sql(f"DELETE FROM {table.name} WHERE trial_id IN ({orphans})")


def _create_sqlite_trigger(connection: Connection) -> None:
    connection.exec_driver_sql(
        f"CREATE TRIGGER IF NOT EXISTS {_TRIGGER} AFTER DELETE ON {_ATTRIBUTES} "
        f"WHEN {_IS_LAST_KEY} BEGIN {_deletions()} END"
    )


def _create_postgresql_trigger(connection: Connection) -> None:
    query = f"SELECT 1 FROM pg_trigger WHERE tgname = '{_TRIGGER}' AND tgrelid = '{_ATTRIBUTES}'::regclass"
    if connection.exec_driver_sql(query).first():
        return
    connection.exec_driver_sql(
        f"CREATE OR REPLACE FUNCTION {_TRIGGER}() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN IF {_IS_LAST_KEY} THEN {_deletions()} END IF; RETURN NULL; END $$"
    )
    connection.exec_driver_sql(
        f"CREATE TRIGGER {_TRIGGER} AFTER DELETE ON {_ATTRIBUTES} FOR EACH ROW EXECUTE FUNCTION {_TRIGGER}()"
    )


def _deletions() -> str:
    """Return the statements of the trigger."""
    study = """replace(OLD.value_json, '"', '')"""
    confirmation = f"{_KEYS} AND study_id IN ({_CONFIRMATION})"
    tables = reversed(models.BaseModel.metadata.sorted_tables)
    statements = [
        *(f"{table} WHERE study = {study} OR study IN ({confirmation})" for table in _TABLES),
        # The key is deleted after all rows that are found by it.
        *sorted(
            (
                f"{table.name} WHERE study_id IN ({_CONFIRMATION})"
                if "study_id" in table.c
                else f"{table.name} WHERE trial_id IN (SELECT trial_id FROM trials WHERE study_id IN ({_CONFIRMATION}))"
                for table in tables
                if table.name != _STUDIES and {"study_id", "trial_id"} & set(table.c.keys())
            ),
            key=lambda statement: statement.startswith(_ATTRIBUTES),
        ),
        f"{_STUDIES} WHERE study_name = {_NAME} "
        f"AND study_id NOT IN (SELECT study_id FROM {models.StudyDirectionModel.__tablename__})",
    ]
    return " ".join(f"DELETE FROM {statement};" for statement in statements)
