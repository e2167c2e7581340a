"""What Optuna's storage writes of a trial, in one statement each, within a transaction of ours.

Through its storage, which loads what it changes again for each value, a trial costs ten times as much. The tables are
Optuna's own, and a test compares what is written with what its storage writes.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
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

FINITE = models.TrialValueModel.TrialValueType.FINITE
_FINITE_REPORT = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE

_Upsert = sqlite.Insert | postgresql.Insert


def insert_trial(
    connection: Connection,
    study_id: int,
    number: int,
    parameters: Mapping[str, Any],
    space: Mapping[str, BaseDistribution],
) -> int | None:
    """Insert a RUNNING trial with its parameters; returns its id, None where the study's next is another number."""
    new = {"study_id": study_id, "number": number, "state": TrialState.RUNNING, "datetime_start": datetime.now()}
    trial_id = connection.execute(sa.insert(trials).values(new).returning(trials.c.trial_id)).scalar_one()
    # After the insert, which keeps all others of a SQLite file from inserting until the end of the transaction.
    before = sa.select(trials.c.number).where(trials.c.study_id == study_id, trials.c.trial_id < trial_id)
    newest = connection.execute(before.order_by(trials.c.trial_id.desc()).limit(1)).scalar_one_or_none()
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
    """Write intermediate values, each an epoch and an accuracy, over those that are there."""
    if not reports:
        return
    rows = [
        {
            "trial_id": trial_id,
            "step": epoch,
            "intermediate_value": accuracy,
            "intermediate_value_type": _FINITE_REPORT,
        }
        for epoch, accuracy in reports
    ]
    table = intermediate_values
    new = _insert(connection, table)
    changed = {"intermediate_value": new.excluded.intermediate_value}
    connection.execute(new.on_conflict_do_update(index_elements=[table.c.trial_id, table.c.step], set_=changed), rows)


def end_trial(
    connection: Connection, trial_id: int, state: TrialState, value: float | None, attributes: Mapping[str, str]
) -> bool:
    """End a trial; returns whether it was RUNNING until now."""
    running = sa.and_(trials.c.trial_id == trial_id, trials.c.state == TrialState.RUNNING)
    ended = sa.update(trials).where(running).values(state=state, datetime_complete=datetime.now())
    if connection.execute(ended).rowcount != 1:
        return False
    if value is not None:
        new = {"trial_id": trial_id, "objective": 0, "value": value, "value_type": FINITE}
        connection.execute(sa.insert(values).values(new))
    for key, text in attributes.items():
        new = {"trial_id": trial_id, "key": key, "value_json": json.dumps(text)}
        connection.execute(sa.insert(user_attributes).values(new))
    return True


def _insert(connection: Connection, table: sa.Table) -> _Upsert:
    return (sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert)(table)
