"""Workers in this process, and studies in one database for them."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from factories import make_database

from hpo.config.study import StudyConfig
from hpo.data.prepared.cache import prepare
from hpo.runner.heartbeat import HeartbeatTimings
from hpo.runner.limits import Limits
from hpo.runner.objective import Objective, Trial
from hpo.runner.training_objective import TrainingObjective
from hpo.runner.trial_runner import SharedProgress, WorkerTimings
from hpo.runner.worker_loop import WorkerConfig, WorkerLoop
from hpo.search.sampling.samplers import make_sampler, propose
from hpo.storage.study import Study, open_or_create_study
from hpo.storage.tables.leases import Lease

# A pruner's decision is waited for, however busy the machine is.
DECISION_TIMEOUT_S = 300.0
TIMINGS = WorkerTimings(poll_interval_s=0.01, heartbeat=HeartbeatTimings(decision_timeout_s=DECISION_TIMEOUT_S))


def make_config(
    name: str = "s", space: dict[str, object] | None = None, train: dict[str, object] | None = None, **study: object
) -> StudyConfig:
    """Return the config of a study of four short trials.

    Args:
        name: The study's name.
        space: Additional keys of [space]; a key with the value None is removed.
        train: Additional keys of [train].
        study: Additional keys of [study].
    """
    fixed = {"batch_size": 60, "momentum": 0.9} | (train or {})
    searched = {
        "learning_rate": {"low": 1e-3, "high": 1e-1, "log": True},
        "regularization": {"low": 1e-7, "high": 1e-2, "log": True},
        "hidden_size": {"low": 8, "high": 32},
        "epochs": {"low": 10, "high": 20},
    } | (space or {})
    return StudyConfig.model_validate(
        {
            "study": {"name": name, "trials": 4, "sampler": "random", "pruner": "none"} | study,
            "data": {"dataset": "digits", "split": {"train": 400, "validation": 100, "test": 100}, "pca": 0.8},
            "train": {key: value for key, value in fixed.items() if searched.get(key) is None},
            "space": {key: value for key, value in searched.items() if value is not None},
        }
    )


def make_objective(config: StudyConfig) -> TrainingObjective:
    """Return the objective of a study file, after its setup."""
    objective = TrainingObjective.from_config(config, prepare(config))
    objective.setup()
    return objective


def heartbeat_timings(**timings: float) -> WorkerTimings:
    """Return fast timings of a worker with some intervals of the heartbeat changed."""
    fast = {
        "checkpoint_interval_s": 0.0,
        "first_checkpoint_s": 0.0,
        "retry_interval_s": 0.001,
        "decision_timeout_s": DECISION_TIMEOUT_S,
    }
    return WorkerTimings(poll_interval_s=0.001, max_retry_wait_s=0.001, heartbeat=HeartbeatTimings(**(fast | timings)))


class StopAfter(threading.Event):
    """Event that sets itself after some calls of ``is_set``."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self._remaining = calls

    def is_set(self) -> bool:
        self._remaining -= 1
        if self._remaining <= 0:
            self.set()
        return super().is_set()


class WrappedTrial:
    """Trial that passes every call on to another trial."""

    def __init__(self, trial: Any) -> None:
        self._trial = trial

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)


class WrappedObjective:
    """Objective that calls another one with wrapped trials."""

    def __init__(self, objective: Objective, wrap: Callable[[Trial], Any]) -> None:
        self._objective = objective
        self._wrap = wrap

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)

    def __call__(self, trial: Trial) -> float:
        return self._objective(self._wrap(trial))


class EpochLog:
    """Log of the trained epochs of an objective.

    Attributes:
        epochs: The epochs in the order of their training.
        trials: The trials in the order of their starts.
        on_epoch: Called with each epoch before its report.
    """

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.trials: list[Any] = []
        self.on_epoch: Callable[[int], None] = lambda epoch: None

    @property
    def last(self) -> int:
        """The last trained epoch."""
        return self.epochs[-1] if self.epochs else 0

    def watch(self, objective: Objective) -> WrappedObjective:
        """Return an objective whose epochs are logged."""
        return WrappedObjective(objective, lambda trial: _LoggedTrial(trial, self))


class _LoggedTrial(WrappedTrial):
    def __init__(self, trial: Trial, log: EpochLog) -> None:
        super().__init__(trial)
        log.trials.append(trial)
        self._log = log
        self._logged = 0

    def report(self, value: float, step: int) -> None:
        self._add(step)
        self._trial.report(value, step)

    def save_checkpoint(self, state: Callable[[], bytes], step: int) -> None:
        self._add(step)
        self._trial.save_checkpoint(state, step)

    def _add(self, step: int) -> None:
        # An epoch with a report ends after it.
        if step != self._logged:
            self._logged = step
            self._log.epochs.append(step)
            self._log.on_epoch(step)


class WorkerFactory:
    """Studies in one database, and workers for them.

    Attributes:
        database: The database.
        enqueued: The parameters that the next workers try first.
    """

    def __init__(self, url: str, folder: Path, **timings: Any) -> None:
        self.database = make_database(url, **timings)
        self.enqueued: tuple[Mapping[str, Any], ...] = ()
        self.closing_at_s: float | None = None
        self._opened: list[Study] = []

    def join(self, config: StudyConfig, fingerprint: str = "data") -> Study:
        """Open or create a study."""
        self._opened.append(open_or_create_study(self.database, config, fingerprint, "validation accuracy"))
        return self._opened[-1]

    def worker(
        self,
        study: Study,
        config: StudyConfig,
        owner: str = "worker_a",
        stop: threading.Event | None = None,
        *,
        objective: Objective | None = None,
        timings: WorkerTimings = TIMINGS,
        progress: SharedProgress | None = None,
        **limits: Any,
    ) -> WorkerLoop:
        """Return a worker of a study."""
        worker_config = WorkerConfig(
            self.database,
            config,
            objective or make_objective(config),
            config.study.trials,
            Limits(**({"storage_timeout": 30.0} | limits)),
            verbose=False,
            enqueued=self.enqueued,
            timings=timings,
            closing_at_s=self.closing_at_s,
        )
        return WorkerLoop(study, worker_config, owner, stop or threading.Event(), progress or SharedProgress())

    def close(self) -> None:
        """Close all studies."""
        for study in self._opened:
            study.close()


def create_proposed(study: Study, config: StudyConfig, number: int = 0, owner: str = "worker_a") -> Lease:
    """Create a trial with the parameters of the first proposal."""
    objective = make_objective(config)
    sampler = make_sampler(config.study.sampler, objective.cost_parameter)
    params = propose(sampler, objective.space, [], config.study.seed)
    study.store.raise_budget(number + 1)
    lease = study.store.allocate(owner)
    assert lease is not None
    assert lease.number == number
    study.store.write_params(lease, params, objective.space)
    return lease


def ledger(study: Study) -> list[tuple[object, ...]]:
    """Return the content of all trials, except the time and the reason of their end."""
    return [(t.number, t.state, t.params, t.intermediate_values, t.value) for t in study.trials]
