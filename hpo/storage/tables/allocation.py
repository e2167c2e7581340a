"""The budget of a study, and the parameters that its trials have taken."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection
from sqlalchemy.sql.dml import ReturningInsert

from hpo.storage.tables.schema import budgets, parameters

_Insert = sqlite.Insert | postgresql.Insert


def _insert(dialect: str, table: sa.Table) -> _Insert:
    return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)


def _upsert_budget(insert: _Insert, *, raises: bool) -> ReturningInsert[Any]:
    """Insert a budget; an existing one is raised to it, or stays."""
    is_higher = sa.and_(sa.literal(raises), insert.excluded.trials > budgets.c.trials)
    changed = sa.case((is_higher, insert.excluded.trials), else_=budgets.c.trials)
    return insert.on_conflict_do_update(index_elements=["study"], set_={"trials": changed}).returning(budgets.c.trials)


_DIALECTS = ("sqlite", "postgresql")
_RAISE = {name: _upsert_budget(_insert(name, budgets), raises=True) for name in _DIALECTS}
# An update locks the row, so that one process at a time allocates a trial of the study.
_LOCK = {name: _upsert_budget(_insert(name, budgets), raises=False) for name in _DIALECTS}
_IN_STUDY = budgets.c.study == sa.bindparam("in_study")
_SET = sa.update(budgets).where(_IN_STUDY).values(trials=sa.bindparam("new_trials", type_=sa.Integer()))
_TAKE = {name: _insert(name, parameters).on_conflict_do_nothing().returning(parameters.c.number) for name in _DIALECTS}
_OF_TRIAL = sa.and_(parameters.c.study == sa.bindparam("in_study"), parameters.c.number == sa.bindparam("of_number"))
_TAKEN = sa.select(parameters.c.number).where(
    parameters.c.study == sa.bindparam("in_study"), parameters.c.hash == sa.bindparam("of_hash")
)
_FREE = sa.delete(parameters).where(_OF_TRIAL)


class Allocation:
    """Budget and taken parameters of one study. Each method is in the caller's transaction.

    Args:
        study: The study's key in hpo's tables.
    """

    def __init__(self, study: str) -> None:
        self._study = study

    def raise_budget(self, connection: Connection, trials: int) -> int:
        """Raise the budget to a number of trials, unless it is higher; return the budget."""
        new = {"study": self._study, "trials": trials}
        return int(connection.execute(_RAISE[connection.dialect.name], new).scalar_one())

    def lock_budget(self, connection: Connection) -> int:
        """Lock the budget until the end of the transaction, and return it."""
        new = {"study": self._study, "trials": 0}
        return int(connection.execute(_LOCK[connection.dialect.name], new).scalar_one())

    def set_budget(self, connection: Connection, trials: int) -> None:
        """Replace the budget, which is locked."""
        connection.execute(_SET, {"in_study": self._study, "new_trials": trials})

    def take(self, connection: Connection, number: int, params: Mapping[str, Any]) -> bool:
        """Take parameters for a trial; return whether no other trial has them."""
        its = {"study": self._study, "hash": _hash(params), "number": number}
        if connection.execute(_TAKE[connection.dialect.name], its).first() is not None:
            return True
        # The reply to an earlier attempt may have been lost.
        owner = connection.execute(_TAKEN, {"in_study": self._study, "of_hash": its["hash"]}).scalar_one_or_none()
        return owner == number

    def free(self, connection: Connection, number: int) -> None:
        """Free the parameters of a deleted trial."""
        connection.execute(_FREE, {"in_study": self._study, "of_number": number})


def _hash(params: Mapping[str, Any]) -> str:
    """Return a hash that is equal for equal parameters, in any order."""
    text = json.dumps(sorted(params.items()), default=repr)
    return hashlib.sha256(text.encode()).hexdigest()
