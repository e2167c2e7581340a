"""``python -m benchmarks.startup``: cost of a launch besides the training, on digits.

It measures the time from the command to the first training step in units of ``import optuna, sklearn, numpy``, and the
time of a whole study in units of the bare training of the same trials.

Each launch imports a ``sitecustomize`` module that writes the time at the end of the first ``MLP.step`` of a process to
a FIFO (CLOCK_MONOTONIC, which all processes share). The figures include the cost of this hook. The data are prepared
before the measurement, and no browser opens the dashboard.
"""

import contextlib
import functools
import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

import click
from optuna.trial import FrozenTrial
from threadpoolctl import threadpool_limits

from benchmarks.measuring import (
    Spread,
    environment,
    json_option,
    machine,
    print_table,
    ratio,
    spread,
    versions,
    write_json,
)
from hpo.config.loader import find_study, load_config
from hpo.config.study import StudyConfig
from hpo.data.prepared.cache import PreparedData, load_prepared, prepare
from hpo.data.task import Classification
from hpo.errors import HpoError
from hpo.models.nets.hyperparameters import hyperparameters_of
from hpo.models.trainer import make_trainer
from hpo.storage.database.connection import Database
from hpo.storage.study import load_study

STUDY = "digits"
WORKERS = 8
# Processes of the bare training, each with one BLAS thread.
PROCESSES = 2
IMPORTS = "import optuna, sklearn, numpy"
TARGETS = {"first_step_over_imports": 2.5, "digits_wall_over_training": 1.5}

_HOOK = """
import os, sys, time
from importlib.machinery import PathFinder

class Finder:
    @staticmethod
    def find_spec(name, path, target=None):
        if name != "hpo.models.nets.mlp":
            return None
        sys.meta_path.remove(Finder)
        spec = PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def execute_and_wrap(module):
            execute(module)
            step = module.MLP.step

            def first_step(*arguments):
                loss = step(*arguments)
                now = time.monotonic()
                module.MLP.step = step
                fifo = os.open(os.environ["STARTUP_FIFO"], os.O_RDWR)
                os.write(fifo, b"%r\\n" % now)
                os.close(fifo)
                return loss

            module.MLP.step = first_step

        spec.loader.exec_module = execute_and_wrap
        return spec

sys.meta_path.insert(0, Finder)
"""


class TrialEpochs(NamedTuple):
    """Number of epochs that one trial trained."""

    number: int
    params: dict[str, Any]
    epochs: int


