"""The watch over a fleet, from its start to the end of the budget or to a signal."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from hpo import storage
from hpo.display import Display, take_snapshot
from hpo.errors import StorageError
from hpo.fleet import Fleet
from hpo.signals import StopSignals
from hpo.study import Study
from hpo.worker import WorkerConfig

POLL_SECONDS = 0.5
STOP_SECONDS = 8.0  # that the workers have to end their epoch


class Supervisor:
    """The supervision of one fleet, from its start to the end of the budget or to a signal."""

    def __init__(
        self, study: Study, fleet: Fleet, config: WorkerConfig, timeout: float | None, display: Display
    ) -> None:
        self._study = study
        self._fleet = fleet
        self._config = config
        self._deadline = time.monotonic() + (timeout or float("inf"))
        self._display = display
        self._away_since: float | None = None

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
                with storage.outages_ignored():  # then the leases run out
                    self._fleet.kill()

    def _supervise(self, stop: StopSignals) -> bool:
        while self._fleet.working:
            if stop.wait(POLL_SECONDS):
                self._display.note("stopping: the workers end their epoch and keep their checkpoints")
                self._wind_up(stop)
                return False
            if time.monotonic() > self._deadline:
                self._display.note("the time is up: the workers end their epoch and keep their checkpoints")
                return self._wind_up(stop)
            with self._outages():
                self._tend()
        return True

    def _tend(self) -> None:
        for death in self._fleet.tend():
            held = f" in trial {death.trials[0]}" if death.trials else ""
            self._display.note(f"worker {death.pid} died{held}: {death.reason}; another takes its place")
            if death.details:
                self._display.note(death.details)
        trials = self._study.trials
        unfinished = self._study.leases.unfinished()
        self._display.show(take_snapshot(self._config.spec, self._config.trials, trials, unfinished))

    def _wind_up(self, stop: StopSignals) -> bool:
        """Stop the workers; returns whether they could end their epochs in peace."""
        self._fleet.stop()
        last_moment = time.monotonic() + STOP_SECONDS
        while self._fleet.alive and time.monotonic() < last_moment:
            if stop.wait(POLL_SECONDS / 5):
                return False
        return True

    @contextmanager
    def _outages(self) -> Iterator[None]:
        try:
            yield
        except storage.DATABASE_ERRORS as error:
            if not storage.is_outage(error):
                raise
            if self._away_since is None:
                self._away_since = time.monotonic()
                self._display.note("the database does not answer; the fleet waits for it")
            elif time.monotonic() > self._away_since + self._config.storage_timeout:
                raise StorageError(
                    f"the database did not answer for {self._config.storage_timeout:.0f} s; nothing is lost: "
                    "the same command goes on when it is back"
                ) from error
        else:
            if self._away_since is not None:
                self._display.note("the database is back")
            self._away_since = None
