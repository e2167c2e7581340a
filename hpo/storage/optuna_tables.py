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
study_attributes = cast(sa.Table, models.StudyUserAttributeModel.__table__)
trials = cast(sa.Table, models.TrialModel.__table__)
params = cast(sa.Table, models.TrialParamModel.__table__)
values = cast(sa.Table, models.TrialValueModel.__table__)
intermediate_values = cast(sa.Table, models.TrialIntermediateValueModel.__table__)
user_attributes = cast(sa.Table, models.TrialUserAttributeModel.__table__)
system_attributes = cast(sa.Table, models.TrialSystemAttributeModel.__table__)

# The system attribute that holds the parameters of a trial that Optuna's enqueue_trial created.
_FIXED_PARAMS = "fixed_params"

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


def _upsert(table: sa.Table, key: str, *changed: str) -> dict[str, sa.Insert]:
    """Return the insert of a trial's row, which overwrites the row of another program."""
    inserts: dict[str, sqlite.Insert | postgresql.Insert] = {
        "sqlite": sqlite.insert(table),
        "postgresql": postgresql.insert(table),
    }
    return {
        dialect: insert.on_conflict_do_update(
            index_elements=["trial_id", key], set_={name: insert.excluded[name] for name in changed}
        )
        for dialect, insert in inserts.items()
    }


# The statements are built once, because SQLAlchemy takes longer to build a statement than to execute it.
_INSERT_TRIAL = sa.insert(trials).returning(trials.c.trial_id)
_OLDER = sa.and_(trials.c.study_id == sa.bindparam("study"), trials.c.trial_id < sa.bindparam("new"))
_NEWEST_BEFORE = sa.select(trials.c.number).where(_OLDER).order_by(trials.c.trial_id.desc()).limit(1)
_DETAILS = (params, values, intermediate_values, user_attributes, system_attributes)
# SQLite reuses the id of a deleted trial, and rows of the deleted trial may remain.
_HAS_DETAILS = sa.or_(*(sa.exists().where(table.c.trial_id == sa.bindparam("new")) for table in _DETAILS))
_DELETE_DETAILS = [sa.delete(table).where(table.c.trial_id == sa.bindparam("deleted")) for table in _DETAILS]
# The number of the newest trial before a trial, and whether the trial has rows of a deleted one.
_PREDECESSORS = {
    "sqlite": sa.select(_NEWEST_BEFORE.scalar_subquery(), _HAS_DETAILS),
    "postgresql": sa.select(_NEWEST_BEFORE.scalar_subquery(), sa.false()),
}
_REPORT = _upsert(intermediate_values, "step", "intermediate_value", "intermediate_value_type")
_WRITE_VALUE = _upsert(values, "objective", "value", "value_type")
_WRITE_ATTRIBUTE = _upsert(user_attributes, "key", "value_json")
_READ_FIXED_PARAMS = sa.select(system_attributes.c.value_json).where(
    system_attributes.c.trial_id == sa.bindparam("read"), system_attributes.c.key == _FIXED_PARAMS
)
_DROP_REPORTS = sa.delete(intermediate_values).where(intermediate_values.c.trial_id == sa.bindparam("dropped"))
_START_TRIAL = sa.update(trials).where(
    trials.c.trial_id == sa.bindparam("started"),
    trials.c.state == sa.bindparam("from_state", type_=trials.c.state.type),
)
_READ_STATE = (
    sa.select(trials.c.state, user_attributes.c.value_json)
    .select_from(
        sa.outerjoin(
            trials,
            user_attributes,
            sa.and_(
                user_attributes.c.trial_id == trials.c.trial_id, user_attributes.c.key == sa.bindparam("attribute")
            ),
        )
    )
    .where(trials.c.trial_id == sa.bindparam("read"))
)
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
    query = _PREDECESSORS[connection.dialect.name]
    newest, has_details = connection.execute(query, {"study": study_id, "new": trial_id}).one()
    if number != (0 if newest is None else newest + 1):
        return None
    if has_details:
        for statement in _DELETE_DETAILS:
            connection.execute(statement, {"deleted": trial_id})
    _insert_params(connection, trial_id, parameters, space)
    return int(trial_id)


def _insert_params(
    connection: Connection, trial_id: int, parameters: Mapping[str, Any], space: Mapping[str, BaseDistribution]
) -> None:
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


def adopt_trial(
    connection: Connection,
    trial_id: int,
    state: TrialState,
    parameters: Mapping[str, Any],
    space: Mapping[str, BaseDistribution],
    now: datetime,
) -> bool:
    """Start a trial that another program created: drop its reports and add parameters.

    Args:
        connection: The transaction.
        trial_id: The trial's id.
        state: The state that the trial must have, WAITING or RUNNING.
        parameters: The parameters to add.
        space: Their distributions.
        now: The time of the start.

    Returns:
        Whether the trial had this state. Otherwise nothing is written.
    """
    changed: dict[str, Any] = {"started": trial_id, "from_state": state, "state": TrialState.RUNNING}
    if state == TrialState.WAITING:
        changed["datetime_start"] = now
    if connection.execute(_START_TRIAL, changed).rowcount != 1:
        return False
    connection.execute(_DROP_REPORTS, {"dropped": trial_id})
    _insert_params(connection, trial_id, parameters, space)
    return True


def fixed_params(connection: Connection, trial_id: int) -> dict[str, Any]:
    """Return the parameters that ``enqueue_trial`` gave to a trial, none for another trial."""
    text = connection.execute(_READ_FIXED_PARAMS, {"read": trial_id}).scalar_one_or_none()
    content = {} if text is None else json.loads(text)
    return content if isinstance(content, dict) else {}


def explain_end(connection: Connection, trial_id: int, key: str, reason: str) -> None:
    """Write the reason of a PRUNED or FAIL trial, unless another program gave one."""
    row = connection.execute(_READ_STATE, {"read": trial_id, "attribute": key}).one_or_none()
    if row is not None and row.state in (TrialState.PRUNED, TrialState.FAIL) and row.value_json is None:
        _write_attribute(connection, trial_id, key, reason)


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
        connection.execute(_WRITE_VALUE[connection.dialect.name], new)
    for key, text in attributes.items():
        _write_attribute(connection, trial_id, key, text)
    return True


def _write_attribute(connection: Connection, trial_id: int, key: str, text: str | None) -> None:
    new = {"trial_id": trial_id, "key": key, "value_json": json.dumps(text)}
    connection.execute(_WRITE_ATTRIBUTE[connection.dialect.name], new)
