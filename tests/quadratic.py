"""Objective without data: a quadratic that is approached in ten steps."""

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from optuna.distributions import FloatDistribution

from hpo.config.study import StudyConfig
from hpo.runner.objective import Trial

N_STEPS = 10


class Quadratic:
    """Maximum of -(x - 1)**2, of which each step halves the distance to the trial's own optimum."""

    metric = "negative distance"
    max_steps = N_STEPS
    cost_parameter = None
    fingerprint = ""
    ticks = True

    def __init__(self) -> None:
        self.space = {"x": FloatDistribution(-2.0, 2.0)}

    def n_steps(self, params: Mapping[str, Any]) -> int:
        return N_STEPS

    def setup(self) -> None:
        pass

    def __call__(self, trial: Trial) -> float:
        x = trial.suggest_float("x", -2.0, 2.0)
        step, distance = 0, 1.0 + trial.number / 100
        with contextlib.suppress(ValueError):
            step, distance = json.loads(trial.load_checkpoint() or "none")
        while True:
            trial.tick()
            step, distance = step + 1, distance / 2
            value = -((x - 1) ** 2) - distance
            trial.report(value, step)
            if step == N_STEPS:
                return value
            trial.save_checkpoint(json.dumps([step, distance]).encode, step)

    def artifact(self) -> bytes:
        return b"quadratic"


def make_quadratic_config(name: str = "quadratic", **study: Any) -> StudyConfig:
    tables = {"name": name, "trials": 12, "sampler": "random", "pruner": "asha"} | study
    return StudyConfig.model_validate({"study": tables, "space": {"x": {"low": -2.0, "high": 2.0}}})
