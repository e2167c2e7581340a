"""The two stages of a launch: the search, and the confirmation of what it found; each a study that a fleet trains."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

from optuna.trial import FrozenTrial
from sqlalchemy.engine import URL

from hpo.config.study import StudyConfig
from hpo.data.cache import PreparedData
from hpo.fleet.local_pool import Fleet
from hpo.fleet.supervisor import Supervisor
from hpo.runner.worker_loop import WorkerConfig
from hpo.search.enqueue import missing
from hpo.storage import database as storage
from hpo.storage.study import Study, join_study
from hpo.tuning.confirmation import candidates, confirmation_config, repeated
from hpo.ui.display import Display, count_of

JOIN_SECONDS = 4.0  # that a launch goes on trying to join a study in a database that it has just reached
ANSWER_SECONDS = 1.0  # that an interrupted launch waits for what it says last

P = ParamSpec("P")
T = TypeVar("T")


class LaunchStoppedError(Exception):
    """A signal stopped the launch; the message says where it stands."""


@dataclass(frozen=True)
class Crew:
    """What a launch trains studies with.

    Attributes:
        workers: at most.
        deadline: by ``time.monotonic``; None where it has all the time that it wants.
        display: something new to show a study of this name on.
        tend_others: called now and then.
    """

    workers: int
    deadline: float | None
    display: Callable[[str], Display]
    tend_others: Callable[[], None]

    @property
    def has_time(self) -> bool:
        """Whether the deadline is to come."""
        return self.deadline is None or time.monotonic() < self.deadline

    def train(self, study: Study, config: WorkerConfig, title: str) -> None:
        """Train a study to the end of its budget, or until the time is up.

        Raises:
            LaunchStoppedError: a signal came first.
        """
        left = None if self.deadline is None else self.deadline - time.monotonic()
        fleet = Fleet(config, self.workers, study.leases)
        if not Supervisor(study, fleet, config, left, self.display(title), self.tend_others).run():
            raise LaunchStoppedError(_where_it_stands(study, config.trials))


class Confirmation:
    """The stage in which the best trials of a study are trained again.

    Args:
        study: the one that was searched.
        config: what its workers are told.
        count: how many of its trials are trained again.
        data: the fingerprint of its data.
    """

    def __init__(self, study: Study, config: WorkerConfig, count: int, data: str) -> None:
        self._study = study
        self._config = config
        self._spec = confirmation_config(config.spec)
        self._count = count
        self._data = data

    @property
    def trials(self) -> list[FrozenTrial]:
        """What was trained again so far; nothing where that is not asked for.

        Raises:
            StudyMismatchError: that was another study of the same name.
        """
        second = self._study.beside(self._spec, self._data) if self._count else None
        return [] if second is None else second.trials

    @property
    def due(self) -> bool:
        """Whether the search has ended, but not all of its best are trained again.

        Raises:
            StudyMismatchError: another study of the same name is in the way.
        """
        known = self.trials
        searched = has_ended(self._study.trials, self._config.trials)
        return self._count > 0 and searched and not self._has_ended(known)

    def train(self, crew: Crew) -> None:
        """Train what is due.

        Raises:
            LaunchStoppedError: a signal came first.
        """
        url, seconds = storage.parse_url(self._config.url), self._config.limits.storage_timeout
        if not retry_while_unavailable(lambda: self.due, seconds)():
            return
        with retry_while_unavailable(join_study, seconds)(url, self._spec, self._data) as second:
            # More than once where another launch has taken the places with trials that are due to it alone.
            while crew.has_time and not self._has_ended(
                known := retry_while_unavailable(lambda: second.trials, seconds)()
            ):
                told = self._tell(known)
                most = replace(crew, workers=min(crew.workers, told.trials - count_finished(known)))
                most.train(second, told, f"confirmation of {self._config.spec.study.name}")

    def _has_ended(self, known: Sequence[FrozenTrial]) -> bool:
        return has_ended(known, self._tell(known).trials)

    def _tell(self, known: Sequence[FrozenTrial]) -> WorkerConfig:
        """What its workers are told: their budget is what is there, and what is missing."""
        enqueued = repeated(candidates(self._study)[: self._count])
        budget = len(known) + len(missing(enqueued, known))
        return replace(self._config, spec=self._spec, trials=budget, enqueued=enqueued)


def joined(url: URL, spec: StudyConfig, data: str) -> Study:
    """A study that is created or joined, to be closed; ``data`` is the fingerprint of its data.

    Raises:
        StorageError: the database cannot be used.
        StudyMismatchError: it was made from another file or other data.
    """
    return retry_while_unavailable(join_study, JOIN_SECONDS)(url, spec, data)


def introduction(spec: StudyConfig, budget: int, url: URL, data: PreparedData) -> str:
    """What is said of a study before it is trained, in two lines."""
    sizes = f"{data.sizes.train}/{data.sizes.validation}/{data.sizes.test} rows"
    pca = f", PCA at {data.pca:.0%} of the variance keeps {data.components}" if data.pca else ""
    return (
        f"study {spec.study.name}: {count_of(budget, 'trial')} in {storage.show_url(url)}\n"
        f"data {data.name}: {sizes}, {data.features} features{pca}"
    )


def has_ended(trials: Sequence[FrozenTrial], budget: int) -> bool:
    """Whether nothing of a budget is left to do."""
    return len(trials) >= budget and count_finished(trials) == len(trials)


def count_finished(trials: Sequence[FrozenTrial]) -> int:
    """How many trials have ended."""
    return sum(trial.state.is_finished() for trial in trials)


def retry_while_unavailable(function: Callable[P, T], seconds: float) -> Callable[P, T]:
    """The function, tried again while the database is away."""
    return storage.retry_while_unavailable(function, seconds, stop=threading.Event())


def _where_it_stands(study: Study, budget: int) -> str:
    try:
        finished = storage.BackgroundQuery(lambda: count_finished(study.trials)).answer(ANSWER_SECONDS)
    except storage.DATABASE_ERRORS:
        return "the same command goes on"
    return f"{finished} of {budget} trials are finished; the same command goes on"
