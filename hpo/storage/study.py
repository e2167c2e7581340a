"""Create a study or join one, and what a study remembers of the file and of the data that it was made from."""

import uuid
import warnings
from collections.abc import Iterable
from typing import Self

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL

from hpo.config.study import StudyConfig
from hpo.errors import StorageError, StudyMismatchError
from hpo.search.pruners import Pruner, pruner_for
from hpo.storage import database as storage
from hpo.storage import leases
from hpo.storage.leases import Leases
from hpo.storage.trial_cache import TrialCache, TrialView

_SETTINGS, _DATA, _LEASES = "settings", "data", "leases"  # the study's user attributes


class Study:
    """An open study: Optuna's view of it, its storage, and the leases of its trials."""

    def __init__(self, rdb: RDBStorage, optuna_study: optuna.Study, pruner: Pruner) -> None:
        self.storage = rdb
        self.optuna = optuna_study
        self.engine = rdb.engine
        self.pruner = pruner
        self.single = storage.single(rdb.engine)
        self.id = rdb.get_study_id_from_name(optuna_study.study_name)
        # The leases have a name of their own: SQLite gives the id of a deleted study to the next one.
        self.leases = Leases(rdb.engine, optuna_study.user_attrs[_LEASES])
        self._history = TrialCache(rdb.engine, self.id, self.leases)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        storage.close(self.storage)

    def look(self) -> TrialView:
        """All trials, and which of them are paused.

        Raises:
            StorageError: the study is not there any more.
        """
        return self._history.read()

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials in the order of their numbers; not to be changed.

        Raises:
            StorageError: the study is not there any more.
        """
        return self.look().trials

    def beside(self, spec: StudyConfig, data: str) -> "Study | None":
        """The study of another file in the same database, over the same connections; None where there is none.

        Raises:
            StudyMismatchError: it was made from other settings or other data.
        """
        try:
            other = optuna.load_study(study_name=spec.study.name, storage=self.storage)
        except KeyError:
            return None
        if _LEASES not in other.user_attrs:
            return None
        check_same_settings(other, spec, data, storage.show_url(self.engine.url))
        return Study(self.storage, other, pruner_for(spec))


def best_of(trials: Iterable[FrozenTrial]) -> FrozenTrial | None:
    """The complete trial of the highest validation accuracy; of several, the first."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return max(complete, key=lambda trial: (trial.value or 0.0, -trial.number), default=None)


def join_study(url: URL, spec: StudyConfig, data: str) -> Study:
    """The study of this file: created where it is missing, joined where it was made from the same.

    Args:
        url: The database.
        spec: The study file.
        data: The fingerprint of the data.

    Raises:
        StorageError: the database does not answer, or has a study of that name that is not ours.
        StudyMismatchError: the study was made from other settings or other data.
    """
    with storage.translate_errors(url), storage.creation_lock(url), storage.opened(url) as rdb:
        leases.create_table(rdb.engine)
        study = optuna.create_study(
            study_name=spec.study.name,
            storage=rdb,
            direction="maximize",
            load_if_exists=True,
        )
        if _LEASES in study.user_attrs:
            check_same_settings(study, spec, data, storage.show_url(url))
        elif study.get_trials(deepcopy=False) or study.direction != StudyDirection.MAXIMIZE:
            raise _foreign_study_error(url, spec)
        else:
            _name_metric(study)
            # The last of these says that the study is whole, should this process die in between.
            for key, value in ((_SETTINGS, spec.settings()), (_DATA, data), (_LEASES, uuid.uuid4().hex)):
                study.set_user_attr(key, value)
        return Study(rdb, study, pruner_for(spec))


def load_study(url: URL, spec: StudyConfig) -> Study:
    """A study that exists.

    Raises:
        StorageError: the database does not answer, or has no such study.
    """
    name = spec.study.name
    with storage.translate_errors(url), storage.opened(url) as rdb:
        try:
            study = optuna.load_study(study_name=name, storage=rdb)
        except KeyError:
            raise StorageError(
                f"{storage.show_url(url)} has no study '{name}'; start it with: python -m hpo.launch {name}"
            ) from None
        if _LEASES not in study.user_attrs:
            raise _foreign_study_error(url, spec)
        return Study(rdb, study, pruner_for(spec))


def check_same_settings(study: optuna.Study, spec: StudyConfig, data: str, shown_url: str) -> None:
    """Check that the study was made from this file and these data.

    Raises:
        StudyMismatchError: it was not; the message has the keys that differ.
    """
    then, now = study.user_attrs[_SETTINGS], spec.settings()
    differing = [
        f"{key} (was {then.get(key, 'absent')}, is {now.get(key, 'absent')})"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
    ]
    if study.user_attrs[_DATA] != data:
        differing.append(f"the data (were {study.user_attrs[_DATA][:12]}, are {data[:12]})")
    if differing:
        raise StudyMismatchError(
            f"the study '{spec.study.name}' in {shown_url} was made from other settings: {', '.join(differing)}; "
            "change study.name to start another study, or change them back"
        )


def _name_metric(study: optuna.Study) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(["validation accuracy"])


def _foreign_study_error(url: URL, spec: StudyConfig) -> StorageError:
    return StorageError(
        f"{storage.show_url(url)} has a study '{spec.study.name}' that was not made by hpo; "
        "change study.name, or use another --storage"
    )
