"""Direct SQL for Optuna's trial tables, so that a trial and its lease change in one transaction.

Optuna's storage loads a row again for each value that it writes, which makes a trial ten times as expensive.
``tests/integration/test_optuna_tables.py`` compares the written rows with the rows of Optuna's storage.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

studies = cast(sa.Table, models.StudyModel.__table__)
trials = cast(sa.Table, models.TrialModel.__table__)
params = cast(sa.Table, models.TrialParamModel.__table__)
values = cast(sa.Table, models.TrialValueModel.__table__)
intermediate_values = cast(sa.Table, models.TrialIntermediateValueModel.__table__)
user_attributes = cast(sa.Table, models.TrialUserAttributeModel.__table__)

_FINITE = models.TrialValueModel.TrialValueType.FINITE
_FINITE_REPORT = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE


@dataclass(frozen=True)
class TrialClock:
    """Clock of a study's trials. Optuna's columns hold times without a time zone.

    Attributes:
        utc: Whether the study's times are UTC. Otherwise an earlier version of hpo created the study, and each time is
            the local time of the machine that wrote it.
        clock: Seconds since 1970.
    """

    utc: bool = True
    clock: Callable[[], float] = time.time

    def now(self) -> datetime:
        """Return the time to store, without a time zone."""
        return datetime.fromtimestamp(self.clock(), UTC if self.utc else None).replace(tzinfo=None)

    def read(self, stored: datetime | None) -> datetime | None:
        """Return a stored time: with the zone UTC, or without a zone if the zone is unknown."""
        return stored.replace(tzinfo=UTC) if stored is not None and self.utc else stored


UTC_CLOCK = TrialClock()


def _upsert(table: sa.Table, key: str, changed: str) -> dict[str, sa.Insert]:
    """Return the statement by dialect that inserts a row of a trial or changes one column of it."""
    of_sqlite, of_postgresql = sqlite.insert(table), postgresql.insert(table)
    keys = ["trial_id", key]
    return {
        "sqlite": of_sqlite.on_conflict_do_update(keys, set_={changed: of_sqlite.excluded[changed]}),
        "postgresql": of_postgresql.on_conflict_do_update(
            index_elements=keys, set_={changed: of_postgresql.excluded[changed]}
        ),
    }


# The statements are built once, because SQLAlchemy takes longer to build a statement than to execute it.
_INSERT_TRIAL = sa.insert(trials).returning(trials.c.trial_id)
_NEWEST_BEFORE = (
    sa.select(trials.c.number)
    .where(trials.c.study_id == sa.bindparam("study"), trials.c.trial_id < sa.bindparam("new"))
    .order_by(trials.c.trial_id.desc())
    .limit(1)
)
_REPORT = _upsert(intermediate_values, "step", "intermediate_value")
# Another client may have written a value or an attribute.
_SET_VALUE = _upsert(values, "objective", "value")
_SET_ATTRIBUTE = _upsert(user_attributes, "key", "value_json")
_END_TRIAL = sa.update(trials).where(
    trials.c.trial_id == sa.bindparam("ended"), trials.c.state == sa.literal(TrialState.RUNNING, trials.c.state.type)
)


def insert_trial(
    connection: Connection,
    study_id: int,
    number: int,
    parameters: Mapping[str, Any],
    space: Mapping[str, BaseDistribution],
    now: datetime,
) -> int | None:
    """Insert a RUNNING trial with its parameters.

    Returns:
        The trial's id, None if ``number`` is not the study's next number. Then roll the transaction back.
    """
    new = {"study_id": study_id, "number": number, "state": TrialState.RUNNING, "datetime_start": now}
    trial_id = connection.execute(_INSERT_TRIAL, new).scalar_one()
    # This query follows the insert, because the insert blocks other writers of a SQLite file until the commit.
    newest = connection.execute(_NEWEST_BEFORE, {"study": study_id, "new": trial_id}).scalar_one_or_none()
    if number != (0 if newest is None else newest + 1):
        return None
    rows = [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": space[name].to_internal_repr(value),
            "distribution_json": distribution_to_json(space[name]),
        }
        for name, value in parameters.items()
    ]
    if rows:
        connection.execute(sa.insert(params), rows)
    return int(trial_id)


def report(connection: Connection, trial_id: int, reports: Sequence[tuple[int, float]]) -> None:
    """Write intermediate values by step. A repeated step overwrites the earlier value."""
    if not reports:
        return
    rows = [
        {
            "trial_id": trial_id,
            "step": step,
            "intermediate_value": value,
            "intermediate_value_type": _FINITE_REPORT,
        }
        for step, value in reports
    ]
    connection.execute(_REPORT[connection.dialect.name], rows)


def end_trial(
    connection: Connection,
    trial_id: int,
    state: TrialState,
    value: float | None,
    attributes: Mapping[str, str | None],
    now: datetime,
) -> bool:
    """End a RUNNING trial.

    Returns:
        Whether the trial was RUNNING. Otherwise nothing is written.
    """
    changed = {"ended": trial_id, "state": state, "datetime_complete": now}
    if connection.execute(_END_TRIAL, changed).rowcount != 1:
        return False
    if value is not None:
        new = {"trial_id": trial_id, "objective": 0, "value": value, "value_type": _FINITE}
        connection.execute(_SET_VALUE[connection.dialect.name], new)
    for key, text in attributes.items():
        new = {"trial_id": trial_id, "key": key, "value_json": json.dumps(text)}
        connection.execute(_SET_ATTRIBUTE[connection.dialect.name], new)
    return True
