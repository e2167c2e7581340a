"""Cache of a study's trials. A finished trial is read from the database once."""

import json
import math
import threading
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Connection, Engine, Row

from hpo.errors import StorageError
from hpo.storage.database.connection import autocommit
from hpo.storage.tables.leases import ActiveTrial, Leases, Pause
from hpo.storage.tables.optuna_tables import TrialClock, intermediate_values, params, trials, user_attributes, values
from hpo.storage.tables.schema import is_study

# The trials that one query asks for.
_MAX_IDS_PER_QUERY = 500

# The results that each refresh checks.
_MAX_WITNESSES = 20


@lru_cache
def _distribution(text: str) -> BaseDistribution:
    with warnings.catch_warnings():
        # Optuna warns of the choices of another program, such as lists.
        warnings.simplefilter("ignore", UserWarning)
        return json_to_distribution(text)


def _is_finite(value: float | None) -> bool:
    """Return whether a stored value is a number. Other programs write NaN, and infinity, which is stored as NULL."""
    return value is not None and math.isfinite(value)


def _trials_where(condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
    is_value = sa.and_(trials.c.trial_id == values.c.trial_id, values.c.objective == 0)
    joined = sa.outerjoin(trials, values, is_value)
    return sa.select(*trials.c, values.c.value).select_from(joined).where(condition)


def _of_trials(table: sa.Table, *columns: str) -> sa.Select[Any]:
    ids: sa.BindParameter[Any] = sa.bindparam("ids", expanding=True)
    selected = sa.select(table.c.trial_id, *(table.c[column] for column in columns))
    return selected.where(table.c.trial_id.in_(ids)).order_by(*table.primary_key)


# Two queries in one, because SQLite would scan every trial of the study for a condition with OR.
_study: sa.BindParameter[int] = sa.bindparam("study", type_=sa.Integer())
_IN_STUDY = sa.and_(trials.c.study_id == _study, is_study(_study))
_CHANGED = sa.union_all(
    _trials_where(sa.and_(_IN_STUDY, trials.c.trial_id > sa.bindparam("newest"))),
    _trials_where(sa.and_(_IN_STUDY, trials.c.trial_id.in_(sa.bindparam("unfinished", expanding=True)))),
)
_STUDY_EXISTS = sa.select(is_study(_study))
_COUNT = sa.select(sa.func.count()).where(_IN_STUDY)
_PARAMS = _of_trials(params, "param_name", "param_value", "distribution_json")
_INTERMEDIATE_VALUES = _of_trials(intermediate_values, "step", "intermediate_value")
_USER_ATTRIBUTES = _of_trials(user_attributes, "key", "value_json")


def study_gone_error() -> StorageError:
    """Return the error of a study that is no longer in the database."""
    return StorageError(
        "the study was deleted, renamed or replaced in the database while it was in use; "
        "the same command continues or starts the study of this name"
    )


class TrialView(NamedTuple):
    """A study's trials at one moment. They are shared, do not change them.

    Attributes:
        trials: All trials by their numbers.
        paused: The numbers of the paused trials, and the attempts that paused them.
        losses: How often the database was found to have lost commits.
        budget: The number of trials that the study shall have.
    """

    trials: list[FrozenTrial]
    paused: dict[int, int]
    losses: int = 0
    budget: int = 0


def stray_trials(view: TrialView, active: Iterable[ActiveTrial]) -> list[int]:
    """Return the numbers of the RUNNING trials without a lease, which another program runs."""
    leased = {progress.number for progress in active}
    return [trial.number for trial in view.trials if trial.state == TrialState.RUNNING and trial.number not in leased]


class TrialCache:
    """The trials of one study. Each refresh reads only trials that may have changed.

    A database that was restored or that failed over may have lost its last commits. Then the newest trials or the last
    results that were read are gone. Each refresh checks them, and reads all trials again if one differs.

    Args:
        engine: The engine of Optuna's storage.
        study_id: The study's id in Optuna's tables.
        key: The study's key in hpo's tables.
        name: The study's name.
        leases: The study's leases, which know the paused trials and the budget.
        clock: The clock of the trials.
    """

    def __init__(
        self,
        engine: Engine,
        study_id: int,
        key: str,
        name: str,
        leases: Leases,
        clock: TrialClock,
    ) -> None:
        self._engine = autocommit(engine)
        self._study = {"study": study_id, "in_study": key, "named": name}
        self._leases = leases
        self._budget = 0
        self._clock = clock
        # By trial id. The ids ascend with the numbers.
        self._trials: dict[int, FrozenTrial] = {}
        self._newest = -1
        self._unfinished: set[int] = set()
        # The trials that were paused at the last refresh, by their ids.
        self._paused: dict[int, Pause] = {}
        # The trials whose results were read last, because these are lost first.
        self._witnesses: set[int] = set()
        self._rows: dict[int, Row[Any]] = {}
        # The most parameters that a trial has had.
        self._most_params = 0
        self._losses = 0
        self._lock = threading.Lock()

    def refresh(self) -> TrialView:
        """Read the changed trials and return all trials.

        Raises:
            StorageError: if the study was deleted, or one of its trials before others.
        """
        with self._lock:
            try:
                self._read()
            except _CommitsLostError:
                self._losses += 1
                self._forget()
                self._read()
            paused = ((self._trials.get(trial_id), pause) for trial_id, pause in self._paused.items())
            numbers = {trial.number: pause.attempt for trial, pause in paused if trial is not None}
            return TrialView(list(self._trials.values()), numbers, self._losses, self._budget)

    def recount(self) -> None:
        """Count the trials. The next refresh reads all of them again if an old one was deleted."""
        with self._lock, self._engine.connect() as connection:
            if connection.execute(_COUNT, self._study).scalar_one() < len(self._trials):
                self._losses += 1
                self._forget()

    def _read(self) -> None:
        """Read the changed trials.

        Raises:
            _CommitsLostError: if the database has lost a trial or a result. Nothing was changed.
            StorageError: if the study or one of its earlier trials was deleted.
        """
        with self._engine.connect() as connection:
            # The paused trials are read first, because such a trial changes only with another pause.
            paused, self._budget = self._leases.paused_and_budget(connection)
            rows = self._changed(connection, paused)
            details = _TrialRows(connection, rows, self._trials, self._most_params, self._clock)
        for row in rows:
            self._check_number(row)
            trial = self._trials[row.trial_id] = details.build(row)
            (self._unfinished.discard if trial.state.is_finished() else self._unfinished.add)(row.trial_id)
            self._newest = max(self._newest, row.trial_id)
            self._rows[row.trial_id] = row
            self._most_params = max(self._most_params, len(trial.params))
        self._paused = paused
        ended = [row for row in rows if row.state.is_finished()]
        if ended:
            ended.sort(key=lambda row: row.datetime_complete or row.datetime_start or datetime.min)
            self._witnesses = {row.trial_id for row in ended[-_MAX_WITNESSES:]}

    def _check_number(self, row: Row[Any]) -> None:
        """Check that a new trial has the next number. Otherwise each refresh raises."""
        if row.trial_id in self._trials or row.number == len(self._trials):
            return
        raise StorageError(
            f"a trial before trial {row.number} of the study was deleted in the database; "
            "start the study under another name"
        )

    def _forget(self) -> None:
        for cached in (self._trials, self._unfinished, self._paused, self._witnesses, self._rows):
            cached.clear()
        self._newest = -1

    def _changed(self, connection: Connection, paused: dict[int, Pause]) -> list[Row[Any]]:
        """Return the rows of new and of unfinished trials, except trials that have stayed paused.

        Raises:
            _CommitsLostError: if the database has lost a trial or a result.
        """
        unchanged = {trial_id for trial_id, pause in self._paused.items() if paused.get(trial_id) == pause}
        checked = self._witnesses | ({self._newest} & self._trials.keys())
        unfinished = list((self._unfinished - unchanged) | checked)
        query = self._study | {"newest": self._newest, "unfinished": unfinished}
        rows = sorted(connection.execute(_CHANGED, query), key=lambda row: (row.number, row.trial_id))
        if not rows:
            self._check_exists(connection)
        self._check_kept(rows, unfinished)
        return [row for row in rows if row.trial_id not in unchanged and not self._is_finished(row.trial_id)]

    def _check_kept(self, rows: Sequence[Row[Any]], expected: Sequence[int]) -> None:
        found = {row.trial_id: row for row in rows}
        known = [(self._rows[trial_id], found.get(trial_id)) for trial_id in expected]
        if any(_is_lost(before, now) for before, now in known):
            raise _CommitsLostError

    def _is_finished(self, trial_id: int) -> bool:
        return trial_id in self._trials and trial_id not in self._unfinished

    def _check_exists(self, connection: Connection) -> None:
        if not connection.execute(_STUDY_EXISTS, self._study).scalar_one():
            raise study_gone_error()


class _CommitsLostError(Exception):
    """The database has lost a trial or a result that was read before."""


def _is_lost(before: Row[Any], now: Row[Any] | None) -> bool:
    """Return whether a row was lost, or replaced by a row that no later change of the trial can have written."""
    if now is None or now.number != before.number or before.datetime_start not in (None, now.datetime_start):
        return True
    changed = (before.state, before.datetime_complete) != (now.state, now.datetime_complete)
    return before.state.is_finished() and changed


class _TrialRows:
    """Parameters, values and attributes of some trials. The parameters of cached trials are not read again.

    Args:
        connection: The transaction.
        rows: The trials' rows.
        cached: The trials that were read before, by their ids.
        most_params: The most parameters that a trial has had.
        clock: The clock of the trials.
    """

    def __init__(
        self,
        connection: Connection,
        rows: Sequence[Row[Any]],
        cached: dict[int, FrozenTrial],
        most_params: int,
        clock: TrialClock,
    ) -> None:
        self._cached = cached
        self._clock = clock
        ids = [row.trial_id for row in rows]
        # The parameters of a trial that another program created are added later.
        new = [
            trial_id
            for trial_id in ids
            if trial_id not in cached or not cached[trial_id].params or len(cached[trial_id].params) < most_params
        ]
        self._new = set(new)
        ended = [row.trial_id for row in rows if row.state.is_finished()]
        self._params: dict[int, dict[str, Any]] = defaultdict(dict)
        self._distributions: dict[int, dict[str, BaseDistribution]] = defaultdict(dict)
        self._intermediate_values: dict[int, dict[int, float]] = defaultdict(dict)
        self._user_attrs: dict[int, dict[str, Any]] = defaultdict(dict)
        for trial_id, name, value, text in _select(connection, _PARAMS, new):
            distribution = self._distributions[trial_id][name] = _distribution(text)
            self._params[trial_id][name] = distribution.to_external_repr(value)
        for trial_id, step, value in _select(connection, _INTERMEDIATE_VALUES, ids):
            if _is_finite(value):
                self._intermediate_values[trial_id][step] = value
        for trial_id, key, text in _select(connection, _USER_ATTRIBUTES, ended):
            self._user_attrs[trial_id][key] = json.loads(text)

    def build(self, row: Row[Any]) -> FrozenTrial:
        """Return the trial of a row."""
        before = None if row.trial_id in self._new else self._cached.get(row.trial_id)
        return FrozenTrial(
            number=row.number,
            state=row.state,
            value=row.value if _is_finite(row.value) else None,
            datetime_start=self._clock.read(row.datetime_start),
            datetime_complete=self._clock.read(row.datetime_complete),
            params=before.params if before else self._params[row.trial_id],
            distributions=before.distributions if before else self._distributions[row.trial_id],
            user_attrs=self._user_attrs[row.trial_id],
            system_attrs={},
            intermediate_values=self._intermediate_values[row.trial_id],
            trial_id=row.trial_id,
        )


def _select(connection: Connection, query: sa.Select[Any], ids: Sequence[int]) -> Iterator[Iterable[Any]]:
    for start in range(0, len(ids), _MAX_IDS_PER_QUERY):
        yield from connection.execute(query, {"ids": ids[start : start + _MAX_IDS_PER_QUERY]})
