"""Contract of a worker pool, as tests that an implementation inherits."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hpo.config.loader import load_config
from hpo.data.prepared.cache import prepare
from hpo.fleet.pool import WorkerExit, WorkerPool
from hpo.runner.limits import Limits
from hpo.runner.training_objective import TrainingObjective
from hpo.runner.worker_loop import WorkerConfig
from hpo.storage.database.connection import Database
from hpo.storage.study import Study, is_finished, open_or_create_study

N_WORKERS = 2
N_TRIALS = 6

# Far above the time that a step needs on a busy machine.
TIMEOUT_S = 120.0

_STUDY = """
[study]
name = "pool"
trials = {trials}
sampler = "random"
pruner = "none"

[data]
dataset = "digits"
split = {{ train = 400, validation = 100, test = 100 }}

[train]
batch_size = 50
learning_rate = 0.01
regularization = 1e-4

[space]
hidden_size = {{ low = 8, high = 32 }}
epochs = {epochs}
"""
_SHORT = "{ low = 5, high = 10 }"
# Hours at a few milliseconds per epoch.
_ENDLESS = "{ low = 10000000, high = 10000001 }"


@dataclass(frozen=True)
class PoolSetup:
    """Study of a test, and the work of its workers.

    Attributes:
        config: The config of each worker. Its ``config.path`` is the study file.
        url: The URL of the database.
        study: The open study.
        size: The number of workers.
    """

    config: WorkerConfig
    url: str
    study: Study
    size: int


class WorkerPoolContract:
    """Tests of the protocol ``WorkerPool``. A subclass provides ``make_pool`` and ``kill_worker``."""

    def make_pool(self, setup: PoolSetup) -> WorkerPool:
        """Return a pool that is not started."""
        raise NotImplementedError

    def kill_worker(self, pool: WorkerPool) -> None:
        """Kill the process of one worker, from outside of the pool."""
        raise NotImplementedError

    def test_workers_finish_study(self, tmp_path: Path) -> None:
        """Check that the workers end by themselves when the budget is finished."""
        with self._started(tmp_path, _SHORT) as (pool, study):
            exits = _wait_until(pool, lambda: not pool.has_workers)
            assert exits == []
            assert not pool.is_alive
            assert is_finished(study.trials, N_TRIALS)
            assert [trial.number for trial in study.trials] == list(range(N_TRIALS))

    def test_killed_worker_is_replaced(self, tmp_path: Path) -> None:
        """Check the exit of a killed worker, and that the study continues."""
        with self._started(tmp_path, _ENDLESS) as (pool, study):
            _wait_until(pool, lambda: _count_owned(study) == N_WORKERS)
            self.kill_worker(pool)
            pool.wait(TIMEOUT_S)
            exits: list[WorkerExit] = []
            _wait_until(pool, lambda: bool(exits), exits)
            assert len(exits) == 1
            assert exits[0].killed
            assert exits[0].reason
            assert pool.has_workers
            # The replacement resumes the trial, or starts another one.
            _wait_until(pool, lambda: _attempts(study) > N_WORKERS and _count_owned(study) >= N_WORKERS)

    def test_stopped_workers_keep_their_checkpoints(self, tmp_path: Path) -> None:
        """Check that stopped workers release their trials with a checkpoint."""
        with self._started(tmp_path, _ENDLESS) as (pool, study):
            _wait_until(pool, lambda: _count_owned(study) == N_WORKERS and _has_checkpoints(study))
            pool.stop()
            _wait_until(pool, lambda: not pool.is_alive)
            # No worker is replaced any more.
            pool.poll()
            assert not pool.is_alive
            assert _count_owned(study) == 0
            assert _has_checkpoints(study)

    def test_killed_pool_frees_its_trials(self, tmp_path: Path) -> None:
        """Check that no worker is left, and that the trials are released or their leases expire."""
        with self._started(tmp_path, _ENDLESS) as (pool, study):
            _wait_until(pool, lambda: _count_owned(study) == N_WORKERS)
            pool.kill()
            _wait_until(pool, lambda: not pool.is_alive, poll=False)
            pool.release_leases()
            assert not pool.has_workers
            _wait_until(pool, lambda: _count_owned(study) == 0, poll=False)

    def test_wait_ends_with_readable_handle(self, tmp_path: Path) -> None:
        """Check that a handle ends the wait before the timeout."""
        with self._started(tmp_path, _ENDLESS) as (pool, _):
            receiver, sender = socket.socketpair()
            with receiver, sender:
                sender.send(b"x")
                started_at = time.monotonic()
                pool.wait(TIMEOUT_S, [receiver])
                assert time.monotonic() - started_at < TIMEOUT_S / 2

    @contextmanager
    def _started(self, folder: Path, epochs: str) -> Iterator[tuple[WorkerPool, Study]]:
        path = folder / "pool.toml"
        path.write_text(_STUDY.format(trials=N_TRIALS, epochs=epochs))
        config, url = load_config(path), f"sqlite:///{folder}/pool.db"
        database = Database.parse(url)
        database.check_reachable()
        objective = TrainingObjective.from_config(config, prepare(config))
        worker_config = WorkerConfig(database, config, objective, N_TRIALS, Limits(30.0), verbose=False)
        with open_or_create_study(database, config, objective.fingerprint, objective.metric) as study:
            pool = self.make_pool(PoolSetup(worker_config, url, study, N_WORKERS))
            try:
                pool.start()
                yield pool, study
            finally:
                pool.kill()


def _wait_until(
    pool: WorkerPool, condition: Callable[[], bool], exits: list[WorkerExit] | None = None, poll: bool = True
) -> list[WorkerExit]:
    """Poll the pool until a condition holds; return the exits.

    Args:
        pool: The pool.
        condition: The condition.
        exits: List to which the exits are added.
        poll: Whether the pool is polled.
    """
    exits = [] if exits is None else exits
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "the pool did not get there in time"
        pool.wait(0.05)
        if poll:
            exits += pool.poll()
    return exits


def _count_owned(study: Study) -> int:
    return sum(trial.owned for trial in study.store.active_trials())


def _attempts(study: Study) -> int:
    return sum(trial.attempt for trial in study.store.active_trials())


def _has_checkpoints(study: Study) -> bool:
    return all(trial.epoch > 0 for trial in study.store.active_trials())
