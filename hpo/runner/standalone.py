"""Worker without a launch: it opens or creates the study itself, and stops at a signal to its process."""

import contextlib
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hpo.config.loader import find_study, load_config
from hpo.data.prepared.cache import prepare
from hpo.errors import HpoError
from hpo.runner.limits import Limits
from hpo.runner.training_objective import TrainingObjective, check_study, study_direction
from hpo.runner.trial_runner import SharedProgress, WorkerTimings
from hpo.runner.worker_loop import WorkerConfig, run_worker
from hpo.search.scheduler import min_complete_of
from hpo.storage.database.connection import Database
from hpo.storage.database.retry import is_outage, retry_while_unavailable, suppress_outages
from hpo.storage.study import load_study, open_or_create_study
from hpo.storage.tables.leases import new_owner
from hpo.utils.signals import StopSignals

# The time to retry the opening of a study in a database that was reachable a moment ago.
OPEN_TIMEOUT_S = 4.0
# The longest time between two polls for work, and so from the last trial to the end of the worker.
MAX_POLL_INTERVAL_S = 1.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StandaloneOptions:
    """Options of the worker command."""

    study: str
    storage: str
    storage_timeout: float
    trials: int | None
    trial_timeout: float | None
    memory_limit: int | None
    verbose: bool
    allow_import: tuple[str, ...] = ()
    confirm: int = 0


def run(options: StandaloneOptions) -> bool:
    """Run one worker; return False if a stop signal arrived.

    Raises:
        HpoError: if the user has to fix an option, the study, the data or the database.
    """
    config = _worker_config(options)
    owner, progress = new_owner(), SharedProgress()
    with stop_event() as stop:
        try:
            run_worker(config, owner, stop, progress)
        except HpoError as error:
            if not (stop.is_set() and is_outage(error)):
                raise
        except Exception as error:
            _record_crash(config, owner, error, progress)
            raise
        return not stop.is_set()


@contextmanager
def stop_event() -> Iterator[threading.Event]:
    """Provide an event that SIGINT and SIGTERM set."""
    stop, ended = threading.Event(), threading.Event()
    with StopSignals() as signals:

        def watch() -> None:
            while not ended.is_set():
                if signals.wait(timeout_s=1.0):
                    stop.set()

        thread = threading.Thread(target=watch, name="stop signals", daemon=True)
        thread.start()
        try:
            yield stop
        finally:
            ended.set()
            signals.wake()
            thread.join()


def _worker_config(options: StandaloneOptions) -> WorkerConfig:
    """Check the options, prepare the data, and create the study if it is missing."""
    config = load_config(find_study(options.study), options.allow_import)
    budget = options.trials or config.study.trials
    check_study(config, budget)
    database = Database.parse(options.storage)
    database.check_reachable()
    data = prepare(config, logger.info)
    for note in data.notes:
        logger.info("data %s: %s", data.name, note)
    objective = TrainingObjective.from_config(config, data)
    open_study = retry_while_unavailable(open_or_create_study, OPEN_TIMEOUT_S)
    directions = [study_direction(config, data.task.name)]
    open_study(database, config, objective.fingerprint, objective.metric, directions).close()
    limits = Limits(options.storage_timeout, options.trial_timeout, options.memory_limit)
    # No launch ends this worker after the last trial.
    timings = WorkerTimings(max_poll_interval_s=MAX_POLL_INTERVAL_S)
    return WorkerConfig(
        database,
        config,
        objective,
        budget,
        limits,
        options.verbose,
        timings=timings,
        min_complete=min_complete_of(options.confirm),
    )


def _record_crash(config: WorkerConfig, owner: str, error: Exception, progress: SharedProgress) -> None:
    """Release the trial that this worker runs, as the parent of a crashed worker does."""
    reason = f"{type(error).__name__}: {error}"
    with suppress_outages(), contextlib.suppress(HpoError), load_study(config.database, config.config) as study:
        study.store.record_death(owner, reason, progress.epoch, progress.step)
