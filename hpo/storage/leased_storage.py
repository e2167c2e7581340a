"""Optuna's storage interface on leases, so that Optuna's own objects work with the trials of hpo.

Each write about a running trial is one transaction with the fence check of the trial's lease, so a process that was
frozen past its lease changes nothing (``hpo.storage.trial_writer``).

A worker runs its trial within ``LeasedStorage.running``. Then calls about this trial change a ``FrozenTrial`` in memory
and wait for no database. ``OwnTrial.write`` queues the changes, and raises the error of a lost lease. A user's
``except Exception`` may catch that error, but then the trial has ended for this worker anyway: the fence refuses each
later write, and the worker reads the error from the heartbeat when the function returns.
"""

import json
import threading
import uuid
import weakref
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, check_distribution_compatibility, distribution_to_json
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._base import DEFAULT_STUDY_NAME_PREFIX
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import IntegrityError

from hpo.storage.database.connection import StorageTimings
from hpo.storage.database.retry import DATABASE_ERRORS, is_outage
from hpo.storage.tables.hidden_attributes import is_ambiguous, stored_name, without_hidden
from hpo.storage.tables.optuna_tables import (
    NO_DETAILS,
    Details,
    studies,
    study_attributes,
)
from hpo.storage.tables.schema import STUDY_KEY
from hpo.storage.trial_reader import TrialReader, copy_attributes, copy_trial, read_distribution
from hpo.storage.trial_writer import TrialWriter

_Reports = Sequence[tuple[int, float]]

_directions = cast(sa.Table, models.StudyDirectionModel.__table__)
_INSERT_STUDY = sa.insert(studies).returning(studies.c.study_id)
_INSERT_DIRECTION = sa.insert(_directions)
_INSERT_ATTRIBUTE = sa.insert(study_attributes)


class OwnTrial(Protocol):
    """The trial that a worker runs.

    Attributes:
        study_id: The study's id.
        trial_id: The trial's id.
        frozen: The trial as the worker knows it. The storage changes its containers.
    """

    @property
    def study_id(self) -> int: ...  # noqa: D102  # described above

    @property
    def trial_id(self) -> int: ...  # noqa: D102  # described above

    @property
    def frozen(self) -> FrozenTrial: ...  # noqa: D102  # described above

    def write(self, details: Details, reports: _Reports) -> None:
        """Queue parameters, attributes and reports for the database.

        Raises:
            LeaseLostError: if the trial has another owner or has ended.
        """

    def end(self, state: TrialState, values: Sequence[float] | None) -> None:
        """Record the end of the trial, which its worker writes."""


