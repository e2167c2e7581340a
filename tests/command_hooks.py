"""Hooks into the commands that a test starts; a ``sitecustomize.py`` installs them in each of their processes.

They reach a command through public names only: they wrap the trial that a training objective is called with.
"""

import importlib.abc
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

GATES = Path("gates")
POLL_INTERVAL_S = 0.01
# A trial waits at its gate from the end of this step on.
GATE_STEP = 2


class WrappedTrial:
    """A trial that passes every call on to another trial."""

    def __init__(self, trial: Any) -> None:
        self._trial = trial

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)


class GatedTrial(WrappedTrial):
    """A trial that stays at the end of a step while the file ``gates/NUMBER`` exists.

    It can be stopped, pruned and timed out there like a trial with many short steps.
    """

    def save_checkpoint(self, state: Callable[[], bytes], step: int) -> None:
        self._trial.save_checkpoint(state, step)
        gate = GATES / str(self.number)
        if step < GATE_STEP or not gate.exists():
            return
        gate.with_suffix(".reached").touch()
        while gate.exists():
            time.sleep(POLL_INTERVAL_S)
            self._trial.tick()
            self._trial.save_checkpoint(state, step)


class CrashingTrial(WrappedTrial):
    """A trial that ends its process before it saves the checkpoint of a step; of step 0, before it starts."""

    def __init__(self, trial: Any, step: int, crash: Callable[[], object]) -> None:
        super().__init__(trial)
        self._step = step
        self._crash = crash

    def load_checkpoint(self) -> bytes | None:
        if self._step == 0:
            self._crash()
        return self._trial.load_checkpoint()

    def save_checkpoint(self, state: Callable[[], bytes], step: int) -> None:
        if step == self._step:
            self._crash()
        self._trial.save_checkpoint(state, step)


def gate_trials() -> None:
    """Let each trial with a gate wait for it."""
    _wrap_trials(GatedTrial)


def kill_trials(params: Mapping[str, object], step: int, log: str) -> None:
    """Kill the process of each trial with these parameters at a step, and append a letter to the log."""

    def kill() -> None:
        with Path(log).open("a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)

    def wrap(trial: Any) -> Any:
        return CrashingTrial(trial, step, kill) if params.items() <= trial.params.items() else trial

    _wrap_trials(wrap)


def crash_trial(number: int, step: int, exit_code: int) -> None:
    """End the process of one trial at a step with an exit code."""

    def wrap(trial: Any) -> Any:
        return CrashingTrial(trial, step, lambda: os._exit(exit_code)) if trial.number == number else trial

    _wrap_trials(wrap)


def gate_import(command: str, module: str) -> None:
    """Let the process of a command wait before it imports a module, while the file ``gates/import`` exists."""

    class Gate(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, *_: object) -> None:
            if name == module:
                (GATES / "import.reached").touch()
                while (GATES / "import").exists():
                    time.sleep(POLL_INTERVAL_S)

    if command in sys.orig_argv:
        sys.meta_path.insert(0, Gate())


def hide_package(package: str) -> None:
    """Report a package as not installed."""
    import importlib.util

    find_spec = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *parent: None if name == package else find_spec(name, *parent)


def _wrap_trials(wrap: Callable[[Any], Any]) -> None:
    if any("resource_tracker" in word for word in sys.orig_argv):
        # This process of multiprocessing runs no trial, and the import takes half a second.
        return
    from hpo.runner.training_objective import TrainingObjective

    call = TrainingObjective.__call__
    TrainingObjective.__call__ = lambda objective, trial: call(objective, wrap(trial))
