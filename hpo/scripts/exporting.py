"""The study of a script in a database, for the export command."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpo.config.loader import is_script
from hpo.config.study import ObjectiveConfig, StudyConfig, StudyTable
from hpo.errors import ScriptError, StorageError
from hpo.scripts.script import Script
from hpo.storage.database.connection import Database, close
from hpo.storage.study import Study, load_study

_CALL = "objective.call"


@contextmanager
def open_script_study(database: Database, target: str) -> Iterator[Study]:
    """Open the study of a script or a function for reading.

    Args:
        database: The study's database.
        target: The script or function, whose file has the study's name, or the study's name.

    Raises:
        StorageError: if the database has no such study, or the study is not of a script.
    """
    name = _study_name(target)
    with database.reading() as readable, readable.translate_errors(), _load(readable, name, target) as study:
        if _CALL not in study.settings:
            raise StorageError(f"the study '{name}' in {database.shown} is of a study file; give its .toml file")
        yield study


def is_stored(database: Database, name: str) -> bool:
    """Return whether the database has a study of this name that a script or a function made."""
    try:
        with open_script_study(database, name):
            return True
    except StorageError:
        return False


def _study_name(target: str) -> str:
    if not is_script(target):
        return target
    try:
        return Script(target).name
    except ScriptError:
        # The name of a study may have a colon.
        return target


def _load(database: Database, name: str, target: str) -> Study:
    try:
        return load_study(database, _config(name, target))
    except StorageError:
        if (names := _other_names(database, target)) and name not in names:
            listed = ", ".join(f"'{other}'" for other in names)
            raise StorageError(
                f"{database.shown} has no study '{name}'; {Path(target).name} has created {listed}; give such a name"
            ) from None
        raise


def _other_names(database: Database, target: str) -> list[str]:
    """Return the names of the studies that a script has created."""
    with database.opened() as rdb:
        settings = {study.study_name: study.user_attrs.get("settings") for study in rdb.get_all_studies()}
        close(rdb)
    call = Path(target).name
    return [name for name, its in settings.items() if isinstance(its, dict) and its.get(_CALL) == call]


def _config(name: str, target: str) -> StudyConfig:
    """Return a study file for a study of which only the name is known."""
    table = StudyTable.model_construct(name=name)
    return StudyConfig.model_construct(study=table, objective=ObjectiveConfig(call=target), path=Path(target))
