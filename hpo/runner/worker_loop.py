"""Loop of a worker: claim, promote or create a trial, run it, and repeat until the budget is finished."""

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from threadpoolctl import threadpool_limits

from hpo.config.study import StudyConfig
from hpo.errors import StorageError
from hpo.runner.limits import Limits, limit_memory
from hpo.runner.objective import Objective
from hpo.runner.polling import PollIntervals
from hpo.runner.trial_runner import SharedProgress, TrialRunner, WorkerContext, WorkerTimings
from hpo.runner.worker_errors import errors_sent
from hpo.search.branches import BranchSampler, make_branch_pruner, make_branch_sampler
from hpo.search.proposer import NO_PARAMS, Proposer
from hpo.search.pruning.pruners import Pruner, make_pruner
from hpo.search.sampling.samplers import Sampler, make_sampler
from hpo.search.scheduler import Action, Adopt, PrunePaused, Resume, Start, Stop, Wait, next_action
from hpo.search.space import ConditionalSpace, Space, misfit, needed
from hpo.storage.database.advice import lacks_connection
from hpo.storage.database.connection import Database
from hpo.storage.database.retry import retry_while_unavailable
from hpo.storage.study import Study, count_finished, load_study
from hpo.storage.tables.leases import ActiveTrial, Lease, LeaseLostError
from hpo.storage.trial_cache import TrialView, stray_trials, study_gone_error
from hpo.storage.trial_store import TrialOutcome, has_only_failures
from hpo.utils.signals import received_signal

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class WorkerConfig:
    """Work of a worker. It is picklable.

    Attributes:
        database: The study's database.
        config: The study file.
        objective: The code that each trial runs.
        budget: The total number of the study's trials.
        limits: The limits of each trial.
        verbose: Whether an error has a traceback.
        enqueued: The parameters to try before the sampler's.
        study_key: The key of the study in hpo's tables; None for any study of this name.
        timings: The worker's intervals.
        pruner: The pruner; None for the pruner of the study file.
        max_failures: The number of failed trials at which a study without a success ends; None for no limit.
        min_complete: The number of trials that shall complete, if that many are viable.
        closing_at_s: The time by the clock of the timings from which the best trial of each rung is promoted, because
            the launch ends soon; None for a launch without a timeout.
        on_end: Called after each trial that this worker has ended, with its id in Optuna's tables.
    """

    database: Database
    config: StudyConfig
    objective: Objective
    budget: int
    limits: Limits
    verbose: bool
    enqueued: tuple[Mapping[str, Any], ...] = ()
    study_key: str | None = None
    timings: WorkerTimings = field(default_factory=WorkerTimings)
    pruner: Pruner | None = None
    max_failures: int | None = None
    min_complete: int = 1
    closing_at_s: float | None = None
    on_end: Callable[[int], None] | None = None


@dataclass(frozen=True)
class _Assignment:
    """A trial to run. The parameters are None if they are only in the database."""

    lease: Lease
    params: Mapping[str, Any] | None = None