class LeasedStorage(BaseStorage):
    """Storage of Optuna's interface in which each write about a running trial needs the trial's lease.

    hpo's tables must exist. A copy by pickle has leases of its own.

    Args:
        rdb: Optuna's storage of the database.
        timings: Lease length and restart grace.
    """

    def __init__(self, rdb: RDBStorage, timings: StorageTimings) -> None:
        self._rdb = rdb
        self._timings = timings
        self._optuna = _CachedStorage(rdb)
        self._engine = rdb.engine
        self._reader = TrialReader(rdb.engine)
        self._writer = TrialWriter(rdb.engine, timings, self._reader)
        self._own: OwnTrial | None = None
        # The number of trials that a study shows, by the id of the study.
        self._shown: dict[int, int] = {}
        self._own_lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {"rdb": self._rdb, "timings": self._timings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # on an object without state
        # No other object has the connections of a copy.
        weakref.finalize(self, self._engine.dispose)

    def show_first(self, study_id: int, count: int | None) -> None:
        """Show only the first trials of a study, None for all."""
        if count is None:
            self._shown.pop(study_id, None)
        else:
            self._shown[study_id] = count

    @contextmanager
    def running(self, own: OwnTrial) -> Iterator[None]:
        """Let a worker run a trial. Calls about this trial do not wait for the database."""
        with self._own_lock:
            self._own = own
        try:
            yield
        finally:
            with self._own_lock:
                self._own = None

    # Studies

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Create a study with a key for its leases."""
        name = f"{DEFAULT_STUDY_NAME_PREFIX}{uuid.uuid4()}" if study_name is None else study_name
        attributes = {"times": "UTC", STUDY_KEY: uuid.uuid4().hex}
        try:
            with self._engine.begin() as connection:
                study_id = int(connection.execute(_INSERT_STUDY, {"study_name": name}).scalar_one())
                its = {"study_id": study_id}
                connection.execute(
                    _INSERT_DIRECTION,
                    [its | {"objective": index, "direction": value} for index, value in enumerate(directions)],
                )
                connection.execute(
                    _INSERT_ATTRIBUTE,
                    [its | {"key": key, "value_json": json.dumps(value)} for key, value in attributes.items()],
                )
        except IntegrityError:
            raise DuplicatedStudyError(f"there is a study '{name}' already") from None
        self._forget(study_id)
        return study_id

    def delete_study(self, study_id: int) -> None:
        """Delete a study. A trigger deletes its rows in hpo's tables."""
        self._optuna.delete_study(study_id)
        self._forget(study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set a user attribute of a study."""
        if is_ambiguous(key) and STUDY_KEY in self._optuna.get_study_user_attrs(study_id):
            key = stored_name(key)
        self._optuna.set_study_user_attr(study_id, key, _as_stored({key: value})[key])

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set a system attribute of a study."""
        self._optuna.set_study_system_attr(study_id, key, _as_stored({key: value})[key])

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return the id of a study."""
        return self._optuna.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        """Return the name of a study."""
        return self._optuna.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return the directions of a study."""
        return self._optuna.get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the user attributes of a study, without hpo's."""
        return without_hidden(self._optuna.get_study_user_attrs(study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the system attributes of a study."""
        return self._optuna.get_study_system_attrs(study_id)

    def get_all_studies(self) -> list[FrozenStudy]:
        """Return all studies by their ids."""
        found = self._optuna.get_all_studies()
        for study in found:
            study.user_attrs = without_hidden(study.user_attrs)
        return found

    # Reading trials

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial."""
        own = self._own_trial(trial_id)
        return self._reader.read_trial(trial_id) if own is None else self._copy_own(own)

    def get_trial_param(self, trial_id: int, param_name: str) -> float:
        """Return a parameter of a trial as Optuna stores it."""
        trial = self.get_trial(trial_id)
        return float(trial.distributions[param_name].to_internal_repr(trial.params[param_name]))

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """Return the id of the trial of a number."""
        own = self._own
        if own is not None and (own.study_id, own.frozen.number) == (study_id, trial_number):
            return own.trial_id
        return self._rdb.get_trial_id_from_study_id_trial_number(study_id, trial_number)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials of a study by their numbers."""
        own = self._own
        if own is not None and own.study_id == study_id:
            found = self._read_study_of_own(own)
            found[own.trial_id] = self._copy_own(own)
        else:
            found = self._reader.read_study(study_id)
        shown = self._shown.get(study_id, len(found))
        chosen = [
            trial for trial in found.values() if trial.number < shown and (states is None or trial.state in states)
        ]
        return [copy_trial(trial) for trial in chosen] if deepcopy else chosen

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """Return the best complete trial, of equal trials the lowest number."""
        directions = self.get_study_directions(study_id)
        if len(directions) > 1:
            raise RuntimeError("Best trial can be obtained only for single-objective optimization.")
        complete = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.COMPLETE,))
        valued = [trial for trial in complete if trial.values]
        if not valued:
            raise ValueError("No trials are completed yet.")
        return (max if directions[0] == StudyDirection.MAXIMIZE else min)(valued, key=lambda trial: trial.values[0])

    # Writing trials

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial. A RUNNING trial is leased by this storage."""
        return self._writer.create(study_id, template_trial)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Set a parameter of a trial, unless the trial has it."""
        internal = float(param_value_internal)
        if (own := self._own_trial(trial_id)) is None:
            self._writer.write_param(trial_id, param_name, internal, distribution)
        else:
            self._set_own_param(own, param_name, internal, distribution)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Set an intermediate value of a trial."""
        reports = [(step, float(intermediate_value))]
        if (own := self._own_trial(trial_id)) is None:
            self._writer.write(trial_id, NO_DETAILS, reports)
            return
        with self._own_lock:
            own.write(NO_DETAILS, reports)
            own.frozen.intermediate_values.update(reports)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a user attribute of a trial."""
        self._set_attributes(trial_id, Details(user_attrs={key: value}))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a system attribute of a trial."""
        self._set_attributes(trial_id, Details(system_attrs={key: value}))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set the state and the values of a trial. A trial that starts is leased by this storage.

        Returns:
            Whether the state was set. A trial that is RUNNING, for this or another client, cannot be started.
        """
        if (own := self._own_trial(trial_id)) is None:
            return self._writer.set_state(trial_id, state, values)
        if state == TrialState.RUNNING:
            return False
        with self._own_lock:
            own.end(state, values)
        return True

    def _own_trial(self, trial_id: int) -> OwnTrial | None:
        own = self._own
        return own if own is not None and own.trial_id == trial_id else None

    def _copy_own(self, own: OwnTrial) -> FrozenTrial:
        with self._own_lock:
            return copy_trial(own.frozen)

    def _read_study_of_own(self, own: OwnTrial) -> dict[int, FrozenTrial]:
        try:
            return self._reader.read_study(own.study_id, known=(own.trial_id,))
        except DATABASE_ERRORS as error:
            # An outage must not fail the trial. The sampler and the pruner can do with the trials of a moment ago.
            cached = self._reader.cached_study(own.study_id)
            if cached is None or not is_outage(error):
                raise
            return cached

    def _set_own_param(self, own: OwnTrial, name: str, internal: float, distribution: BaseDistribution) -> None:
        """Set a parameter of the own trial. Its distribution is compared with the trials that were read before."""
        known = self._reader.distribution(own.study_id, name)
        if known is not None:
            check_distribution_compatibility(known, distribution)
        stored = read_distribution(distribution_to_json(distribution))
        with self._own_lock:
            if name not in own.frozen.params:
                own.write(Details({name: (internal, distribution)}), ())
                own.frozen.params[name] = stored.to_external_repr(internal)
                own.frozen.distributions[name] = stored
        self._reader.add_distribution(own.study_id, name, distribution)

    def _set_attributes(self, trial_id: int, details: Details) -> None:
        user_attrs, system_attrs = _as_stored(details.user_attrs), _as_stored(details.system_attrs)
        if (own := self._own_trial(trial_id)) is None:
            self._writer.write(trial_id, Details(user_attrs=user_attrs, system_attrs=system_attrs))
            return
        with self._own_lock:
            own.write(Details(user_attrs=user_attrs, system_attrs=system_attrs), ())
            own.frozen.user_attrs.update(copy_attributes(user_attrs))
            own.frozen.system_attrs.update(copy_attributes(system_attrs))

    def _forget(self, study_id: int) -> None:
        """Forget what is known of a study that was deleted, or that has the id of a deleted one."""
        self._reader.forget(study_id)
        self._writer.forget(study_id)


def _as_stored(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes as they will be read from the database.

    Raises:
        TypeError: if a value is not JSON. Arrays and numbers of NumPy, pandas and PyTorch become lists and numbers,
            because scripts and Optuna's own functions set them in studies in memory.
    """
    return {key: json.loads(json.dumps(value, default=_to_python)) for key, value in attributes.items()}


def _to_python(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
