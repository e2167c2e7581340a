"""Workers in this process, on databases of their own."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpo.config.study import StudyConfig
from hpo.data.cache import load_prepared, prepare
from hpo.runner.limits import Limits
from hpo.runner.trial_runner import SharedProgress
from hpo.runner.worker_loop import Worker, WorkerConfig
from hpo.storage import database as storage
from hpo.storage import leases
from hpo.storage.study import Study, join_study


def make_config(
    name: str = "s", space: dict[str, object] | None = None, train: dict[str, object] | None = None, **study: object
) -> StudyConfig:
    """A study of four short trials; ``space`` and ``train`` add to the tables or, with None, take away."""
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
            "train": {key: value for key, value in fixed.items() if key not in searched},
            "space": {key: value for key, value in searched.items() if value is not None},
        }
    )


class StopAfter(threading.Event):
    """Set itself when it was asked often enough."""

    def __init__(self, questions: int) -> None:
        super().__init__()
        self._left = questions

    def is_set(self) -> bool:
        self._left -= 1
        if self._left <= 0:
            self.set()
        return super().is_set()


class WorkerFactory:
    """Studies in one database, and workers for them."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self._folder = folder
        self._opened: list[Study] = []
        self.enqueued: tuple[Mapping[str, Any], ...] = ()  # what the next workers are told to try first
        storage.check_reachable(storage.parse_url(url))

    def join(self, spec: StudyConfig, data: str = "data") -> Study:
        self._opened.append(join_study(storage.parse_url(self.url), spec, data))
        return self._opened[-1]

    def worker(
        self,
        study: Study,
        spec: StudyConfig,
        owner: str = "worker_a",
        stop: threading.Event | None = None,
        trial_timeout: float | None = None,
        memory: int | None = None,
        storage_timeout: float = 30,
    ) -> Worker:
        prepared = prepare(spec, self._folder / "s.toml")
        limits = Limits(storage_timeout, trial_timeout, memory)
        config = WorkerConfig(self.url, spec, prepared, spec.study.trials, limits, False, self.enqueued)
        return Worker(study, load_prepared(prepared), config, owner, stop or threading.Event(), SharedProgress())

    def close(self) -> None:
        for study in self._opened:
            storage.close(study.storage)


def ledger(study: Study) -> list[tuple[object, ...]]:
    """All that Optuna knows of the trials but the time and the reason of their end."""
    return [(t.number, t.state, t.params, t.intermediate_values, t.value) for t in study.trials]


def expire_all(study: Study) -> None:
    """Let every lease run out."""
    with study.storage.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE hpo_leases SET expires = expires - {2 * leases.LEASE_SECONDS}")