class WorkerLoop:
    """Worker that runs trials until the budget is finished or ``stop`` is set.

    Args:
        study: The study.
        config: The work. Its objective has been set up.
        owner: The worker's name, which is unique on all machines.
        stop: Set when the worker has to stop.
        progress: The worker's position, which another process can read after a crash.
    """

    def __init__(
        self, study: Study, config: WorkerConfig, owner: str, stop: threading.Event, progress: SharedProgress
    ) -> None:
        self._study = study
        self._store = study.store
        self._config = config
        self._owner = owner
        self._stop = stop
        self._progress = progress
        objective, names = config.objective, config.config.study
        minimizes = study.direction == StudyDirection.MINIMIZE
        self._pruner = config.pruner or _make_pruner(config, minimizes)
        self._proposer = Proposer(_make_sampler(config), objective.space, config.enqueued, names.seed, minimizes)
        # When this worker first saw the RUNNING trials without a lease, by their numbers.
        self._strays: dict[int, float] = {}
        self._context = WorkerContext(objective, self._pruner, config.limits, config.timings, stop, progress)

    def run(self) -> None:
        """Run trials.

        Raises:
            StorageError: if the database stays unavailable for longer than the storage timeout.
        """
        self._retry(self._store.raise_budget)(self._config.budget)
        while (assignment := self._next_assignment()) is not None:
            lease = assignment.lease
            has_ended = TrialRunner(self._study, self._context, lease).run(assignment.params)
            if has_ended and self._config.on_end is not None:
                self._config.on_end(lease.trial_id)

    def _next_assignment(self) -> _Assignment | None:
        """Wait for a trial; return None if the budget is finished or the worker has to stop."""
        self._progress.reset()
        timings = self._config.timings
        intervals = PollIntervals(timings.poll_interval_s, timings.max_poll_interval_s, timings.clock)
        while not self._stop.is_set():
            if (lease := self._retry(self._store.claim)(self._owner)) and (assignment := self._prepare(lease)):
                return assignment
            view = self._retry(self._store.refresh)()
            action = self._choose(view)
            if action == Stop() or has_only_failures(view.trials, self._config.max_failures):
                self._retry(self._store.close_ended)()
                return None
            # Another worker can be faster.
            if (assignment := self._follow(action, view, intervals)) is not None:
                return assignment
        return None

    def _choose(self, view: TrialView) -> Action:
        closing_at_s = self._config.closing_at_s
        is_closing = closing_at_s is not None and self._config.timings.clock() >= closing_at_s
        min_complete = self._config.min_complete
        return next_action(self._pruner, view.trials, view.paused, view.budget, min_complete, is_closing=is_closing)

    def _follow(self, action: Action, view: TrialView, intervals: PollIntervals) -> _Assignment | None:
        """Return the trial of an action; None for an action without a trial, or if another worker was faster."""
        match action:
            case Resume(number):
                return self._resume(number, view.paused[number])
            case Start():
                return self._create()
            case Adopt(number):
                return self._adopt(view.trials, number)
            case Wait():
                return self._wait(view, intervals)
            case PrunePaused():
                self._retry(self._store.prune_paused)(view)
                self._retry(self._store.close_ended)()
        return None

    def _resume(self, number: int, attempt: int) -> _Assignment | None:
        lease = self._retry(self._store.resume)(self._owner, number, attempt)
        if lease is None:
            # Another worker was faster, or another program has ended the trial.
            self._retry(self._store.close_ended)()
            return None
        return self._prepare(lease)

    def _create(self) -> _Assignment | None:
        lease = self._retry(self._store.allocate)(self._owner)
        # None if other workers have used up the budget.
        return None if lease is None else self._prepare(lease, NO_PARAMS)

    def _prepare(self, lease: Lease, given: Mapping[str, Any] | None = None) -> _Assignment | None:
        """Complete the parameters of a leased trial, whose worker may have died before it wrote them.

        Args:
            lease: The trial's lease.
            given: The parameters that the trial has; None if they are only in the database.

        Returns:
            The trial to run, None if it has another owner or was ended outside of hpo meanwhile.
        """
        space = self._config.objective.space
        if not space:
            return _Assignment(lease, given)
        try:
            has = self._trials(lease)[lease.number].params if given is None else given
            if has.keys() >= needed(space, has).keys():
                return _Assignment(lease, given)
            return _Assignment(lease, self._complete(lease, has, space))
        except LeaseLostError:
            self._retry(self._store.close_ended)()
            return None

    def _complete(self, lease: Lease, given: Mapping[str, Any], space: Space) -> Mapping[str, Any]:
        """Propose the parameters that a trial lacks, write them under its lease, and return all."""
        taken: list[Mapping[str, Any]] = []
        while True:
            proposal = self._proposer.propose(self._trials(lease)[: lease.number], taken, given)
            params = {**proposal.params, **given}
            missing = {name: value for name, value in params.items() if name not in given}
            distinct = not given and not proposal.is_enqueued
            if self._retry(self._store.write_params)(lease, missing, space, distinct=distinct):
                return params
            # A later trial has these parameters.
            taken.append(proposal.params)

    def _trials(self, lease: Lease) -> Sequence[FrozenTrial]:
        trials = self._retry(self._store.refresh)().trials
        if lease.number >= len(trials):
            # The database has lost the trial.
            raise LeaseLostError(lease.number)
        return trials

    def _wait(self, view: TrialView, intervals: PollIntervals) -> _Assignment | None:
        """Wait for the trials of other workers; return the trial of another program after its grace time."""
        active = self._retry(self._store.active_trials)()
        if (stray := self._next_stray(view, active)) is not None:
            return self._adopt(view.trials, stray)
        state = len(view.trials), count_finished(view.trials), view.paused
        expires_in_s = min((trial.expires_in_s for trial in active if trial.owned), default=float("inf"))
        self._stop.wait(intervals.next(state, expires_in_s))
        return None

    def _next_stray(self, view: TrialView, active: Sequence[ActiveTrial]) -> int | None:
        """Return a RUNNING trial that had no lease for longer than the grace time."""
        now = self._config.timings.clock()
        strays = stray_trials(view, active)
        self._strays = {number: self._strays.get(number, now) for number in strays}
        expired = now - self._config.timings.adoption_grace_s
        return next((number for number, since in self._strays.items() if since <= expired), None)

    def _adopt(self, trials: Sequence[FrozenTrial], number: int) -> _Assignment | None:
        """Lease a trial that another program created, or fail it if the study cannot have its parameters."""
        trial, space = trials[number], self._config.objective.space
        if space is None:
            lease = self._retry(self._store.adopt)(trial, {}, {}, self._owner)
            return None if lease is None else _Assignment(lease)
        given = {**self._retry(self._store.fixed_params)(trial), **trial.params}
        problem = misfit(space, given)
        added = {} if problem else {name: value for name, value in given.items() if name not in trial.params}
        lease = self._retry(self._store.adopt)(trial, added, space, self._owner)
        if lease is None:
            return None
        if problem is not None:
            outcome = TrialOutcome(TrialState.FAIL, None, f"created outside of hpo: {problem}")
            # Another program may end the trial first.
            with contextlib.suppress(LeaseLostError):
                self._retry(self._store.finish)(lease, outcome)
            return None
        return self._prepare(lease, given)

    def _retry(self, function: Callable[P, T]) -> Callable[P, T]:
        timeout_s, timings = self._config.limits.storage_timeout, self._config.timings
        return retry_while_unavailable(function, timeout_s, self._stop, timings.max_retry_wait_s)


