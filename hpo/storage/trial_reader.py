"""The trials of studies as Optuna's storage returns them, in one or two queries.

A finished trial is read once. Optuna's cached storage has the same rule, but it reads the other trials by seven queries
of its object mapper. A pruner asks for all trials at each report, so these queries would be the largest part of a
trial's overhead.
"""

import copy
import json
import math
import threading
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, CategoricalDistribution, json_to_distribution
from optuna.trial import FrozenTrial
from sqlalchemy.engine import Connection, Engine, Row

from hpo.storage.database.connection import autocommit
from hpo.storage.tables.optuna_tables import (
    FIXED_PARAMS,
    intermediate_values,
    params,
    studies,
    study_attributes,
    system_attributes,
    trials,
    user_attributes,
    values,
)
from hpo.storage.tables.schema import STUDY_KEY

# The trials that one query asks for.
_MAX_IDS_PER_QUERY = 500

# SQLite has no NaN. Optuna stores the numbers that are not finite by the name of their type.
_NOT_FINITE = {"INF_POS": math.inf, "INF_NEG": -math.inf, "NAN": math.nan}

# JSON values that need no copy.
_IMMUTABLE = (str, int, float, bool, type(None))

_study: sa.BindParameter[int] = sa.bindparam("study", type_=sa.Integer())
_newest: sa.BindParameter[int] = sa.bindparam("newest", type_=sa.Integer())
_ids: sa.BindParameter[Any] = sa.bindparam("ids", expanding=True)

_IDENTITY = (
    studies.c.study_name,
    sa.select(study_attributes.c.value_json)
    .where(study_attributes.c.study_id == studies.c.study_id, study_attributes.c.key == STUDY_KEY)
    .correlate(studies)
    .scalar_subquery()
    .label("key"),
)
_ROW = (
    trials.c.trial_id,
    trials.c.number,
    trials.c.state,
    trials.c.datetime_start,
    trials.c.datetime_complete,
)


def _of_study(condition: sa.ColumnElement[bool], *, outer: bool) -> sa.Select[Any]:
    joined = sa.join(studies, trials, sa.and_(trials.c.study_id == studies.c.study_id, condition), isouter=outer)
    return sa.select(*_ROW, *_IDENTITY).select_from(joined).where(studies.c.study_id == _study)


# The first query returns a row for a study without new trials, too. Two queries in one, because SQLite would scan every
# trial of the study for a condition with OR.
_CHANGED = sa.union_all(
    _of_study(trials.c.trial_id > _newest, outer=True), _of_study(trials.c.trial_id.in_(_ids), outer=False)
)
_TRIAL: sa.Select[Any] = sa.select(*_ROW).where(trials.c.trial_id == sa.bindparam("id"))

# The tables of a trial's details.
_PARAM, _VALUE, _REPORT, _USER, _SYSTEM = range(5)


def _details(
    kind: int,
    table: sa.Table,
    name: str | None = None,
    position: str | None = None,
    number: str | None = None,
    text: str | None = None,
) -> sa.Select[Any]:
    def column(column: str | None, type_: sa.types.TypeEngine[Any]) -> sa.ColumnElement[Any]:
        return sa.cast(sa.null() if column is None else table.c[column], type_)

    (row_id,) = table.primary_key
    return sa.select(
        sa.literal_column(str(kind)).label("kind"),
        table.c.trial_id,
        row_id.label("row_id"),
        column(name, sa.String()).label("name"),
        column(position, sa.Integer()).label("position"),
        column(number, sa.Double()).label("number"),
        column(text, sa.Text()).label("text"),
    ).where(table.c.trial_id.in_(_ids))


_DETAILS = sa.union_all(
    _details(_PARAM, params, name="param_name", number="param_value", text="distribution_json"),
    _details(_VALUE, values, position="objective", number="value", text="value_type"),
    _details(
        _REPORT, intermediate_values, position="step", number="intermediate_value", text="intermediate_value_type"
    ),
    _details(_USER, user_attributes, name="key", text="value_json"),
    _details(_SYSTEM, system_attributes, name="key", text="value_json"),
).order_by("kind", "row_id")


