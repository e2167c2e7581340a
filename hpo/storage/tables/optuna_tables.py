"""Direct SQL for Optuna's trial tables, so that a trial and its lease change in one transaction.

Optuna's storage loads a row again for each value that it writes, which makes a trial ten times as expensive.
``tests/integration/test_optuna_tables.py`` compares the written rows with the rows of Optuna's storage.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
FIXED_PARAMS = "fixed_params"

_stored_value = models.TrialValueModel.value_to_stored_repr
_stored_report = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr


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
_NEWEST = (
    sa.select(trials.c.number)
    .where(trials.c.study_id == sa.bindparam("study"))
    .order_by(trials.c.trial_id.desc())
    .limit(1)
)
_NEWEST_STARTED = _NEWEST.where(trials.c.state != sa.literal(TrialState.WAITING, trials.c.state.type))
_DETAILS = (params, values, intermediate_values, user_attributes, system_attributes)
# SQLite reuses the id of a deleted trial, and rows of the deleted trial may remain.
_HAS_DETAILS = sa.select(sa.or_(*(sa.exists().where(table.c.trial_id == sa.bindparam("new")) for table in _DETAILS)))
_DELETE_DETAILS = [sa.delete(table).where(table.c.trial_id == sa.bindparam("deleted")) for table in _DETAILS]
_WRITE_PARAM = _upsert(params, "param_name", "param_value", "distribution_json")
_REPORT = _upsert(intermediate_values, "step", "intermediate_value", "intermediate_value_type")
_WRITE_VALUE = _upsert(values, "objective", "value", "value_type")
_WRITE_ATTRIBUTE = _upsert(user_attributes, "key", "value_json")
_WRITE_SYSTEM_ATTRIBUTE = _upsert(system_attributes, "key", "value_json")
_READ_FIXED_PARAMS = sa.select(system_attributes.c.value_json).where(
    system_attributes.c.trial_id == sa.bindparam("read"), system_attributes.c.key == FIXED_PARAMS
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


@dataclass(frozen=True)
class Details:
    """Parameters and attributes that a transaction writes together with the reports of a trial.

    Attributes:
        params: Parameters by name: the value as Optuna stores it, and the distribution.
        user_attrs: User attributes.
        system_attrs: System attributes.
    """

    params: Mapping[str, tuple[float, BaseDistribution]] = field(default_factory=dict)
    user_attrs: Mapping[str, Any] = field(default_factory=dict)
    system_attrs: Mapping[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.params or self.user_attrs or self.system_attrs)

    def __or__(self, other: "Details") -> "Details":
        """Return these details, updated by others."""
        return Details(
            {**self.params, **other.params},
            {**self.user_attrs, **other.user_attrs},
            {**self.system_attrs, **other.system_attrs},
        )


NO_DETAILS = Details()


def details_of(parameters: Mapping[str, Any], space: Mapping[str, BaseDistribution]) -> Details:
    """Return parameters as details."""
    return Details({name: (space[name].to_internal_repr(value), space[name]) for name, value in parameters.items()})


def next_number(connection: Connection, study_id: int) -> int:
    """Return the number of the study's next trial. Call it while no other process can insert a trial."""
    newest = connection.execute(_NEWEST, {"study": study_id}).scalar_one_or_none()
    return 0 if newest is None else int(newest) + 1


def count_started(connection: Connection, study_id: int) -> int:
    """Return the number after the newest trial that is not WAITING."""
    newest = connection.execute(_NEWEST_STARTED, {"study": study_id}).scalar_one_or_none()
    return 0 if newest is None else int(newest) + 1


def insert_trial(connection: Connection, study_id: int, number: int, now: datetime) -> int:
    """Insert a RUNNING trial without parameters; return its id."""
    new = {"study_id": study_id, "number": number, "state": TrialState.RUNNING, "datetime_start": now}
    trial_id = int(connection.execute(_INSERT_TRIAL, new).scalar_one())
    if connection.dialect.name == "sqlite" and connection.execute(_HAS_DETAILS, {"new": trial_id}).scalar_one():
        for statement in _DELETE_DETAILS:
            connection.execute(statement, {"deleted": trial_id})
    return trial_id


def write_details(connection: Connection, trial_id: int, details: Details) -> None:
    """Write parameters and attributes. An earlier value is overwritten."""
    dialect = connection.dialect.name
    if details.params:
        connection.execute(_WRITE_PARAM[dialect], _param_rows(trial_id, details))
    for statements, attributes in (
        (_WRITE_ATTRIBUTE, details.user_attrs),
        (_WRITE_SYSTEM_ATTRIBUTE, details.system_attrs),
    ):
        if attributes:
            texts = [
                {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)} for key, value in attributes.items()
            ]
            connection.execute(statements[dialect], texts)


def _param_rows(trial_id: int, details: Details) -> list[dict[str, Any]]:
    return [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": value,
            "distribution_json": distribution_to_json(distribution),
        }
        for name, (value, distribution) in details.params.items()
    ]


def adopt_trial(connection: Connection, trial_id: int, state: TrialState, details: Details, now: datetime) -> bool:
    """Start a trial that another program created: drop its reports and add parameters.

    Args:
        connection: The transaction.
        trial_id: The trial's id.
        state: The state that the trial must have, WAITING or RUNNING.
        details: The parameters to add.
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
    if details.params:
        # The other program may have added a parameter meanwhile. Then this raises an IntegrityError.
        connection.execute(sa.insert(params), _param_rows(trial_id, details))
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
    stored = [(step, *_stored_report(value)) for step, value in reports]
    rows = [
        {"trial_id": trial_id, "step": step, "intermediate_value": value, "intermediate_value_type": kind}
        for step, value, kind in stored
    ]
    connection.execute(_REPORT[connection.dialect.name], rows)


def end_trial(
    connection: Connection,
    trial_id: int,
    state: TrialState,
    final: Sequence[float],
    attributes: Mapping[str, str | None],
    now: datetime,
) -> bool:
    """End a RUNNING trial, with one value per objective.

    Returns:
        Whether the trial was RUNNING. Otherwise nothing is written.
    """
    changed = {"ended": trial_id, "state": state, "datetime_complete": now}
    if connection.execute(_END_TRIAL, changed).rowcount != 1:
        return False
    write_values(connection, trial_id, final)
    for key, text in attributes.items():
        _write_attribute(connection, trial_id, key, text)
    return True


def write_values(connection: Connection, trial_id: int, final: Sequence[float]) -> None:
    """Write the final values, one per objective."""
    if not final:
        return
    stored = [(objective, *_stored_value(value)) for objective, value in enumerate(final)]
    rows = [
        {"trial_id": trial_id, "objective": objective, "value": value, "value_type": kind}
        for objective, value, kind in stored
    ]
    connection.execute(_WRITE_VALUE[connection.dialect.name], rows)


def _write_attribute(connection: Connection, trial_id: int, key: str, text: str | None) -> None:
    write_details(connection, trial_id, Details(user_attrs={key: text}))
