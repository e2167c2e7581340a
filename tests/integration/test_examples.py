"""Examples: a resumed trial ends with the value of an uninterrupted trial."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hpo

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str, *modules: str) -> ModuleType:
    """Import an example, or skip the test if a module that the example needs is missing."""
    for module in modules:
        pytest.importorskip(module, reason=f"examples/{name}.py needs {module}, which is not installed")
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Interrupted(BaseException):
    """The end of a process, which an objective cannot catch."""


class Checkpoints:
    """The checkpoint of one trial; the process ends after the checkpoint of a step."""

    def __init__(self, last_step: int | None = None) -> None:
        self.state: bytes | None = None
        self.steps: list[int] = []
        self.last_step = last_step

    def load(self, trial: optuna.Trial) -> bytes | None:
        return self.state

    def save(self, trial: optuna.Trial, state: bytes, step: int) -> None:
        assert type(state) is bytes
        self.state = state
        self.steps.append(step)
        if step == self.last_step:
            raise Interrupted


def value(name: str, params: dict[str, Any], checkpoints: Checkpoints, *modules: str) -> float:
    """Run the objective of an example in a new copy of its module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hpo, "load_checkpoint", checkpoints.load, raising=False)
        patch.setattr(hpo, "save_checkpoint", checkpoints.save, raising=False)
        return load(name, *modules).objective(optuna.trial.FixedTrial(params))


def assert_resumes(name: str, params: dict[str, Any], last_step: int, *modules: str) -> None:
    """Interrupt a trial after a step, resume it, and compare its value with an uninterrupted trial."""
    uninterrupted = Checkpoints()
    expected = value(name, params, uninterrupted, *modules)
    interrupted = Checkpoints(last_step)
    with pytest.raises(Interrupted):
        value(name, params, interrupted, *modules)
    interrupted.last_step = None
    assert value(name, params, interrupted, *modules) == expected
    assert interrupted.steps == uninterrupted.steps == list(range(1, len(uninterrupted.steps) + 1))


@given(
    params=st.fixed_dictionaries({"learning_rate": st.floats(1e-5, 1e-2), "momentum": st.floats(0.0, 0.9)}),
    last_step=st.integers(1, 20),
)
def test_loop_resumes_exactly(params, last_step):
    assert_resumes("loop", params, last_step)


@pytest.mark.slow
@pytest.mark.parametrize("last_step", [1, 5, 8])
def test_pytorch_training_resumes_exactly(last_step):
    assert_resumes("pytorch_training", {"hidden": 32, "dropout": 0.3, "lr": 0.1}, last_step, "torch")


@pytest.mark.parametrize("last_step", [1, 5, 12])
def test_sklearn_partial_fit_resumes_exactly(last_step):
    assert_resumes("sklearn_partial_fit", {"alpha": 1e-4}, last_step)


@pytest.mark.parametrize("last_step", [1, 10, 30])
def test_boosting_resumes_exactly(last_step):
    assert_resumes("boosting", {"eta": 0.3, "max_depth": 3, "lambda": 1.0}, last_step, "xgboost")
