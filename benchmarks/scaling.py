"""``python -m benchmarks.scaling``: what a second worker adds on CIFAR-10, and the memory that one takes.

Speed: processes that are started like a launch's workers train nets of 330 hidden units, each from the memory map that
all share. Both ways of running, one process or two, are counted in turn, in windows of the same length that begin when
every process is warm. The bare matrix products of a step show what the machine itself allows: its processes have
nothing in common but caches, memory and clock frequency.

Memory: the peak of a worker of a real launch (``VmHWM``: every page that it has in memory, shared or not, so the mapped
data count in full), less the same of the server that it was forked from. That server is an interpreter that has
imported what all processes of a launch import, and does nothing else. An idle fork of it would be no fair reference: a
fork starts without the pages of the libraries' code, and all of them would count as the training's.
"""

import contextlib
import ctypes
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from multiprocessing.context import ForkServerProcess
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any, NamedTuple, Self

import click
import psutil
from threadpoolctl import threadpool_limits

from benchmarks.checkpoint import launched
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
from benchmarks.step import ENDLESS, products
from hpo.config.study import Hyperparameters, load_config
from hpo.data.cache import load_prepared, prepare
from hpo.errors import HpoError
from hpo.fleet.forkserver import process_for, server_running
from hpo.models.trainer import Trainer

HIDDEN_SIZE = 330
BATCHES = 245  # of an epoch: 49,000 images, 200 a batch
WARM_STEPS = 2 * BATCHES
WORKERS = 2
SAMPLE_SECONDS = 0.02  # between two looks at a worker's memory

# Twelve trials: TPE, which takes memory of its own, begins with the eleventh.
STUDY = """
[study]
name = "scaling"
trials = 12
pruner = "none"

[data]
dataset = "cifar10"
split = { train = 49000, validation = 1000, test = 1000 }
pca = 0.95

[train]
batch_size = 200
momentum = 0.9
regularization = 1e-4
epochs = 3
hidden_size = 400

[space]
learning_rate = { low = 1e-4, high = 1e-2, log = true }
"""

# A process's work: counts its steps in the first argument and never ends.
Target = Callable[..., None]


def train(steps: Any, prepared: Path) -> None:
    """Train for good."""
    data = load_prepared(prepared)
    hyperparameters = Hyperparameters(
        learning_rate=1e-3, regularization=1e-4, hidden_size=HIDDEN_SIZE, epochs=ENDLESS, batch_size=200, momentum=0.9
    )
    training = Trainer(data.train, len(data.classes), hyperparameters, seed=(0, 0))

    def count() -> None:
        steps.value += 1

    with threadpool_limits(1):
        for _ in training.epochs(after_step=count):
            pass


def multiply(steps: Any, prepared: Path) -> None:
    """Make the bare matrix products of such a step for good."""
    data = load_prepared(prepared)
    work = products(data.train.X.shape[1] - 1, HIDDEN_SIZE, len(data.classes))
    with threadpool_limits(1):
        while True:
            work()
            steps.value += 1


def steps_per_second(target: Target, processes: int, prepared: Path, seconds: float) -> float:
    """What so many processes do together.

    Raises:
        HpoError: one of them died.
    """
    counts = [RawValue(ctypes.c_int64) for _ in range(processes)]
    started = [process_for(target, count, prepared) for count in counts]
    try:
        while min(count.value for count in counts) < WARM_STEPS:
            _check_alive(started)
            time.sleep(0.01)
        rate = _rate(counts, seconds)
        _check_alive(started)
        return rate
    finally:
        for process in started:
            process.kill()
            process.join()


def _rate(counts: Sequence[Any], seconds: float) -> float:
    before, since = sum(count.value for count in counts), time.perf_counter()
    time.sleep(seconds)
    after, until = sum(count.value for count in counts), time.perf_counter()
    return float(after - before) / (until - since)


def _check_alive(processes: list[ForkServerProcess]) -> None:
    if not all(process.is_alive() for process in processes):
        raise HpoError("a process died while it was measured")


def measure_speed(prepared: Path, rounds: int, seconds: float) -> dict[str, Spread]:
    """Epochs per second of one and of two processes, their ratio, and that of the products."""
    rates: dict[tuple[Target, int], list[float]] = {
        (target, processes): [] for target in (train, multiply) for processes in (1, 2)
    }
    for _ in range(rounds):
        for (target, processes), found in rates.items():
            found.append(steps_per_second(target, processes, prepared, seconds))
    return {
        "one_epochs_per_second": spread([rate / BATCHES for rate in rates[train, 1]]),
        "two_epochs_per_second": spread([rate / BATCHES for rate in rates[train, 2]]),
        "two_over_one": ratio(rates[train, 2], rates[train, 1]),
        "products_two_over_one": ratio(rates[multiply, 2], rates[multiply, 1]),
    }


