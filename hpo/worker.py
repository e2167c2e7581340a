"""One worker: claim or create a trial, train it, end it; until every trial of the budget has ended."""

import contextlib
import multiprocessing
import multiprocessing.connection
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from optuna.trial import TrialState
from threadpoolctl import threadpool_limits

from hpo import storage, trials
from hpo.data import Prepared, load_prepared
from hpo.errors import HpoError
from hpo.keeper import Keeper
from hpo.leases import MAX_FAILURES, Lease, LeaseLostError, NumberTakenError
from hpo.objective import Outcome, Schedule, run_trial
from hpo.predictor import pack_layers
from hpo.pruning import report_epochs
from hpo.sampling import propose
from hpo.spec import StudySpec
from hpo.study import Study, load_study
from hpo.training import Training

POLL_SECONDS = 0.5  # between two looks for work while others train the last trials

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker is told: all that it needs besides the database and the prepared data."""

    url: str
    spec: StudySpec
    prepared: Path
    trials: int
    storage_timeout: float
    verbose: bool


class StoppedError(Exception):
    """The worker was told to stop."""


class Worker:
    """Trains trials under one owner's name until none is left or ``stop`` is set."""

    def __init__(self, study: Study, data: Prepared, config: WorkerConfig, owner: str, stop: threading.Event) -> None:
        self._study = study
        self._data = data
        self._config = config
        self._spec = config.spec
        self._owner = owner
        self._stop = stop
        self._report_epochs = report_epochs(config.spec.max_epochs)

    def run(self) -> None:
        """Work.

        Raises:
            StorageError: the database stayed away for longer than the storage timeout.
        """
        while (lease := self._next()) is not None:
            try:
                self._train(lease)
            except LeaseLostError:
                continue  # its new owner ends it
            except StoppedError:
                return

    def _next(self) -> Lease | None:
        """A trial to train; None where the budget has ended, or the worker should."""
        while not self._stop.is_set():
            if lease := self._patiently(self._study.leases.claim, self._owner):
                return lease
            known = self._patiently(lambda: self._study.trials)
            if len(known) < self._config.trials:
                params = propose(self._spec, known)
                try:
                    return self._patiently(trials.create, self._study, self._spec, params, len(known), self._owner)
                except NumberTakenError:
                    continue
            if all(trial.state.is_finished() for trial in known):
                return None
            self._stop.wait(POLL_SECONDS)
        return None

    def _train(self, lease: Lease) -> None:
        if lease.failures >= MAX_FAILURES:
            reason = f"crashed {lease.failures} times: {lease.error or 'its worker vanished'}"
            self._end(lease, Outcome(TrialState.FAIL, None, reason))
            return
        trial = self._patiently(trials.read, self._study, lease)
        hyperparameters = self._spec.hyperparameters(trial.params)
        seed = (self._spec.study.seed, lease.number)
        training = Training(self._data.train, len(self._data.classes), hyperparameters, seed)
        if lease.checkpoint is not None:
            # One of another version of the program does not fit: the trial starts over, to the same end.
            with contextlib.suppress(ValueError):
                training.restore(lease.checkpoint)
        reported = None if trial.last_step is None else trial.intermediate_values[trial.last_step]
        outcome = self._run_trial(lease, training, hyperparameters.epochs, reported)
        complete = outcome.state == TrialState.COMPLETE
        self._end(lease, outcome, pack_layers(training.weights()) if complete else None)

    def _end(self, lease: Lease, outcome: Outcome, weights: bytes | None = None) -> None:
        self._patiently(
            trials.end, self._study, lease, outcome.state, value=outcome.value, weights=weights, reason=outcome.reason
        )

    def _run_trial(self, lease: Lease, training: Training, last_epoch: int, reported: float | None) -> Outcome:
        with Keeper(self._study.leases, lease) as keeper:

            def after_epoch() -> None:
                if self._stop.is_set():
                    self._study.leases.give_back(lease, training.epoch, training.save())
                    raise StoppedError
                if keeper.wants_checkpoint:
                    keeper.offer(training.epoch, training.save())

            def report(epoch: int, accuracy: float) -> bool:
                return self._patiently(trials.report, self._study, lease, epoch, accuracy)

            schedule = Schedule(last_epoch, self._report_epochs)
            return run_trial(training, self._data.validation, schedule, reported, report, after_epoch)

    def _patiently(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return storage.patiently(function, self._config.storage_timeout, self._stop)(*args, **kwargs)


def main(config: WorkerConfig, owner: str, last_words: multiprocessing.connection.Connection) -> None:
    """A worker's process, told to stop by SIGTERM or by the death of its parent.

    What went wrong is sent to the parent as text, which alone talks to people; the process exits with 1.
    """
    stop = threading.Event()
    threading.Thread(target=_watch, args=(stop,), name="watch", daemon=True).start()
    try:
        with threadpool_limits(1):
            url = storage.parse_url(config.url)
            load = storage.patiently(load_study, config.storage_timeout, stop)
            with storage.explained(url), load(url, config.spec) as study:
                Worker(study, load_prepared(config.prepared), config, owner, stop).run()
    except Exception as error:  # noqa: BLE001  # the border of the process: told to the parent, and it is dead
        text = str(error) if isinstance(error, HpoError) else f"{type(error).__name__}: {error}"
        last_words.send(f"{text}\n{traceback.format_exc()}" if config.verbose else text)
        raise SystemExit(1) from None


def _watch(stop: threading.Event) -> None:
    # A thread, not a handler: a handler that sets an event can meet the main thread inside that very event.
    parent = multiprocessing.parent_process()
    while signal.sigtimedwait({signal.SIGTERM}, POLL_SECONDS) is None:
        if parent is not None and not parent.is_alive():
            break
    stop.set()
