"""Creation and loading of studies, and the settings that a study was created from."""

import shlex
import uuid
import warnings
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any, Self

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.config.study import StudyConfig
from hpo.errors import StorageError, StudyMismatchError
from hpo.storage.database.connection import Database, close
from hpo.storage.leased_storage import LeasedStorage
from hpo.storage.tables import leftovers, schema
from hpo.storage.tables.optuna_tables import TrialClock
from hpo.storage.trial_store import Conventions, TrialStore

# The user attributes of a study. SQLite gives the id of a deleted study to the next one, so hpo's tables have a key of
# their own for the study.
_SETTINGS, _DATA, _TIMES, _LEASES = "settings", "data", "times", schema.STUDY_KEY

_MAXIMIZE = (StudyDirection.MAXIMIZE,)

# The value of the attribute _TIMES. Earlier versions of hpo wrote local times and no attribute.
_UTC = "UTC"

# The place of the data. Their fingerprint decides whether two places hold the same data.
_PLACE = "data.dataset"


class Study:
    """An open study. As a context manager it closes its connections.

    Attributes:
        database: The study's database.
        id: The id of the study in Optuna's tables.
        key: The random name of the study, which a study of the same name that replaces it does not have.
        directions: The direction of each objective.
        store: The study's trials.
    """

    def __init__(self, database: Database, rdb: RDBStorage, optuna_study: optuna.Study) -> None:
        self.database = database
        self._rdb = rdb
        self._optuna_study = optuna_study
        study_id = rdb.get_study_id_from_name(optuna_study.study_name)
        attributes = optuna_study.user_attrs
        self.key = str(attributes[_LEASES])
        self.id = study_id
        self.directions = optuna_study.directions
        conventions = Conventions(TrialClock(utc=attributes.get(_TIMES) == _UTC), self.direction)
        self.store = TrialStore(rdb.engine, study_id, self.key, self.name, database.timings, conventions=conventions)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections of this study and of its siblings."""
        close(self._rdb)

    @property
    def name(self) -> str:
        """The study's name in the database."""
        return self._optuna_study.study_name

    @property
    def direction(self) -> StudyDirection:
        """Whether greater values are better; NOT_SET if the study has several objectives."""
        return self.directions[0] if len(self.directions) == 1 else StudyDirection.NOT_SET

    @property
    def metric(self) -> str:
        """The name of the values, such as "validation accuracy"; empty if it is unknown."""
        names = self._optuna_study.metric_names
        return names[0] if names else ""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the study was created from, as ``{"table.key": value}``."""
        settings: dict[str, Any] = self._optuna_study.user_attrs[_SETTINGS]
        return settings

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the study's data, or of its script."""
        fingerprint: str = self._optuna_study.user_attrs[_DATA]
        return fingerprint

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials by their numbers. The list and the trials are shared, do not change them.

        Raises:
            StorageError: if the study was deleted.
        """
        return self.store.trials

    def sibling(self, config: StudyConfig, fingerprint: str) -> "Study | None":
        """Return another study of this database over the same connections.

        Args:
            config: The other study's file.
            fingerprint: The fingerprint of its data.

        Returns:
            The study, None if hpo has not created it. It is closed with this study.

        Raises:
            StudyMismatchError: if the study was created from other settings or other data.
        """
        study = self.find_sibling(config.study.name)
        if study is not None:
            study.check_same_settings(config, fingerprint)
        return study

    def find_sibling(self, name: str) -> "Study | None":
        """Return another study of this database over the same connections, None if hpo has not created it."""
        try:
            other = optuna.load_study(study_name=name, storage=self._rdb)
        except KeyError:
            return None
        return Study(self.database, self._rdb, other) if _is_made_by_hpo(other) else None

    @property
    def optuna_study(self) -> optuna.Study:
        """The study as an object of Optuna, for its attributes."""
        return self._optuna_study

    def leased_storage(self) -> LeasedStorage:
        """Return a storage of Optuna's interface over the connections of this study."""
        return LeasedStorage(self._rdb, self.database.timings)

    def accept_settings(self, config: StudyConfig, fingerprint: str) -> None:
        """Let the study continue with other settings."""
        self._optuna_study.set_user_attr(_SETTINGS, config.settings())
        self._optuna_study.set_user_attr(_DATA, fingerprint)

    def check_same_settings(self, config: StudyConfig, fingerprint: str) -> None:
        """Check that the study was created from this study file and from these data, wherever they are stored.

        Raises:
            StudyMismatchError: if it was not. The message lists the keys that differ.
        """
        then, now = self._optuna_study.user_attrs[_SETTINGS], config.settings()
        same_data = self.fingerprint == fingerprint
        differing = [
            f"{key} (was {then.get(key, 'absent')}, is {now.get(key, 'absent')})"
            for key in sorted(then.keys() | now.keys())
            if then.get(key) != now.get(key) and not (same_data and key == _PLACE)
        ]
        if not same_data and config.objective is not None:
            raise StudyMismatchError(
                f"the study '{self.name}' in {self.database.shown} was made by another version of {config.path}; "
                "go on anyway with --allow-changes, or start another study under another name"
            )
        if not same_data:
            differing.append(f"the data (were {_shorten(self.fingerprint)}, are {_shorten(fingerprint)})")
        if differing:
            raise StudyMismatchError(
                f"the study '{self.name}' in {self.database.shown} was made from other settings: "
                f"{', '.join(differing)}; change study.name to start another study, or change them back"
            )