class TrialReader:
    """The trials of a database's studies, in a cache. Each method that queries holds the lock of the cache.

    Args:
        engine: The engine of Optuna's storage.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = autocommit(engine)
        self._studies: dict[int, _Study] = {}
        self._lock = threading.Lock()

    def read_study(self, study_id: int, known: Collection[int] = ()) -> dict[int, FrozenTrial]:
        """Return all trials of a study by their ids, in the order of their numbers.

        The trials are shared, do not change them.

        Args:
            study_id: The study's id.
            known: The ids of trials that the caller knows. They may be returned in an earlier state.

        Raises:
            KeyError: if there is no such study.
        """
        with self._lock, self._engine.connect() as connection:
            study = self._studies.setdefault(study_id, _Study())
            rows = _changed_rows(connection, study_id, study, known)
            if not study.is_continued_by(rows, known):
                study = _Study()
                rows = _changed_rows(connection, study_id, study, known)
            if not rows:
                del self._studies[study_id]
                raise KeyError(f"there is no study with the id {study_id}")
            self._studies[study_id] = study
            study.identity = _identity(rows)
            for trial in _read_details(connection, [row for row in rows if row.trial_id is not None]):
                study.add(trial)
            return dict(study.trials)

    def cached_study(self, study_id: int) -> dict[int, FrozenTrial] | None:
        """Return the trials of a study at the last successful read, None if there was none."""
        with self._lock:
            study = self._studies.get(study_id)
            return None if study is None or study.identity is None else dict(study.trials)

    def read_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial. The trial is shared, do not change it.

        Raises:
            KeyError: if there is no such trial.
        """
        with self._lock:
            for study in self._studies.values():
                trial = study.trials.get(trial_id)
                if trial is not None and trial.state.is_finished():
                    return trial
        with self._engine.connect() as connection:
            rows = connection.execute(_TRIAL, {"id": trial_id}).all()
            if not rows:
                raise KeyError(f"there is no trial with the id {trial_id}")
            return _read_details(connection, rows)[0]

    def distribution(self, study_id: int, name: str) -> BaseDistribution | None:
        """Return a distribution of a parameter in the trials that were read, None if none has it."""
        study = self._studies.get(study_id)
        return None if study is None else study.distributions.get(name)

    def add_distribution(self, study_id: int, name: str, distribution: BaseDistribution) -> None:
        """Remember the distribution of a parameter that this process has written."""
        with self._lock:
            self._studies.setdefault(study_id, _Study()).distributions.setdefault(name, distribution)

    def forget(self, study_id: int) -> None:
        """Forget a deleted study."""
        with self._lock:
            self._studies.pop(study_id, None)


class _Study:
    """The trials of one study.

    Attributes:
        identity: The study's name and its key in hpo's tables, None if nothing was read yet.
        trials: The trials by their ids, which ascend with their numbers.
        unfinished: The ids of the unfinished trials.
        newest: The highest id. The ids of a study are committed in ascending order, because each transaction that
            creates a trial locks its study.
        distributions: A distribution of each parameter. All distributions of a parameter are compatible.
    """

    def __init__(self) -> None:
        self.identity: tuple[str, str | None] | None = None
        self.trials: dict[int, FrozenTrial] = {}
        self.unfinished: set[int] = set()
        self.newest = -1
        self.distributions: dict[str, BaseDistribution] = {}

    def add(self, trial: FrozenTrial) -> None:
        """Add a trial, or replace it by a later state."""
        trial_id = trial._trial_id
        self.trials[trial_id] = trial
        (self.unfinished.discard if trial.state.is_finished() else self.unfinished.add)(trial_id)
        self.newest = max(self.newest, trial_id)
        for name, distribution in trial.distributions.items():
            self.distributions.setdefault(name, distribution)

    def is_continued_by(self, rows: Sequence[Row[Any]], known: Collection[int]) -> bool:
        """Return whether rows belong to this study, and to each of its unfinished trials that is not known.

        SQLite gives the id of a deleted study to the next one, and a restored database has lost its last trials.
        """
        found = {row.trial_id for row in rows}
        return self.identity in (None, _identity(rows)) and self.unfinished.difference(known) <= found


class _Sequence(tuple[Any, ...]):
    """A choice that JSON stores as a list. It equals the tuple and the list that a script may have given.

    Optuna's storage returns a list, which it refuses to compare with the tuple of the next call of ``suggest``.
    """

    __slots__ = ()
    __hash__ = tuple.__hash__

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, tuple | list) else NotImplemented

    def __ne__(self, other: object) -> bool:
        return not self == other


