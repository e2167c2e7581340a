"""CPU time of the trials that a worker in this process runs, divided into training and parts of the overhead."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from unittest.mock import patch

from hpo.runner import worker_loop
from hpo.runner.objective import Objective, Trial
from hpo.runner.training_objective import TrainingObjective
from hpo.search.proposer import Proposer
from hpo.search.pruning.pruners import Pruner, make_pruner
from hpo.storage.tables.leases import Checkpoint, Lease
from hpo.storage.tables.optuna_tables import NO_DETAILS, Details
from hpo.storage.trial_store import Reports, TrialOutcome, TrialStore

# Calls of Trial.tick that are timed by themselves.
PROBES = 1000

T = TypeVar("T")

# The parts of the overhead that are one function each: where the worker finds the function, and the part's name.
CALLED: list[tuple[Any, str, str]] = [
    (TrialStore, "claim", "claim"),
    (TrialStore, "refresh", "read"),
    (TrialStore, "allocate", "allocate"),
    (Proposer, "propose", "propose"),
    (TrialStore, "write_params", "parameters"),
    (TrialStore, "finish", "end"),
]
PARTS = (*(part for _, _, part in CALLED), "prune", "report", "taking", "writing")


@dataclass(frozen=True)
class Spent:
    """CPU time of one trial in milliseconds.

    Attributes:
        overhead: All but the training.
        training: The objective without its calls of ``report`` and ``save_checkpoint``, but with its ticks.
        between_steps: The ticks.
        parts: Parts of the overhead. The rest goes to threads, to waiting, and to calls after each epoch.
        counts: Number of calls of each part.
        epochs: Epochs of the trial.
    """

    overhead: float
    training: float
    between_steps: float
    parts: dict[str, float]
    counts: dict[str, int]
    epochs: int

    @property
    def checkpoints(self) -> float:
        """The time to take and to write checkpoints."""
        return self.parts["taking"] + self.parts["writing"]


class Account:
    """CPU time of a worker's trials, one after the other.

    Attributes:
        spent: The finished trials.
    """

    def __init__(self) -> None:
        self.spent: list[Spent] = []
        self._open()

    def timed(self, part: str, work: Callable[[], T]) -> T:
        """Run a part of the work in this thread."""
        started = time.thread_time()
        try:
            return work()
        finally:
            self.add(part, time.thread_time() - started)

    def add(self, part: str, seconds: float) -> None:
        """Add a call of a part."""
        self._milliseconds[part] += 1e3 * seconds
        self._counts[part] += 1

    def wrapped(self, part: str, function: Callable[..., T]) -> Callable[..., T]:
        """Return the function, timed as a part of the work."""
        return lambda *arguments, **keywords: self.timed(part, partial(function, *arguments, **keywords))

    def close(self) -> None:
        """End the account of a finished trial."""
        total, found = 1e3 * (time.process_time() - self._since), self._milliseconds
        self.spent.append(
            Spent(
                overhead=total - found["training"] - found["probe"],
                training=found["training"],
                between_steps=found["probe"] / PROBES * self.ticks,
                parts={part: found[part] for part in PARTS},
                counts={part: self._counts[part] for part in PARTS},
                epochs=self.epochs,
            )
        )
        self._open()

    def _open(self) -> None:
        self.ticks = self.epochs = 0
        self._milliseconds: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._since = time.process_time()


class AccountedTrial:
    """Trial whose calls are counted, and timed where they are overhead."""

    def __init__(self, trial: Trial, account: Account) -> None:
        self._trial = trial
        self._account = account
        self._tick = trial.tick
        self.overhead_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    def tick(self) -> None:
        """End a piece of work."""
        self._account.ticks += 1
        self._tick()

    def report(self, value: float, step: int) -> None:
        """Report a value."""
        self._account.epochs = step
        with self._overhead():
            self._trial.report(value, step)

    def save_checkpoint(self, state: Callable[[], bytes], step: int) -> None:
        """End a step."""
        self._account.epochs = step
        with self._overhead():
            self._trial.save_checkpoint(self._account.wrapped("taking", state), step)

    @contextlib.contextmanager
    def _overhead(self) -> Iterator[None]:
        started = time.thread_time()
        try:
            yield
        finally:
            self.overhead_s += time.thread_time() - started


class AccountedPruner:
    """Pruner whose decisions are timed."""

    def __init__(self, pruner: Pruner, account: Account) -> None:
        self._pruner = pruner
        self.should_continue = account.wrapped("prune", pruner.should_continue)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pruner, name)


@contextlib.contextmanager
def accounted(objective: type[Objective] = TrainingObjective) -> Iterator[list[Spent]]:
    """Account for each trial that this process finishes within the block; yields the accounts."""
    account = Account()
    patches: dict[tuple[Any, str], Callable[..., Any]] = {
        (owner, name): account.wrapped(part, getattr(owner, name)) for owner, name, part in CALLED
    }
    finish = patches[TrialStore, "finish"]
    patches |= {
        (TrialStore, "finish"): _closing(account, finish),
        (TrialStore, "report"): _reporting(account, TrialStore.report),
        (worker_loop, "make_pruner"): lambda *arguments, **keywords: AccountedPruner(
            make_pruner(*arguments, **keywords), account
        ),
        (objective, "__call__"): _running(account, objective.__call__),
    }
    with contextlib.ExitStack() as stack:
        for (owner, name), function in patches.items():
            stack.enter_context(patch.object(owner, name, function))
        yield account.spent


def _running(
    account: Account, call: Callable[[Any, Trial], float | TrialOutcome]
) -> Callable[[Any, Trial], float | TrialOutcome]:
    def run(objective: Any, trial: Trial) -> float | TrialOutcome:
        account.timed("probe", partial(_repeat, trial.tick))
        accounted_trial = AccountedTrial(trial, account)
        started = time.thread_time()
        try:
            return call(objective, accounted_trial)
        finally:
            account.add("training", time.thread_time() - started - accounted_trial.overhead_s)

    return run


def _repeat(tick: Callable[[], None]) -> None:
    for _ in range(PROBES):
        tick()


def _closing(account: Account, finish: Callable[..., None]) -> Callable[..., None]:
    def finish_and_close(*arguments: Any, **keywords: Any) -> None:
        finish(*arguments, **keywords)
        account.close()

    return finish_and_close


def _reporting(account: Account, report: Callable[..., None]) -> Callable[..., None]:
    def timed_report(
        store: TrialStore,
        lease: Lease,
        reports: Reports,
        checkpoint: Checkpoint | None = None,
        details: Details = NO_DETAILS,
    ) -> None:
        part = "report" if checkpoint is None else "writing"
        account.timed(part, partial(report, store, lease, reports, checkpoint, details))

    return timed_report
