"""Supervision of a worker pool until the budget is finished, the time is up, or a stop signal arrives."""

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from hpo.errors import DatabaseTimeoutError, StorageError
from hpo.fleet.pool import NOTHING_LOST, WorkerExit, WorkerPool
from hpo.fleet.status import ProgressListener, StudyStatus, TrialNames, own_numbers, study_status
from hpo.runner.worker_loop import WorkerConfig
from hpo.storage.database.advice import MORE_CONNECTIONS
from hpo.storage.database.retry import DATABASE_ERRORS, BackgroundQuery, is_outage
from hpo.storage.study import Study
from hpo.utils.signals import StopSignals
from hpo.utils.text import count_of, format_duration


@dataclass(frozen=True)
class SupervisorTimings:
    """Intervals and timeouts of a supervisor, and its clock.

    Attributes:
        poll_interval_s: The longest time between two polls of the pool and of the study.
        query_timeout_s: The time after which a query without a reply counts as an outage.
        stop_timeout_s: The time that workers have to finish the current epoch.
        release_timeout_s: The time that the database has to release the leases of killed workers.
        deadline_s: The time on the clock at which the workers are stopped.
        clock: A monotonic clock, in seconds.
    """

    poll_interval_s: float = 0.5
    query_timeout_s: float = 5.0
    stop_timeout_s: float = 7.0
    release_timeout_s: float = 1.0
    deadline_s: float = float("inf")
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True)
class _PollResult:
    exits: list[WorkerExit]
    status: StudyStatus
    losses: int


