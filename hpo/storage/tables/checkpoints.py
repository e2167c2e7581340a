"""Rows of the trials' checkpoints."""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from hpo.storage.tables.schema import checkpoints


def _upsert(insert: sqlite.Insert | postgresql.Insert) -> sa.Insert:
    return insert.on_conflict_do_update(index_elements=["study", "number"], set_={"state": insert.excluded.state})


_WRITE = {
    "sqlite": _upsert(sqlite.insert(checkpoints)),
    "postgresql": _upsert(postgresql.insert(checkpoints)),
}
_IS_TRIAL = sa.and_(checkpoints.c.study == sa.bindparam("study"), checkpoints.c.number == sa.bindparam("number"))
_READ = sa.select(checkpoints.c.state).where(_IS_TRIAL)
_DELETE = sa.delete(checkpoints).where(_IS_TRIAL)


class Checkpoints:
    """The newest checkpoint of each unfinished trial of one study. Each method is one statement.

    Args:
        study: The study's key in ``hpo_checkpoints``.
    """

    def __init__(self, study: str) -> None:
        self._study = {"study": study}

    def write(self, connection: Connection, number: int, state: bytes) -> None:
        """Write or overwrite a trial's checkpoint."""
        connection.execute(_WRITE[connection.dialect.name], {"number": number, "state": state} | self._study)

    def read(self, connection: Connection, number: int) -> bytes | None:
        """Return a trial's checkpoint, None if it has none."""
        state: bytes | None = connection.execute(_READ, {"number": number} | self._study).scalar_one_or_none()
        return state

    def delete(self, connection: Connection, number: int) -> None:
        """Delete a trial's checkpoint."""
        connection.execute(_DELETE, {"number": number} | self._study)