class LaunchTimer:
    """Timer of launches of digits, each with a fresh database.

    Args:
        folder: An empty folder for the databases.
        trials: The budget of each study.
    """

    def __init__(self, folder: Path, trials: int) -> None:
        self._folder = folder
        self._trials = trials
        os.mkfifo(folder / "fifo")
        # Both ends open the FIFO for reading and writing, because open would wait for the other end otherwise.
        self._fifo = os.open(folder / "fifo", os.O_RDWR)
        (folder / "sitecustomize.py").write_text(_HOOK)
        self._config = load_config(find_study(STUDY))
        self._prepared = prepare(self._config).folder

    def time_imports(self) -> float:
        """Return the seconds of a process that only imports the packages."""
        started = time.monotonic()
        subprocess.run([sys.executable, "-c", IMPORTS], check=True, env=_environment())
        return time.monotonic() - started

    def time_first_step(self, *flags: str) -> float:
        """Return the seconds from the command to its first training step, and kill it."""
        with self._launched(*flags) as (process, started):
            while not select.select([self._fifo], [], [], 1)[0]:
                self._check(process)
            first, _, _ = os.read(self._fifo, 4096).partition(b"\n")
            return float(first) - started

    def time_study(self) -> float:
        """Return the seconds of a launch from its start to its end."""
        with self._launched() as (process, started):
            process.wait()
            ended = time.monotonic()
            self._check(process)
            return ended - started

    def time_training(self) -> float:
        """Return the seconds of the bare training of all epochs of the last study."""
        # The longest trial is first, so that both processes end at about the same time.
        tasks = sorted(self._tasks(), key=lambda task: task.epochs * task.params["hidden_size"], reverse=True)
        context = multiprocessing.get_context("spawn")
        ready = context.Barrier(PROCESSES + 1)
        with context.Pool(PROCESSES, _prepare_process, (self._prepared, ready)) as pool:
            ready.wait()
            started = time.monotonic()
            for _ in pool.imap_unordered(functools.partial(_train, self._config, self._prepared), tasks):
                pass
            return time.monotonic() - started

    def _check(self, process: "subprocess.Popen[bytes]") -> None:
        if process.poll() is not None and process.returncode != 0:
            raise HpoError(f"the launch ended with {process.returncode}: {(self._folder / 'stderr').read_text()}")

    def _tasks(self) -> list[TrialEpochs]:
        with load_study(Database.parse(self._url), self._config) as study:
            return [TrialEpochs(trial.number, trial.params, _epochs(self._config, trial)) for trial in study.trials]

    @property
    def _url(self) -> str:
        return f"sqlite:///{self._folder}/hpo.db"

    @contextlib.contextmanager
    def _launched(self, *flags: str) -> Iterator[tuple["subprocess.Popen[bytes]", float]]:
        """Start a launch; yield its process and start time, and kill its processes at the end."""
        for left in self._folder.glob("hpo.db*"):
            left.unlink()
        command = [sys.executable, "-m", "hpo.launch", STUDY, "--workers", str(WORKERS), "--trials", str(self._trials)]
        command += ["--confirm", "0", "--storage", self._url, "--output", str(self._folder)]
        command += flags or ["--port", str(_free_port())]
        path = os.pathsep.join([str(self._folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        with (self._folder / "stderr").open("wb") as stderr:
            started = time.monotonic()
            process = subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
                env=_environment() | {"PYTHONPATH": path, "STARTUP_FIFO": str(self._folder / "fifo")},
            )
        try:
            yield process, started
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            while select.select([self._fifo], [], [], 0)[0]:
                os.read(self._fifo, 4096)


def _environment() -> dict[str, str]:
    """Return the environment of a user, in which Python caches bytecode."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _epochs(config: StudyConfig, trial: FrozenTrial) -> int:
    """Return the number of trained epochs: all of a complete trial, otherwise up to the last report."""
    if trial.state.name == "COMPLETE":
        return hyperparameters_of(config, trial.params).epochs
    return trial.last_step or 0


@functools.cache
def _data(prepared: Path) -> PreparedData:
    return load_prepared(prepared)


def _prepare_process(prepared: Path, ready: Barrier) -> None:
    threadpool_limits(1)
    _data(prepared)
    ready.wait()


def _train(config: StudyConfig, prepared: Path, task: TrialEpochs) -> None:
    data = _data(prepared)
    seed = (config.study.seed, task.number)
    hyperparameters = hyperparameters_of(config, task.params)
    trainer = make_trainer(hyperparameters, [data.folds[0].train], Classification(), data.classes, seed)
    epochs = trainer.epochs(lambda: None)
    while trainer.epoch < task.epochs:
        next(epochs)


def measure(folder: Path, rounds: int, studies: int, trials: int) -> dict[str, Any]:
    """Return all figures."""
    timer = LaunchTimer(folder, trials)
    # The first launch compiles the bytecode that Python caches.
    timer.time_first_step()
    ways: dict[str, Callable[[], float]] = {
        "imports": timer.time_imports,
        "first_step": timer.time_first_step,
        "first_step_without_dashboard": lambda: timer.time_first_step("--no-dashboard"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in [*ways, "study", "training"]}
    for number in range(rounds):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            seconds[name].append(ways[name]())
    for _ in range(studies):
        seconds["study"].append(timer.time_study())
        seconds["training"].append(timer.time_training())
    ratios = {
        "first_step_over_imports": ratio(seconds["first_step"], seconds["imports"]),
        "first_step_without_dashboard_over_imports": ratio(seconds["first_step_without_dashboard"], seconds["imports"]),
        "digits_wall_over_training": ratio(seconds["study"], seconds["training"]),
    }
    return {
        **{name: ratios[name].median for name in TARGETS},
        "spread": {name: asdict(figure) for name, figure in ratios.items()},
        "seconds": {name: asdict(spread(values)) for name, values in seconds.items()},
        "machine": machine(),
        "versions": versions(),
    }


def _show(figures: dict[str, Any]) -> None:
    rows = [["", "median (range)", "n", "target"]]
    for group, unit in (("spread", ""), ("seconds", " s")):
        for name, figure in figures[group].items():
            target = f"under {TARGETS[name]}" if name in TARGETS else ""
            rows.append([name.replace("_", " "), f"{Spread(**figure)}{unit}", str(figure["n"]), target])
    print_table(rows)


@click.command("python -m benchmarks.startup", context_settings={"show_default": True})
@click.option("--rounds", type=click.IntRange(1), default=7, help="Launches up to their first step.")
@click.option("--studies", type=click.IntRange(1), default=3, help="Whole studies.")
@click.option("--trials", type=click.IntRange(1), default=100, help="Trials of a study.")
@json_option
def main(rounds: int, studies: int, trials: int, output: Path | None) -> None:
    """Measure the cost of a launch besides the training, on digits and SQLite."""
    try:
        with tempfile.TemporaryDirectory(prefix="hpo-startup-") as folder:
            figures = measure(Path(folder), rounds, studies, trials)
    except HpoError as error:
        raise click.ClickException(str(error)) from None
    click.echo(environment())
    _show(figures)
    if output is not None:
        write_json(output, figures)


if __name__ == "__main__":
    main()