class Supervisor:
    """Supervision of one worker pool.

    The database is queried in a thread because a hanging database must not delay a stop.

    Args:
        study: The study of the workers.
        pool: The workers, which are not started yet.
        config: The work of each worker.
        listener: The receiver of the status and of messages.
        on_poll: Called at each poll.
        timings: The intervals, timeouts and the deadline.
        trial_names: Function that returns the names of trials for messages.
    """

    def __init__(
        self,
        study: Study,
        pool: WorkerPool,
        config: WorkerConfig,
        listener: ProgressListener,
        on_poll: Callable[[], None] = lambda: None,
        timings: SupervisorTimings | None = None,
        trial_names: TrialNames = own_numbers,
    ) -> None:
        self._study = study
        self._pool = pool
        self._config = config
        self._listener = listener
        self._on_poll = on_poll
        self._timings = timings or SupervisorTimings()
        self._trial_names = trial_names
        self._clock = self._timings.clock
        self._exits: list[WorkerExit] = []
        self._worker_notes: list[str] = []
        self._query: BackgroundQuery[_PollResult] | None = None
        self._outage_since: float | None = None
        self._finished_at: float | None = None
        self._losses = 0
        # The trials of other programs at the last poll, and the trials that were reported.
        self._strays: set[int] = set()
        self._noted: set[int] = set()
        self._beyond = 0
        self._unconnected_noted = False
        self._idle_since = self._clock()

    @property
    def _ending(self) -> str:
        step = "epoch" if self._config.objective.ticks else "step"
        return f"finishing the current {step} and keeping the checkpoints"

    def run(self) -> bool:
        """Run the workers; return False if a stop signal arrived before the end.

        Raises:
            StorageError: if the database is unreachable for longer than the storage timeout, or refuses a statement.
            WorkerStartupError: if workers crash before they train a trial.
            WorkerRefusalError: if workers die of the same expected error.
        """
        with StopSignals() as stop:
            try:
                self._pool.start()
                with self._listener:
                    return self._supervise(stop)
            finally:
                self._pool.kill()
                # If the database cannot be used, the leases stay and expire.
                with contextlib.suppress(*DATABASE_ERRORS):
                    BackgroundQuery(self._pool.release_leases).result(self._timings.release_timeout_s)

    def _supervise(self, stop: StopSignals) -> bool:
        self._query = BackgroundQuery(self._poll, stop.wake)
        # The last reply is awaited even without workers because it can be the end of an outage.
        while (self._pool.has_workers or self._query is not None) and not self._has_frozen_workers():
            if self._wait(stop):
                self._listener.note(f"stopping: {self._ending}")
                self._stop_workers(stop)
                return False
            if self._clock() > self._timings.deadline_s:
                self._listener.note(f"the time is up: {self._ending}")
                return self._stop_workers(stop)
            self._on_poll()
            if self._query is None:
                self._query = BackgroundQuery(self._poll, stop.wake)
            else:
                self._handle_reply(self._query)
        return True

    def _wait(self, stop: StopSignals) -> bool:
        """Wait for the next poll; return whether a stop signal arrived."""
        if self._query is not None or self._outage_since is not None:
            return stop.wait(self._timings.poll_interval_s)
        self._pool.wait(self._timings.poll_interval_s, [stop])
        return stop.wait(0)

    def _poll(self) -> _PollResult:
        # The exits are kept until they are shown because the queries below can fail.
        self._exits += self._pool.poll()
        self._worker_notes += self._pool.take_notes()
        store = self._study.store
        # The best trial is read first, so that the view includes it.
        best = store.best_trained()
        view = store.refresh()
        active = store.active_trials()
        objective, direction = self._config.objective, self._study.direction
        status = study_status(objective, view.budget, view, active, self._trial_names, best, direction)
        if not status.running:
            store.check_writable()
        exits, self._exits = self._exits, []
        return _PollResult(exits, status, view.losses)

    def _handle_reply(self, query: BackgroundQuery[_PollResult]) -> None:
        if not query.done and query.age < self._timings.query_timeout_s:
            return
        try:
            result = query.result(0)
        except DATABASE_ERRORS as error:
            if not is_outage(error):
                raise self._refusal(error) from error
            self._report_outage(error)
            # After a timeout the query is still running. No other query is started until it ends.
            if isinstance(error, DatabaseTimeoutError):
                return
        else:
            self._report_recovery()
            self._show(result)
        self._query = None

    def _show(self, result: _PollResult) -> None:
        while self._worker_notes:
            self._listener.note(self._worker_notes.pop(0), level=logging.WARNING)
        for worker_exit in result.exits:
            self._note_exit(worker_exit, result.status)
        self._note_losses(result)
        self._note_other_programs(result.status)
        self._check_connections(result.status)
        self._listener.show(result.status)
        if result.status.finished == result.status.budget and self._finished_at is None:
            self._finished_at = self._clock()
            # Idle workers poll for work only now and then.
            self._pool.stop()

    def _check_connections(self, status: StudyStatus) -> None:
        """Report workers without a connection; end if no trial runs for longer than the storage timeout."""
        workers, timeout_s = count_of(self._pool.unconnected, "worker"), self._config.limits.storage_timeout
        if not self._pool.unconnected:
            self._unconnected_noted = False
        elif not self._unconnected_noted:
            self._unconnected_noted = True
            self._listener.note(
                f"the database has no connection for {workers}; the other workers go on; {MORE_CONNECTIONS}",
                level=logging.WARNING,
            )
        if status.running or not self._pool.unconnected:
            self._idle_since = self._clock()
        elif self._clock() > self._idle_since + timeout_s:
            raise StorageError(
                f"the database has had no connection for {workers} for {timeout_s:.0f} s; {MORE_CONNECTIONS}"
            )

    def _note_exit(self, worker_exit: WorkerExit, status: StudyStatus) -> None:
        trial = status.name(worker_exit.trials[0]) if worker_exit.trials else None
        held = "" if trial is None else f" in trial {trial}"
        message = f"worker {worker_exit.pid} died{held}: {worker_exit.reason}; another takes its place"
        for line in filter(None, [message, worker_exit.details]):
            self._listener.note(line, level=logging.WARNING, trial=trial, worker=worker_exit.pid)

    def _note_losses(self, result: _PollResult) -> None:
        if result.losses > self._losses:
            finished = f"{result.status.finished} of {result.status.budget} trials are finished in it"
            self._listener.note(
                f"the database has lost its last commits, or a trial was deleted: {finished}; "
                "the other trials run again from what it has",
                level=logging.WARNING,
            )
        self._losses = result.losses

    def _note_other_programs(self, status: StudyStatus) -> None:
        """Report the trials of other programs, once they were seen in two polls."""
        for number in set(status.strays) & self._strays - self._noted:
            grace = format_duration(self._config.timings.adoption_grace_s)
            self._listener.note(
                f"waiting for trial {status.name(number)}, which another program runs; "
                f"a worker claims the trial if it still runs after {grace}"
            )
            self._noted.add(number)
        self._strays = set(status.strays)
        if status.beyond > self._beyond:
            self._listener.note(
                f"no trial is left for {status.beyond} that another program enqueued; raise --trials to run them"
            )
        self._beyond = max(self._beyond, status.beyond)

    def _has_frozen_workers(self) -> bool:
        """Whether workers are still there long after the last trial; a frozen process never ends by itself."""
        return self._finished_at is not None and self._clock() > self._finished_at + self._timings.stop_timeout_s

    def _stop_workers(self, stop: StopSignals) -> bool:
        """Stop the workers; return False if another stop signal arrived meanwhile."""
        self._pool.stop()
        deadline = self._clock() + self._timings.stop_timeout_s
        while self._pool.is_alive and self._clock() < deadline:
            if stop.wait(self._timings.poll_interval_s / 5):
                return False
        return True

    def _report_outage(self, error: Exception) -> None:
        database, timeout_s = self._config.database, self._config.limits.storage_timeout
        reason = database.error_summary(error)
        if self._outage_since is None:
            self._outage_since = self._clock()
            self._listener.note(
                f"the database cannot be used: {reason}; waiting for at most {format_duration(timeout_s)}",
                level=logging.WARNING,
            )
        elif self._clock() > self._outage_since + timeout_s:
            raise StorageError(
                f"{database.shown} could not be used for {timeout_s:.0f} s: {reason}; nothing is lost: "
                "the same command goes on when it is back"
            ) from error

    def _refusal(self, error: Exception) -> StorageError:
        database = self._config.database
        return StorageError(f"cannot use {database.shown}: {database.error_summary(error)}; {NOTHING_LOST}")

    def _report_recovery(self) -> None:
        if self._outage_since is not None:
            self._listener.note(f"the database is back after {format_duration(self._clock() - self._outage_since)}")
        self._outage_since = None