def open_or_create_study(
    database: Database,
    config: StudyConfig,
    fingerprint: str,
    metric_name: str | None,
    directions: Sequence[StudyDirection] = _MAXIMIZE,
    *,
    allow_changes: bool = False,
) -> Study:
    """Open the study of a study file, and create it if it is missing.

    Args:
        database: The study's database.
        config: The study file.
        fingerprint: The fingerprint of the study's data.
        metric_name: The name of the trials' values, for the dashboard; None if it is unknown.
        directions: The direction of each objective.
        allow_changes: Whether a study that was created from other settings continues with these.

    Raises:
        StorageError: if the database is unreachable, or the study of this name was not created by hpo.
        StudyMismatchError: if the study was created from other settings or other data.
    """
    with database.translate_errors(), database.creation_lock(), database.opened() as rdb:
        schema.check_version(rdb.engine, database.shown)
        leftovers.remove_orphaned_trials(rdb.engine)
        optuna_study = _load_or_create(rdb, config.study.name, directions)
        is_new = not _is_made_by_hpo(optuna_study)
        _check_directions(database, optuna_study, config, directions)
        if is_new:
            _check_not_foreign(database, config, optuna_study)
        else:
            _check_not_copied(database, rdb, optuna_study)
        # A refusal leaves no tables in the database of another program.
        schema.create_tables(rdb.engine)
        leftovers.remove_leftovers(rdb.engine)
        if not is_new:
            study = Study(database, rdb, optuna_study)
            if allow_changes:
                study.accept_settings(config, fingerprint)
            study.check_same_settings(config, fingerprint)
            return study
        _mark(optuna_study, config, fingerprint, metric_name)
        return Study(database, rdb, optuna_study)


def load_study(database: Database, config: StudyConfig) -> Study:
    """Open the existing study of a study file.

    Raises:
        StorageError: if the database is unreachable, or hpo has created no such study in it.
    """
    name = config.study.name
    with database.translate_errors(), database.opened() as rdb:
        try:
            optuna_study = optuna.load_study(study_name=name, storage=rdb)
        except KeyError:
            raise StorageError(
                f"{database.shown} has no study '{name}'; "
                f"start it with: python -m hpo.launch {shlex.quote(str(config.path or name))} {database.argument}"
            ) from None
        # A metric determines the direction, and the settings of a study include the metric.
        if config.objective is None and config.study.metric is None:
            _check_directions(database, optuna_study, config, _MAXIMIZE)
        if not _is_made_by_hpo(optuna_study):
            raise _foreign_study_error(database, config)
        _check_not_copied(database, rdb, optuna_study)
        schema.check_version(rdb.engine, database.shown)
        return Study(database, rdb, optuna_study)


def best_trial(trials: Iterable[FrozenTrial], sign: int = 1) -> FrozenTrial | None:
    """Return the complete trial of the best finite value; of equal trials the lowest number.

    Args:
        trials: The trials.
        sign: 1 if greater values are better, otherwise -1.
    """
    ranked = [
        (sign * trial.value, -trial.number, trial)
        for trial in trials
        if trial.state == TrialState.COMPLETE and trial.value is not None
    ]
    return max(ranked, key=itemgetter(0, 1))[-1] if ranked else None


