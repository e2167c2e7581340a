"""Takes down the CPU time of the trials that a worker in this process trains: the training's, and what is overhead."""

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from unittest.mock import patch

from hpo.data.cache import Split
from hpo.models.trainer import Epoch, Trainer
from hpo.runner import trial_runner as attempt
from hpo.runner import worker_loop as worker
from hpo.storage import leases
from hpo.storage import trial_cache as history
from hpo.storage import trial_store as trials
from hpo.storage.leases import Checkpoint, Lease
from hpo.storage.study import Study

PROBES = 1000  # looks at the limits that are timed by themselves

T = TypeVar("T")


# What the worker calls, where it looks for it, and what we call that; all of it is overhead.
CALLED: list[tuple[Any, str, str]] = [
    (leases.Leases, "claim", "claim"),
    (history.TrialCache, "read", "read"),
    (worker, "propose", "propose"),
    (trials, "create", "create"),
    (attempt, "should_continue", "prune"),
    (trials, "end", "end"),
]
PARTS = (*(part for _, _, part in CALLED), "report", "taking", "writing")


@dataclass(frozen=True)
class Spent:
    """The CPU time of one trial in milliseconds.

    Attributes:
        overhead: all but the training.
        training: with the looks at the limits between two steps.
        between_steps: these looks.
        parts: of the overhead; the rest goes to threads, to waiting, and to what is called after each epoch.
        counts: how often each part was called.
        epochs: of the trial.
    """

    overhead: float
    training: float
    between_steps: float
    parts: dict[str, float]
    counts: dict[str, int]
    epochs: int

    @property
    def checkpoints(self) -> float:
        """What it took to take and to write them."""
        return self.parts["taking"] + self.parts["writing"]


class Account:
    """Takes down the CPU time of a worker's trials, one after the other.

    Attributes:
        spent: on the trials that have ended.
    """

    def __init__(self) -> None:
        self.spent: list[Spent] = []
        self._open()

    def timed(self, part: str, work: Callable[[], T]) -> T:
        """Do a part of the work of this thread."""
        started = time.thread_time()
        try:
            return work()
        finally:
            self._milliseconds[part] += 1e3 * (time.thread_time() - started)
            self._counts[part] += 1

    def wrapped(self, part: str, function: Callable[..., T]) -> Callable[..., T]:
        """The function, as a part of the work."""
        return lambda *arguments, **keywords: self.timed(part, partial(function, *arguments, **keywords))

    def begin(self, training: Trainer, steps: int) -> None:
        """This is the trial's training, of so many steps an epoch."""
        self._training, self._steps = training, steps

    def close(self) -> None:
        """The trial has ended."""
        total, found, epochs = 1e3 * (time.process_time() - self._since), self._milliseconds, self._training.epoch
        self.spent.append(
            Spent(
                overhead=total - found["training"] - found["probe"],
                training=found["training"],
                between_steps=found["probe"] / PROBES * self._steps * epochs,
                parts={part: found[part] for part in PARTS},
                counts={part: self._counts[part] for part in PARTS},
                epochs=epochs,
            )
        )
        self._open()

    def _open(self) -> None:
        self._milliseconds: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._since = time.process_time()


@contextlib.contextmanager
def accounted() -> Iterator[list[Spent]]:
    """Within, what this process spends on each trial is taken down."""
    account = Account()
    with contextlib.ExitStack() as stack:
        for owner, name, part in CALLED:
            stack.enter_context(patch.object(owner, name, account.wrapped(part, getattr(owner, name))))
        stack.enter_context(patch.object(attempt, "Trainer", _training_of(account)))
        stack.enter_context(patch.object(trials, "write", _write_of(account, trials.write)))
        stack.enter_context(patch.object(trials, "end", _end_of(account, trials.end)))
        yield account.spent


def _training_of(account: Account) -> type[Trainer]:
    class AccountedTraining(Trainer):
        def __init__(self, *arguments: Any) -> None:
            account.wrapped("training", super().__init__)(*arguments)
            account.begin(self, steps=math.ceil(len(self._y) / self._network.batch_size))

        def epochs(self, after_step: Callable[[], None] = lambda: None) -> Iterator[Epoch]:
            account.timed("probe", partial(_repeat, after_step))
            epochs = super().epochs(after_step)
            while epoch := account.timed("training", lambda: next(epochs, None)):
                yield epoch

        def accuracy(self, split: Split) -> float:
            return account.timed("training", partial(super().accuracy, split))

        def save(self) -> bytes:
            return account.timed("taking", super().save)

    return AccountedTraining


def _repeat(look: Callable[[], None]) -> None:
    for _ in range(PROBES):
        look()


def _write_of(account: Account, write: Callable[..., None]) -> Callable[..., None]:
    def accounted_write(study: Study, lease: Lease, reports: trials.Reports, checkpoint: Checkpoint | None) -> None:
        part = "report" if checkpoint is None else "writing"
        account.timed(part, partial(write, study, lease, reports, checkpoint))

    return accounted_write


def _end_of(account: Account, end: Callable[..., None]) -> Callable[..., None]:
    def accounted_end(*arguments: Any, **keywords: Any) -> None:
        end(*arguments, **keywords)
        account.close()

    return accounted_end