@lru_cache(maxsize=1024)
def read_distribution(text: str) -> BaseDistribution:
    """Return the distribution of a stored parameter. It is shared, do not change it."""
    with warnings.catch_warnings():
        # Optuna warns of choices that are not JSON scalars. The script that chose them was warned already.
        warnings.simplefilter("ignore", UserWarning)
        distribution = json_to_distribution(text)
        if isinstance(distribution, CategoricalDistribution):
            return CategoricalDistribution(tuple(map(_read_choice, distribution.choices)))
        return distribution


def _read_params(enqueued: Any) -> Any:
    """Return the parameters of an enqueued trial, which are compared with the choices of the script."""
    if not isinstance(enqueued, dict):
        return enqueued
    return {name: _read_choice(value) for name, value in enqueued.items()}


def _read_choice(choice: Any) -> Any:
    return _Sequence(map(_read_choice, choice)) if isinstance(choice, list) else choice


def copy_trial(trial: FrozenTrial) -> FrozenTrial:
    """Return a copy of a trial whose containers can be changed. Distributions are immutable and shared."""
    return FrozenTrial(
        number=trial.number,
        state=trial.state,
        value=None,
        values=trial.values,
        datetime_start=trial.datetime_start,
        datetime_complete=trial.datetime_complete,
        params=dict(trial.params),
        distributions=dict(trial.distributions),
        user_attrs=copy_attributes(trial.user_attrs),
        system_attrs=copy_attributes(trial.system_attrs),
        intermediate_values=dict(trial.intermediate_values),
        trial_id=trial._trial_id,
    )


def copy_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a deep copy of a trial's attributes."""
    return {key: value if isinstance(value, _IMMUTABLE) else copy.deepcopy(value) for key, value in attributes.items()}


def _changed_rows(connection: Connection, study_id: int, study: _Study, known: Collection[int]) -> Sequence[Row[Any]]:
    """Return the rows of new trials and of unfinished ones, and at least one row for a study that exists."""
    ids = list(study.unfinished.difference(known))
    return connection.execute(_CHANGED, {"study": study_id, "newest": study.newest, "ids": ids}).all()


def _identity(rows: Sequence[Row[Any]]) -> tuple[str, str | None] | None:
    return (rows[0].study_name, rows[0].key) if rows else None


def _read_details(connection: Connection, rows: Sequence[Row[Any]]) -> list[FrozenTrial]:
    built = {row.trial_id: _build(row) for row in sorted(rows, key=_trial_id)}
    ids = list(built)
    for start in range(0, len(ids), _MAX_IDS_PER_QUERY):
        _add_details(built, connection.execute(_DETAILS, {"ids": ids[start : start + _MAX_IDS_PER_QUERY]}))
    return list(built.values())


def _trial_id(row: Row[Any]) -> int:
    return int(row.trial_id)


def _build(row: Row[Any]) -> FrozenTrial:
    return FrozenTrial(
        number=row.number,
        state=row.state,
        value=None,
        datetime_start=_local_time(row.datetime_start),
        datetime_complete=_local_time(row.datetime_complete),
        params={},
        distributions={},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
        trial_id=row.trial_id,
    )


def _add_details(built: Mapping[int, FrozenTrial], rows: Iterable[Any]) -> None:
    objectives: dict[int, dict[int, float]] = {}
    for kind, trial_id, _, name, position, number, text in rows:
        trial = built[trial_id]
        if kind == _PARAM:
            distribution = trial.distributions[name] = read_distribution(text)
            trial.params[name] = distribution.to_external_repr(number)
        elif kind == _VALUE:
            objectives.setdefault(trial_id, {})[position] = _number(number, text)
        elif kind == _REPORT:
            trial.intermediate_values[position] = _number(number, text)
        elif kind == _USER:
            trial.user_attrs[name] = json.loads(text)
        else:
            value = json.loads(text)
            trial.system_attrs[name] = _read_params(value) if name == FIXED_PARAMS else value
    for trial_id, by_objective in objectives.items():
        built[trial_id].values = [value for _, value in sorted(by_objective.items())]


def _number(stored: float | None, type_name: str) -> float:
    # SQLite stores NaN as NULL.
    return _NOT_FINITE.get(type_name, math.nan) if stored is None else stored


def _local_time(stored: datetime | None) -> datetime | None:
    """Return a time of Optuna's tables, which is in UTC, as Optuna does."""
    return None if stored is None else stored.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
