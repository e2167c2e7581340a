"""The watch over a fleet, from its start to the end of the budget or to a signal."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from hpo.errors import StorageError
from hpo.fleet.local_pool import Fleet, WorkerExit
from hpo.runner.worker_loop import WorkerConfig
from hpo.storage import database as storage
from hpo.storage.study import Study
from hpo.ui.display import Display, Snapshot, clock, take_snapshot
from hpo.utils.signals import StopSignals

POLL_SECONDS = 0.5
ANSWER_SECONDS = 5.0  # after which a database that says nothing is as good as away
STOP_SECONDS = 7.0  # that the workers have to end their epoch
LAST_SECONDS = 1.0  # that the database has to take back the leases of those who did not


@dataclass(frozen=True)
class _Look:
    deaths: list[WorkerExit]
    snapshot: Snapshot


class Supervisor:
    """The supervision of one fleet, from its start to the end of the budget or to a signal.

    The database is asked in a thread: one that hangs must not keep anybody from stopping the launch.
    """

    def __init__(
        self,
        study: Study,
        fleet: Fleet,
        config: WorkerConfig,
        timeout: float | None,
        display: Display,
        tend_others: Callable[[], None],
    ) -> None:
        self._study = study
        self._fleet = fleet
        self._config = config
        self._url = storage.parse_url(config.url)
        self._deadline = time.monotonic() + (timeout or float("inf"))
        self._display = display
        self._tend_others = tend_others
        self._deaths: list[WorkerExit] = []
        self._away_since: float | None = None
        self._ended_at: float | None = None

    def run(self) -> bool:
        """Returns whether it went on to the end: of the budget, or of ``--timeout``.

        Raises:
            StorageError: the database stayed away for longer than ``--storage-timeout``.
            WorkersDieError: no worker comes to train.
        """
        with StopSignals() as stop:
            try:
                self._fleet.start()
                with self._display:
                    return self._supervise(stop)
            finally:
                self._fleet.kill()
                with storage.suppress_outages():  # then the leases run out
                    storage.BackgroundQuery(self._fleet.retire).answer(LAST_SECONDS)

    def _supervise(self, stop: StopSignals) -> bool:
        self._question: storage.BackgroundQuery[_Look] | None = storage.BackgroundQuery(self._look, stop.wake)
        # To the last answer, too: it may be that the database is back.
        while (self._fleet.working or self._question is not None) and not self._left_hanging():
            if stop.wait(POLL_SECONDS, self._worth_a_look()):
                self._display.note("stopping: the workers end their epoch and keep their checkpoints")
                self._wind_up(stop)
                return False
            if time.monotonic() > self._deadline:
                self._display.note("the time is up: the workers end their epoch and keep their checkpoints")
                return self._wind_up(stop)
            self._tend_others()
            if self._question is None:
                self._question = storage.BackgroundQuery(self._look, stop.wake)
            else:
                self._hear(self._question)
        return True

    def _worth_a_look(self) -> list[int]:
        """The ends of workers, but while an answer is waited for, or the last one was that the database is away."""
        return self._fleet.sentinels if self._question is None and self._away_since is None else []

    def _hear(self, question: storage.BackgroundQuery[_Look]) -> None:
        """Show what the database has answered, if it has."""
        if not question.answered and question.age < ANSWER_SECONDS:
            return
        try:
            look = question.answer(0)
        except storage.DATABASE_ERRORS as error:
            if not storage.is_outage(error):
                raise
            self._wait_for_database(error)
            if isinstance(error, storage.NoAnswerError):
                return
        else:
            self._go_on()
            self._show(look)
        self._question = None

    def _look(self) -> _Look:
        # Each is kept until it is told: what comes next may fail.
        for death in self._fleet.tend():
            self._deaths.append(death)
        known = self._study.look()
        snapshot = take_snapshot(self._config.spec, self._config.trials, known, self._study.leases.unfinished())
        if not snapshot.running:
            self._study.leases.check_writable()
        deaths, self._deaths = self._deaths, []
        return _Look(deaths, snapshot)

    def _show(self, look: _Look) -> None:
        for death in look.deaths:
            held = f" in trial {death.trials[0]}" if death.trials else ""
            self._display.note(f"worker {death.pid} died{held}: {death.reason}; another takes its place")
            if death.details:
                self._display.note(death.details)
        self._display.show(look.snapshot)
        if look.snapshot.finished == look.snapshot.budget and self._ended_at is None:
            self._ended_at = time.monotonic()
            self._fleet.stop()  # those who wait for the trials of others look only now and then

    def _left_hanging(self) -> bool:
        """Whether workers stay although all trials have ended: frozen, they would stay for ever."""
        return self._ended_at is not None and time.monotonic() > self._ended_at + STOP_SECONDS

    def _wind_up(self, stop: StopSignals) -> bool:
        """Stop the workers; returns whether they could end their epochs in peace."""
        self._fleet.stop()
        last_moment = time.monotonic() + STOP_SECONDS
        while self._fleet.alive and time.monotonic() < last_moment:
            if stop.wait(POLL_SECONDS / 5):
                return False
        return True

    def _wait_for_database(self, error: Exception) -> None:
        timeout, reason = self._config.limits.storage_timeout, storage.reason(error, self._url)
        if self._away_since is None:
            self._away_since = time.monotonic()
            self._display.note(f"the database cannot be used: {reason}; waiting for it, {clock(timeout)} at most")
        elif time.monotonic() > self._away_since + timeout:
            raise StorageError(
                f"{storage.show_url(self._url)} could not be used for {timeout:.0f} s: {reason}; nothing is lost: "
                "the same command goes on when it is back"
            ) from error

    def _go_on(self) -> None:
        if self._away_since is not None:
            self._display.note(f"the database is back after {clock(time.monotonic() - self._away_since)}")
        self._away_since = None
