"""Writes about trials through Optuna's storage interface: one transaction with the fence check for each.

Trials that another client of Optuna created have no lease, and are written without the check for as long as they have
none. A worker's own trial is written by ``hpo.storage.trial_store`` instead.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Connection, Engine, Row
from sqlalchemy.exc import IntegrityError

from hpo.storage.database.connection import StorageTimings
from hpo.storage.tables import optuna_tables
from hpo.storage.tables.allocation import Allocation
from hpo.storage.tables.checkpoints import Checkpoints
from hpo.storage.tables.leases import Lease, LeaseLostError, Leases, NumberTakenError, new_owner
from hpo.storage.tables.optuna_tables import UTC_CLOCK, Details, details_of, params, studies, study_attributes, trials
from hpo.storage.tables.schema import STUDY_KEY, leases
from hpo.storage.trial_reader import TrialReader, read_distribution

# These updates change nothing. They lock the row, and in SQLite the file.
_LOCK_STUDY = (
    sa.update(studies)
    .where(studies.c.study_id == sa.bindparam("locked"))
    .values(study_name=studies.c.study_name)
    .returning(studies.c.study_id)
)
_LOCK_TRIAL = (
    sa.update(trials)
    .where(trials.c.trial_id == sa.bindparam("locked"))
    .values(state=trials.c.state)
    .returning(trials.c.study_id, trials.c.number, trials.c.state)
)
_READ_KEY = sa.select(study_attributes.c.value_json).where(
    study_attributes.c.study_id == sa.bindparam("study"), study_attributes.c.key == STUDY_KEY
)
_READ_LEASE = sa.select(leases.c.number).where(
    leases.c.study == sa.bindparam("in_study"), leases.c.trial_id == sa.bindparam("of_trial"), ~leases.c.finished
)
_READ_STATE: sa.Select[Any] = sa.select(trials.c.number, trials.c.state).where(
    trials.c.trial_id == sa.bindparam("read")
)
_READ_DISTRIBUTION = (
    sa.select(params.c.distribution_json)
    .join(trials, trials.c.trial_id == params.c.trial_id)
    .where(trials.c.study_id == sa.bindparam("study"), params.c.param_name == sa.bindparam("name"))
    .limit(1)
)
_READ_PARAM = sa.select(params.c.param_id).where(
    params.c.trial_id == sa.bindparam("of_trial"), params.c.param_name == sa.bindparam("name")
)
_SET_TRIAL = sa.update(trials).where(trials.c.trial_id == sa.bindparam("changed"))


@dataclass(frozen=True)
class _Held:
    """A lease of this storage."""

    study_id: int
    key: str
    lease: Lease


@dataclass(frozen=True)
class _Target:
    """A trial that a transaction has locked. The key of its study is None if hpo has not created the study."""

    study_id: int
    key: str | None
    number: int
    trial_id: int
    state: TrialState


class TrialWriter:
    """The writes of one client about the trials of any study. The client leases the trials that it starts.

    Args:
        engine: The engine of Optuna's storage.
        timings: Lease length and restart grace.
        reader: The reader of the same database, which knows distributions.
    """

    def __init__(self, engine: Engine, timings: StorageTimings, reader: TrialReader) -> None:
        self._engine = engine
        self._timings = timings
        self._reader = reader
        self._owner = new_owner()
        # By trial id.
        self._held: dict[int, _Held] = {}

    def create(self, study_id: int, template: FrozenTrial | None = None) -> int:
        """Create a trial, RUNNING or like a template, and return its id.

        Raises:
            KeyError: if there is no such study.
        """
        with self._engine.begin() as connection:
            key = _lock_study(connection, study_id)
            number = optuna_tables.next_number(connection, study_id)
            trial_id = optuna_tables.insert_trial(connection, study_id, number, UTC_CLOCK.now())
            if template is not None:
                self._write_template(connection, study_id, trial_id, template)
            state = TrialState.RUNNING if template is None else template.state
            held = self._lease(connection, _Target(study_id, key, number, trial_id, state))
        self._hold(trial_id, held)
        if template is not None:
            for name, distribution in template.distributions.items():
                self._reader.add_distribution(study_id, name, distribution)
        return trial_id

    def write_param(self, trial_id: int, name: str, internal: float, distribution: BaseDistribution) -> None:
        """Write a parameter of a trial, unless the trial has it.

        Args:
            trial_id: The trial's id.
            name: The parameter.
            internal: Its value as Optuna stores it.
            distribution: Its distribution.

        Raises:
            ValueError: if the distribution is not compatible with that of another trial.
            KeyError: if there is no such trial.
            UpdateFinishedTrialError: if the trial has ended.
            LeaseLostError: if the trial has another owner. Nothing was written.
        """
        with self._writing(trial_id) as (connection, target):
            self._check_distribution(connection, target.study_id, name, distribution)
            if connection.execute(_READ_PARAM, {"of_trial": trial_id, "name": name}).first() is None:
                optuna_tables.write_details(connection, trial_id, Details({name: (internal, distribution)}))
        self._reader.add_distribution(target.study_id, name, distribution)

    def write(self, trial_id: int, details: Details, reports: Sequence[tuple[int, float]] = ()) -> None:
        """Write attributes and intermediate values of a trial.

        Raises:
            KeyError: if there is no such trial.
            UpdateFinishedTrialError: if the trial has ended.
            LeaseLostError: if the trial has another owner. Nothing was written.
        """
        with self._writing(trial_id) as (connection, _):
            optuna_tables.write_details(connection, trial_id, details)
            optuna_tables.report(connection, trial_id, reports)

    def set_state(self, trial_id: int, state: TrialState, values: Sequence[float] | None) -> bool:
        """Set the state and the values of a trial.

        Returns:
            Whether the state was set. A trial that is RUNNING, for this or another client, cannot be started.

        Raises:
            KeyError: if there is no such trial.
            UpdateFinishedTrialError: if the trial has ended.
            LeaseLostError: if the trial has another owner. Nothing was written.
        """
        try:
            with self._writing(trial_id) as (connection, target):
                optuna_tables.write_values(connection, trial_id, values or ())
                if state == target.state == TrialState.RUNNING:
                    return False
                held = self._change_state(connection, target, state)
        except (LeaseLostError, NumberTakenError):
            if state != TrialState.RUNNING or values is not None:
                raise
            # Another client was faster.
            return False
        self._hold(trial_id, held)
        return True

    def forget(self, study_id: int) -> None:
        """Forget the leases of a deleted study."""
        for trial_id, held in list(self._held.items()):
            if held.study_id == study_id:
                del self._held[trial_id]

    @contextmanager
    def _writing(self, trial_id: int) -> Iterator[tuple[Connection, _Target]]:
        """Begin a transaction about a trial, and lock the trial.

        Raises:
            KeyError: if there is no such trial.
            UpdateFinishedTrialError: if the trial has ended.
            LeaseLostError: if the trial has another owner. Nothing was written.
        """
        held = self._held.get(trial_id)
        if held is None:
            with self._engine.begin() as connection:
                yield connection, _lock_trial(connection, trial_id)
            return
        try:
            with self._engine.begin() as connection:
                yield connection, self._renew(connection, held)
        except IntegrityError as error:
            # The trial was deleted after the fence check.
            raise LeaseLostError(held.lease.number) from error

    def _renew(self, connection: Connection, held: _Held) -> _Target:
        """Renew a lease, which is the fence check and locks its row."""
        lease = held.lease
        try:
            Leases(held.key, self._timings).renew(connection, lease)
        except LeaseLostError:
            row = connection.execute(_READ_STATE, {"read": lease.trial_id}).one_or_none()
            _check_updatable(lease.trial_id, row)
            raise
        return _Target(held.study_id, held.key, lease.number, lease.trial_id, TrialState.RUNNING)

    def _change_state(self, connection: Connection, target: _Target, state: TrialState) -> _Held | None:
        """Change the state of a trial; return the lease of a trial that starts."""
        held = self._held.get(target.trial_id)
        if held is not None:
            Leases(held.key, self._timings).finish(connection, held.lease, None)
            Checkpoints(held.key).delete(connection, held.lease.number)
        changed: dict[str, Any] = {"changed": target.trial_id, "state": state}
        if state == TrialState.RUNNING:
            changed["datetime_start"] = UTC_CLOCK.now()
        elif state.is_finished():
            changed["datetime_complete"] = UTC_CLOCK.now()
        connection.execute(_SET_TRIAL, changed)
        return self._lease(connection, replace(target, state=state))

    def _lease(self, connection: Connection, target: _Target) -> _Held | None:
        """Lease a RUNNING trial that has no lease; return None for another trial.

        Raises:
            NumberTakenError: if another client has leased the trial.
        """
        key = target.key
        if key is None or target.state != TrialState.RUNNING:
            return None
        lease = Leases(key, self._timings).adopt(connection, target.number, target.trial_id, self._owner)
        # A deleted trial of this number may have left its rows.
        Checkpoints(key).delete(connection, target.number)
        Allocation(key).free(connection, target.number)
        return _Held(target.study_id, key, lease)

    def _hold(self, trial_id: int, held: _Held | None) -> None:
        """Remember the lease of a trial, or that this storage has none."""
        if held is None:
            self._held.pop(trial_id, None)
        else:
            self._held[trial_id] = held

    def _write_template(self, connection: Connection, study_id: int, trial_id: int, template: FrozenTrial) -> None:
        """Write the content of a template into a new trial."""
        for name, distribution in template.distributions.items():
            self._check_distribution(connection, study_id, name, distribution)
        parameters = details_of(template.params, template.distributions)
        attributes = Details(user_attrs=template.user_attrs, system_attrs=template.system_attrs)
        optuna_tables.write_details(connection, trial_id, parameters | attributes)
        optuna_tables.report(connection, trial_id, list(template.intermediate_values.items()))
        optuna_tables.write_values(connection, trial_id, template.values or ())
        changed = {"changed": trial_id, "state": template.state, "datetime_start": _utc(template.datetime_start)}
        connection.execute(_SET_TRIAL, changed | {"datetime_complete": _utc(template.datetime_complete)})

    def _check_distribution(
        self, connection: Connection, study_id: int, name: str, distribution: BaseDistribution
    ) -> None:
        """Check a distribution against the parameter's earlier one. The first check of a parameter is a query.

        Raises:
            ValueError: if they are not compatible.
        """
        known = self._reader.distribution(study_id, name)
        if known is None:
            text = connection.execute(_READ_DISTRIBUTION, {"study": study_id, "name": name}).scalar_one_or_none()
            known = distribution if text is None else read_distribution(text)
        check_distribution_compatibility(known, distribution)


def _lock_study(connection: Connection, study_id: int) -> str | None:
    """Lock a study, so that no other client creates a trial; return its key.

    Raises:
        KeyError: if there is no such study.
    """
    if connection.execute(_LOCK_STUDY, {"locked": study_id}).first() is None:
        raise KeyError(f"there is no study with the id {study_id}")
    return _read_key(connection, study_id)


def _lock_trial(connection: Connection, trial_id: int) -> _Target:
    """Lock a trial that has no lease. Each client that leases a trial locks it before."""
    row = connection.execute(_LOCK_TRIAL, {"locked": trial_id}).one_or_none()
    _check_updatable(trial_id, row)
    assert row is not None
    key = _read_key(connection, row.study_id)
    if key is not None and connection.execute(_READ_LEASE, {"in_study": key, "of_trial": trial_id}).first():
        raise LeaseLostError(row.number)
    return _Target(row.study_id, key, row.number, trial_id, row.state)


def _check_updatable(trial_id: int, row: Row[Any] | None) -> None:
    if row is None:
        raise KeyError(f"there is no trial with the id {trial_id}")
    if row.state.is_finished():
        raise UpdateFinishedTrialError(f"Trial#{row.number} has already finished and can not be updated.")


def _read_key(connection: Connection, study_id: int) -> str | None:
    text = connection.execute(_READ_KEY, {"study": study_id}).scalar_one_or_none()
    return None if text is None else str(json.loads(text))


def _utc(local: datetime | None) -> datetime | None:
    """Return a time for Optuna's tables. A time without a zone is a local time."""
    return None if local is None else local.astimezone(UTC).replace(tzinfo=None)
