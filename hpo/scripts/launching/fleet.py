"""The workers of a script, from their options to the end of their work."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpo.fleet.gpus import Gpus
from hpo.fleet.interpreter import InterpreterStarter
from hpo.fleet.local_pool import LocalWorkerPool
from hpo.fleet.logs import WorkerLogs
from hpo.fleet.shared_memory import anonymous_file
from hpo.fleet.status import ProgressListener, TrialNames, own_numbers
from hpo.fleet.supervisor import Supervisor, SupervisorTimings
from hpo.runner.limits import Limits
from hpo.runner.worker_loop import WorkerConfig
from hpo.scripts.jobs import ScriptJob
from hpo.scripts.session import results_folder
from hpo.storage.database.connection import Database
from hpo.storage.database.retry import DATABASE_ERRORS, BackgroundQuery
from hpo.storage.study import Study
from hpo.tuning.outcomes import describe_unfinished
from hpo.tuning.tuner import TuningInterruptedError
from hpo.utils.system import cores, thread_limits


@dataclass(frozen=True)
class FleetOptions:
    """Options of the workers of a script.

    Attributes:
        workers: The number of workers.
        trials: The total number of trials of each call of ``optimize``; None for its ``n_trials``.
        timeout_s: The time after which the launch stops; None for no limit.
        limits: The limits of each trial.
        pruner: The pruner in place of the script's, None for the script's.
        gpus: The GPUs of the workers.
        allow_changes: Whether a study of another version of the script goes on.
        enqueued: The parameters to try before the sampler's, if the space is known.
        results: The folder of the results' folders.
        verbose: Whether the output of the workers is shown.
    """

    workers: int
    trials: int | None
    timeout_s: float | None
    limits: Limits
    pruner: str | None
    gpus: Gpus
    allow_changes: bool
    enqueued: tuple[dict[str, Any], ...]
    results: Path
    verbose: bool


@dataclass(frozen=True)
class Work:
    """Work of the fleet for one study.

    Attributes:
        study: The study.
        config: The worker config, for its supervision.
        pool: The workers.
        title: The title of the progress.
        on_poll: Called regularly while workers run.
        trial_names: Function that returns the names of trials in messages.
    """

    study: Study
    config: WorkerConfig
    pool: LocalWorkerPool
    title: str
    on_poll: Callable[[], None]
    trial_names: TrialNames = own_numbers


@dataclass(frozen=True)
class LaunchOutput:
    """Receivers of the messages and of the progress of a launch.

    Attributes:
        listener_for: Function that returns the progress listener for the title of a study.
        on_start: Called before workers start, with a banner and the study's database.
        on_poll: Called regularly while workers run.
        show: The receiver of a line of a worker's output.
    """

    listener_for: Callable[[str], ProgressListener]
    on_start: Callable[[str, Database], None]
    on_poll: Callable[[], None]
    show: Callable[[str], object]


class ScriptFleet:
    """Workers of one launch of a script, until the deadline of the launch.

    Args:
        options: The options of the workers.
        output: The receivers of the messages and of the progress.
        timings: The timings of the supervision.
    """

    def __init__(self, options: FleetOptions, output: LaunchOutput, timings: SupervisorTimings) -> None:
        self._options = options
        self._output = output
        self._timings = timings
        timeout_s = float("inf") if options.timeout_s is None else options.timeout_s
        self._deadline_s = timings.clock() + timeout_s
        self._turns = anonymous_file(0)

    @property
    def has_time(self) -> bool:
        """Whether the deadline of the launch is still to come."""
        return self._timings.clock() <= self._deadline_s

    def closing(self, pool: LocalWorkerPool, timeout_s: float | None, close: Callable[[], None]) -> "BudgetClosing":
        """Return the end of the budget of a call that has a ``timeout``."""
        return BudgetClosing(self._timings.clock, timeout_s, pool, close)

    def pool(self, job: ScriptJob, study: Study, workers: int) -> LocalWorkerPool:
        """Return workers for a job, which are not started yet."""
        options = self._options
        note = self._output.listener_for(job.study).note
        logs = WorkerLogs(
            results_folder(options.results, job.study), note, self._output.show if options.verbose else None
        )
        threads = thread_limits(options.workers, cores())
        starter = InterpreterStarter("hpo.scripts.worker", job.to_json(), logs, options.gpus, self._turns, threads)
        return LocalWorkerPool(starter, workers, study.store)

    def run(self, work: Work) -> None:
        """Run workers until the budget is finished or the time is up.

        Raises:
            HpoError: if the workers or the database end it.
            TuningInterruptedError: if a stop signal arrived.
        """
        study = work.study
        supervisor = Supervisor(
            study,
            work.pool,
            work.config,
            self._output.listener_for(work.title),
            work.on_poll,
            replace(self._timings, deadline_s=self._deadline_s),
            work.trial_names,
        )
        if not supervisor.run():
            view = study.store.refresh()
            progress = describe_unfinished(view.trials, work.config.budget, len(view.paused))
            title = "" if work.title == study.name else f"{work.title}: "
            raise TuningInterruptedError(f"{title}{progress}; the same command goes on")


class BudgetClosing:
    """End of the budget when the ``timeout`` of a call is over. The database is asked in another thread.

    The time starts with the first trial, because each worker imports what the script imports before.
    """

    def __init__(
        self, clock: Callable[[], float], timeout_s: float | None, pool: LocalWorkerPool, close: Callable[[], None]
    ) -> None:
        self._clock = clock
        self._timeout_s = timeout_s
        self._pool = pool
        self._deadline_s = float("inf")
        self._close = close
        self._query: BackgroundQuery[None] | None = None

    def poll(self) -> None:
        """Close the budget at the deadline, and try again after an outage."""
        if self._timeout_s is not None and self._pool.has_begun:
            self._deadline_s, self._timeout_s = self._clock() + self._timeout_s, None
        if self._query is not None and self._query.done:
            query, self._query = self._query, None
            # After an outage the next poll tries again.
            with contextlib.suppress(*DATABASE_ERRORS):
                query.result(0)
                self._deadline_s = float("inf")
        if self._query is None and self._clock() > self._deadline_s:
            self._query = BackgroundQuery(self._close)