def _make_sampler(config: WorkerConfig) -> Sampler | BranchSampler:
    name, objective = config.config.study.sampler, config.objective
    if isinstance(objective.space, ConditionalSpace):
        return make_branch_sampler(name, objective.space)
    return make_sampler(name, objective.cost_parameter)


def _make_pruner(config: WorkerConfig, minimizes: bool) -> Pruner:
    name, objective = config.config.study.pruner, config.objective
    if isinstance(objective.space, ConditionalSpace):
        return make_branch_pruner(name, objective.space, minimizes=minimizes)
    return make_pruner(name, objective.max_steps, minimizes=minimizes)


def main(
    config: WorkerConfig, owner: str, error_pipe: multiprocessing.connection.Connection, progress: SharedProgress
) -> None:
    """Run a worker in a process that SIGTERM or the death of its parent stops.

    An error is sent to the parent as text, because only the parent prints, and the exit code is its kind.
    """
    # An ignored signal, which the launch can have inherited, would not arrive on every system.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    stop = threading.Event()
    poll_interval_s = config.timings.poll_interval_s
    threading.Thread(target=_watch, args=(stop, poll_interval_s), name="stop signals", daemon=True).start()
    with errors_sent(error_pipe.send_bytes, stop, verbose=config.verbose):
        run_worker(config, owner, stop, progress)


def run_worker(config: WorkerConfig, owner: str, stop: threading.Event, progress: SharedProgress) -> None:
    """Run a worker with one BLAS thread for a study that exists.

    Raises:
        HpoError: if the study, the data or a limit cannot be used, or the database stays unavailable.
    """
    with threadpool_limits(1), config.database.translate_errors(), _open_study(config, stop, progress) as study:
        if config.study_key not in (None, study.key):
            # The trials of another launch, with another budget, must not be continued by this launch.
            raise study_gone_error()
        # Time, memory and crashes of the setup do not count against a trial.
        config.objective.setup()
        if config.limits.memory is not None:
            limit_memory(config.limits.memory)
        logger.debug("worker starts", extra={"study": study.name, "worker": owner})
        WorkerLoop(study, config, owner, stop, progress).run()


def _open_study(config: WorkerConfig, stop: threading.Event, progress: SharedProgress) -> Study:
    """Open the study. A worker of a launch waits for a connection for as long as the launch."""

    def load() -> Study:
        try:
            study = load_study(config.database, config.config)
        except StorageError as error:
            progress.lacks_connection = lacks_connection(error)
            raise
        progress.lacks_connection = False
        return study

    retry = retry_while_unavailable(load, config.limits.storage_timeout, stop, config.timings.max_retry_wait_s)
    while True:
        try:
            return retry()
        except StorageError:
            has_launch = multiprocessing.parent_process() is not None
            if not (progress.lacks_connection and has_launch) or stop.is_set():
                raise


def _watch(stop: threading.Event, poll_interval_s: float) -> None:
    # A signal handler that sets the event could interrupt the main thread within a method of the same event.
    parent, forked_by = multiprocessing.parent_process(), os.getppid()
    while not received_signal(signal.SIGTERM, poll_interval_s):
        # If the fork server dies, the parent takes this process for dead and starts another worker.
        if (parent is not None and not parent.is_alive()) or os.getppid() != forked_by:
            break
    stop.set()