def measure_memory(study: Path) -> dict[str, Spread]:
    """The memory of the workers of a launch, in MB of 10^6 bytes.

    Raises:
        HpoError: the launch failed.
    """
    command = [sys.executable, "-m", "hpo.launch", str(study), "--workers", str(WORKERS), "--no-dashboard", "--quiet"]
    command += ["--storage", f"sqlite:///{study.parent}/scaling.db", "--output", str(study.parent), "--confirm", "0"]
    most: dict[int, Memory] = {}
    with launched(command) as (launch, _):
        while launch.poll() is None:
            workers = _workers(launch.pid)
            for worker in workers if len(workers) == WORKERS else []:
                with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                    most[worker.pid] = Memory.of(worker).or_more(most.get(worker.pid))
            time.sleep(SAMPLE_SECONDS)
    if launch.returncode != 0 or not most:
        raise HpoError(f"the launch whose memory was measured ended with {launch.returncode}")
    return {
        "worker_peak_mb": spread([memory.peak for memory in most.values()]),
        "server_peak_mb": spread([memory.server_peak for memory in most.values()]),
        "memory_per_worker_mb": spread([memory.peak - memory.server_peak for memory in most.values()]),
        "proportional_set_size_mb": spread([memory.proportional for memory in most.values()]),
    }


class Memory(NamedTuple):
    """Of a worker and of the server that it was forked from, in MB of 10^6 bytes."""

    peak: float
    server_peak: float
    proportional: float

    @classmethod
    def of(cls, worker: psutil.Process) -> Self:
        """As it is now."""
        return cls(
            peak=_megabytes(worker.pid, "status", "VmHWM"),
            server_peak=_megabytes(worker.ppid(), "status", "VmHWM"),
            proportional=_megabytes(worker.pid, "smaps_rollup", "Pss"),
        )

    def or_more(self, other: Self | None) -> Self:
        """The higher of each."""
        return self if other is None else type(self)(*map(max, self, other))


def _workers(launch_pid: int) -> list[psutil.Process]:
    """Those processes of a launch that hold the prepared data."""
    found = []
    for process in psutil.Process(launch_pid).children(recursive=True):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if "train.joblib" in Path(f"/proc/{process.pid}/maps").read_text():
                found.append(process)
    return found


def _megabytes(pid: int, file: str, field: str) -> float:
    found = Path(f"/proc/{pid}/{file}").read_text().partition(f"{field}:")[2].split()
    if not found:  # it has ended, and has no memory any more
        raise ProcessLookupError
    return int(found[0]) * 1024 / 1e6


def measure(folder: Path, rounds: int, seconds: float) -> dict[str, Spread]:
    """All figures.

    Raises:
        HpoError: CIFAR-10 is not there, or a process failed.
    """
    path = folder / "scaling.toml"
    path.write_text(STUDY)
    prepared = prepare(load_config(path), path)
    with server_running():
        speed = measure_speed(prepared, rounds, seconds)
    return speed | measure_memory(path)


LABELS = {
    "one_epochs_per_second": ("1 process, epochs per second", ""),
    "two_epochs_per_second": ("2 processes, epochs per second", ""),
    "two_over_one": ("2 processes / 1", "at least 1.9"),
    "products_two_over_one": ("the same of the bare products", "the machine's own"),
    "worker_peak_mb": ("peak memory of a worker, MB", ""),
    "server_peak_mb": ("that of the server, which it is forked from, MB", ""),
    "memory_per_worker_mb": ("the worker's above the server's, MB", "under 60"),
    "proportional_set_size_mb": ("its share of all memory (PSS), MB", ""),
}


@click.command("python -m benchmarks.scaling", context_settings={"show_default": True})
@click.option("--rounds", type=click.IntRange(1), default=10, help="Windows of each kind.")
@click.option("--seconds", type=click.FloatRange(0.1), default=3.0, help="The length of a window.")
@json_option
def main(rounds: int, seconds: float, output: Path | None) -> None:
    """Measure what a second process adds to the training on CIFAR-10, and what memory it takes."""
    try:
        with tempfile.TemporaryDirectory(prefix="hpo-scaling-") as folder:
            figures = measure(Path(folder), rounds, seconds)
        show(figures, seconds)
        if output is not None:
            medians = {name: one.median for name, one in figures.items()}
            spreads = {name: asdict(one) for name, one in figures.items()}
            write_json(output, {**medians, "spread": spreads, "machine": machine(), "versions": versions()})
    except HpoError as error:
        raise click.ClickException(str(error)) from None


def show(figures: dict[str, Spread], seconds: float) -> None:
    """A table with the targets beside."""
    click.echo(environment())
    click.echo(f"hidden {HIDDEN_SIZE}, windows of {seconds:g} s; medians (lowest-highest); MB are 10^6 bytes\n")
    rows = [["", "measured", "n", "target"]]
    rows += [[label, str(figures[name]), str(figures[name].n), target] for name, (label, target) in LABELS.items()]
    print_table(rows)


if __name__ == "__main__":
    main()