def is_finished(trials: Sequence[FrozenTrial], budget: int) -> bool:
    """Return whether all trials of a budget have ended."""
    return len(trials) >= budget and count_finished(trials) == len(trials) - count_beyond(trials, budget)


def count_beyond(trials: Sequence[FrozenTrial], budget: int) -> int:
    """Return the number of WAITING trials of another program that a higher budget would run."""
    return sum(trial.state == TrialState.WAITING for trial in trials[budget:])


def count_finished(trials: Iterable[FrozenTrial]) -> int:
    """Return the number of trials that have ended."""
    return sum(trial.state.is_finished() for trial in trials)


def _load_or_create(rdb: RDBStorage, name: str, directions: Sequence[StudyDirection]) -> optuna.Study:
    # Optuna would create the study first, and the server would log an error for each study that exists.
    try:
        return optuna.load_study(study_name=name, storage=rdb)
    except KeyError:
        return optuna.create_study(study_name=name, storage=rdb, directions=directions)


def _mark(study: optuna.Study, config: StudyConfig, fingerprint: str, metric_name: str | None) -> None:
    """Mark a new study as hpo's."""
    if metric_name is not None:
        _set_metric_name(study, metric_name)
    # The last attribute marks the study as complete, in case this process crashes in between.
    attributes = {_SETTINGS: config.settings(), _DATA: fingerprint, _TIMES: _UTC, _LEASES: uuid.uuid4().hex}
    for key, value in attributes.items():
        study.set_user_attr(key, value)


def _set_metric_name(study: optuna.Study, metric_name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names([metric_name])


def _is_made_by_hpo(study: optuna.Study) -> bool:
    """Return whether a study has the attributes that hpo sets. The last one is missing until all are set."""
    attributes = study.user_attrs
    typed = isinstance(attributes.get(_SETTINGS), dict) and isinstance(attributes.get(_DATA), str)
    return typed and _LEASES in attributes


def _shorten(fingerprint: str) -> str:
    """Return a fingerprint with its description, if it has one, for messages."""
    sha256, _, description = fingerprint.partition(":")
    return f"{sha256[:12]} {description}".strip()


def _check_directions(
    database: Database, study: optuna.Study, config: StudyConfig, expected: Sequence[StudyDirection]
) -> None:
    if study.directions == list(expected):
        return
    directions = _names(study.directions)
    if config.objective is not None:
        raise StorageError(
            f"{database.shown} has a study '{study.study_name}' with other directions: it has {directions}, "
            f"{config.path} asks for {_names(expected)}; change the study's name, or use another --storage"
        )
    raise StorageError(
        f"{database.shown} has a study '{study.study_name}' that was not made by hpo (directions: {directions}; "
        f"hpo {_names(expected)}s one value); change study.name, or use another --storage"
    )


def _names(directions: Iterable[StudyDirection]) -> str:
    return ", ".join(direction.name.lower() for direction in directions)


def _check_not_foreign(database: Database, config: StudyConfig, study: optuna.Study) -> None:
    """Refuse a study of another program. A script may continue a study that it has started without hpo."""
    has_trials = config.objective is None and bool(study.get_trials(deepcopy=False))
    if has_trials or _LEASES in study.user_attrs:
        raise _foreign_study_error(database, config)


def _check_not_copied(database: Database, rdb: RDBStorage, study: optuna.Study) -> None:
    """Refuse a copy, whose leases and weights are those of the original. The copy has the higher id."""
    with rdb.engine.connect() as connection:
        key = str(study.user_attrs[_LEASES])
        original = connection.execute(schema.OLDEST_WITH_KEY, {"in_study": key}).scalar_one_or_none()
    if original != study.study_name:
        raise StorageError(
            f"{database.shown} has a study '{study.study_name}' that is a copy of the study '{original}'; "
            "change study.name, or delete one of the two studies"
        )


def _foreign_study_error(database: Database, config: StudyConfig) -> StorageError:
    return StorageError(
        f"{database.shown} has a study '{config.study.name}' that was not made by hpo; "
        "change study.name, or use another --storage"
    )
