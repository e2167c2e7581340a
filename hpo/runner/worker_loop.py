"""One worker: claim or create a trial, attempt it, and again; until every trial of the budget has ended."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from optuna.trial import FrozenTrial
from threadpoolctl import threadpool_limits

from hpo.config.study import StudyConfig
from hpo.data.cache import PreparedData, load_prepared
from hpo.errors import HpoError
from hpo.models.optional_dependencies import warm_up
from hpo.runner.limits import Limits, limit_memory
from hpo.runner.trial_runner import SharedProgress, StoppedError, TrialRunner
from hpo.search.enqueue import missing
from hpo.search.samplers import propose
from hpo.search.scheduler import Create, Leave, Promote, Prune, Wait, next_action
from hpo.storage import database as storage
from hpo.storage import trial_store as trials
from hpo.storage.leases import Lease, LeaseLostError, NumberTakenError
from hpo.storage.study import Study, load_study

POLL_SECONDS = 0.5  # between two looks for work while others train the last trials

EXIT_CRASHED = 1
EXIT_REFUSED = 3  # an expected error: the fault of no trial

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker is told: all that it needs besides the database and the prepared data.

    ``enqueued`` are parameters that the study is to have before any that its sampler proposes.
    """

    url: str
    spec: StudyConfig
    prepared: Path
    trials: int
    limits: Limits
    verbose: bool
    enqueued: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class _Given:
    """A trial to train; ``params`` are known of one that was just created."""

    lease: Lease
    params: Mapping[str, Any] | None = None


class Worker:
    """Trains trials under one owner's name until none is left or ``stop`` is set.

    ``place`` always has how far it has come with its trial, for whoever finds this process dead.
    """

    def __init__(
        self,
        study: Study,
        data: PreparedData,
        config: WorkerConfig,
        owner: str,
        stop: threading.Event,
        place: SharedProgress,
    ) -> None:
        self._study = study
        self._data = data
        self._config = config
        self._owner = owner
        self._stop = stop
        self._place = place

    def run(self) -> None:
        """Work.

        Raises:
            StorageError: the database stayed away for longer than the storage timeout.
        """
        config = self._config
        while (given := self._next()) is not None:
            attempt = TrialRunner(
                self._study, config.spec, self._data, given.lease, config.limits, self._stop, self._place
            )
            try:
                attempt.run(given.params)
            except LeaseLostError:
                continue  # its new owner ends it
            except StoppedError:
                return

    def _next(self) -> _Given | None:
        """A trial to train; None where the budget has ended, or the worker should."""
        self._place.reset()
        while not self._stop.is_set():
            if lease := self._patiently(self._study.leases.claim, self._owner):
                return _Given(lease)
            known = self._patiently(self._study.look)
            match next_action(self._study.pruner, known.trials, known.paused, self._config.trials):
                case Promote(number):
                    given = self._promote(number, known.paused[number])
                case Create():
                    given = self._create(known.trials)
                case Wait():
                    self._stop.wait(POLL_SECONDS)
                    given = None
                case Prune():
                    self._patiently(trials.prune_paused, self._study, known)
                    given = None
                case Leave():
                    return None
            if given is not None:
                return given
        return None

    def _promote(self, number: int, attempt: int) -> _Given | None:
        lease = self._patiently(self._study.leases.promote, self._owner, number, attempt)
        return None if lease is None else _Given(lease)

    def _create(self, known: Sequence[FrozenTrial]) -> _Given | None:
        """The next trial; None where another worker was faster."""
        spec = self._config.spec
        due = missing(self._config.enqueued, known)
        params = due[0] if due else propose(spec, known)
        try:
            lease = self._patiently(trials.create, self._study, spec, params, len(known), self._owner)
        except NumberTakenError:
            return None
        return _Given(lease, params)

    def _patiently(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return storage.retry_while_unavailable(function, self._config.limits.storage_timeout, self._stop)(
            *args, **kwargs
        )


def main(
    config: WorkerConfig, owner: str, error_pipe: multiprocessing.connection.Connection, place: SharedProgress
) -> None:
    """A worker's process, told to stop by SIGTERM or by the death of its parent.

    What went wrong is sent to the parent as text, which alone talks to people, and told by the exit code.
    """
    stop = threading.Event()
    threading.Thread(target=_watch, args=(stop,), name="watch", daemon=True).start()
    try:
        with threadpool_limits(1), storage.translate_errors(storage.parse_url(config.url)):
            _work(config, owner, stop, place)
    except Exception as error:  # noqa: BLE001  # the border of the process: told to the parent, and it is dead
        if stop.is_set() and storage.is_outage(error):
            return
        expected = isinstance(error, HpoError)
        text = str(error) if expected else f"{type(error).__name__}: {error}"
        error_pipe.send(f"{text}\n{traceback.format_exc()}" if config.verbose else text)
        raise SystemExit(EXIT_REFUSED if expected else EXIT_CRASHED) from None


def _work(config: WorkerConfig, owner: str, stop: threading.Event, place: SharedProgress) -> None:
    load = storage.retry_while_unavailable(load_study, config.limits.storage_timeout, stop)
    with load(storage.parse_url(config.url), config.spec) as study:
        data = load_prepared(config.prepared)
        # Before there is a trial to blame for the time, the memory or a death in it.
        warm_up(config.spec)
        if config.limits.memory is not None:
            limit_memory(config.limits.memory)
        Worker(study, data, config, owner, stop, place).run()


def _watch(stop: threading.Event) -> None:
    # A thread, not a handler: a handler that sets an event can meet the main thread inside that very event.
    launch, forked_by = multiprocessing.parent_process(), os.getppid()
    while not _told_to_stop():
        # When the server that forked this process dies, the launch takes it for dead and hires another.
        if (launch is not None and not launch.is_alive()) or os.getppid() != forked_by:
            break
    stop.set()


def _told_to_stop() -> bool:
    told = signal.sigtimedwait({signal.SIGTERM}, POLL_SECONDS)
    # CPython hands out an uninitialized struct after SIGCONT.
    return told is not None and told.si_signo == signal.SIGTERM
