"""``python -m benchmarks.scaling``: the speed of two workers on CIFAR-10, and the memory of a worker.

Speed: processes that start as a launch's workers do train nets of 330 hidden units from a memory map that they share.
One process and two processes are measured in turn, in windows of the same length that begin when every process is warm.
The bare matrix products of a step show the limit of the machine, because these processes share only caches, memory and
clock frequency.

Memory: the peak of a worker of a real launch (``VmHWM``, all pages in memory, with the mapped data) minus the peak of
the fork server. The server is an interpreter that has imported the modules of all processes of a launch, and does
nothing else. An idle fork of it is not a fair reference, because a fork starts without the pages of the libraries'
code, which would then count as memory of the training.
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
    has_mapped_data,
    json_option,
    machine,
    print_table,
    ratio,
    spread,
    versions,
    write_json,
)
from benchmarks.step import ENDLESS, products
from hpo.config.loader import load_config
from hpo.data.prepared.cache import load_prepared, prepare
from hpo.data.task import Classification
from hpo.errors import HpoError
from hpo.fleet.forkserver import process_for, server_running
from hpo.models.nets.hyperparameters import Hyperparameters
from hpo.models.trainer import make_trainer

HIDDEN_SIZE = 330
# Batches of an epoch: 49,000 images in batches of 200.
BATCHES = 245
WARM_STEPS = 2 * BATCHES
WORKERS = 2
MEMORY_INTERVAL_S = 0.02

# Twelve trials, because TPE needs memory of its own from the eleventh trial on.
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

# The work of a process, which never ends. It counts its steps in the first argument.
Target = Callable[..., None]


def train(steps: Any, prepared: Path) -> None:
    """Train until the process is killed."""
    data = load_prepared(prepared)
    hyperparameters = Hyperparameters(
        learning_rate=1e-3, regularization=1e-4, hidden_size=HIDDEN_SIZE, epochs=ENDLESS, batch_size=200, momentum=0.9
    )
    trainer = make_trainer(hyperparameters, [data.folds[0].train], Classification(), data.classes, seed=(0, 0))

    def count() -> None:
        steps.value += 1

    with threadpool_limits(1):
        for _ in trainer.epochs(on_step=count):
            pass


def multiply(steps: Any, prepared: Path) -> None:
    """Compute the bare matrix products of a step until the process is killed."""
    data = load_prepared(prepared)
    work = products(data.folds[0].train.X.shape[1] - 1, HIDDEN_SIZE, len(data.classes))
    with threadpool_limits(1):
        while True:
            work()
            steps.value += 1


def steps_per_second(target: Target, processes: int, prepared: Path, seconds: float) -> float:
    """Return the steps per second of all processes together.

    Raises:
        HpoError: if a process died.
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
    """Return the epochs per second of one and two processes, their ratio, and the ratio of the products."""
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
    """Return the memory of a launch's workers, in MB of 10^6 bytes.

    Raises:
        HpoError: if the launch failed.
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
            time.sleep(MEMORY_INTERVAL_S)
    if launch.returncode != 0 or not most:
        raise HpoError(f"the launch whose memory was measured ended with {launch.returncode}")
    return {
        "worker_peak_mb": spread([memory.peak for memory in most.values()]),
        "server_peak_mb": spread([memory.server_peak for memory in most.values()]),
        "memory_per_worker_mb": spread([memory.peak - memory.server_peak for memory in most.values()]),
        "proportional_set_size_mb": spread([memory.proportional for memory in most.values()]),
    }


class Memory(NamedTuple):
    """Memory of a worker and of its fork server, in MB of 10^6 bytes."""

    peak: float
    server_peak: float
    proportional: float

    @classmethod
    def of(cls, worker: psutil.Process) -> Self:
        """Return the memory of a worker at this moment."""
        return cls(
            peak=_megabytes(worker.pid, "status", "VmHWM"),
            server_peak=_megabytes(worker.ppid(), "status", "VmHWM"),
            proportional=_megabytes(worker.pid, "smaps_rollup", "Pss"),
        )

    def or_more(self, other: Self | None) -> Self:
        """Return the maximum of each figure."""
        return self if other is None else type(self)(*map(max, self, other))


def _workers(launch_pid: int) -> list[psutil.Process]:
    """Return the processes of a launch that have mapped the prepared data."""
    children = psutil.Process(launch_pid).children(recursive=True)
    return [process for process in children if has_mapped_data(process.pid)]


def _megabytes(pid: int, file: str, field: str) -> float:
    found = Path(f"/proc/{pid}/{file}").read_text().partition(f"{field}:")[2].split()
    if not found:
        # The process has ended and has no memory.
        raise ProcessLookupError
    return int(found[0]) * 1024 / 1e6


def measure(folder: Path, rounds: int, seconds: float) -> dict[str, Spread]:
    """Return all figures.

    Raises:
        HpoError: if CIFAR-10 is missing, or a process failed.
    """
    path = folder / "scaling.toml"
    path.write_text(STUDY)
    prepared = prepare(load_config(path)).folder
    with server_running():
        speed = measure_speed(prepared, rounds, seconds)
    return speed | measure_memory(path)


LABELS = {
    "one_epochs_per_second": ("1 process, epochs per second", ""),
    "two_epochs_per_second": ("2 processes, epochs per second", ""),
    "two_over_one": ("2 processes / 1", "at least 1.9"),
    "products_two_over_one": ("bare products, 2 processes / 1", "limit of the machine"),
    "worker_peak_mb": ("peak memory of a worker, MB", ""),
    "server_peak_mb": ("peak memory of the fork server, MB", ""),
    "memory_per_worker_mb": ("memory of a worker above the server's, MB", "under 60"),
    "proportional_set_size_mb": ("proportional share of a worker (PSS), MB", ""),
}


@click.command("python -m benchmarks.scaling", context_settings={"show_default": True})
@click.option("--rounds", type=click.IntRange(1), default=10, help="Windows of each kind.")
@click.option("--seconds", type=click.FloatRange(0.1), default=3.0, help="The length of a window.")
@json_option
def main(rounds: int, seconds: float, output: Path | None) -> None:
    """Measure the speed of two processes that train on CIFAR-10, and the memory of a worker."""
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
    """Print a table of the figures and their targets."""
    click.echo(environment())
    click.echo(f"hidden {HIDDEN_SIZE}, windows of {seconds:g} s; medians (lowest-highest); MB are 10^6 bytes\n")
    rows = [["", "measured", "n", "target"]]
    rows += [[label, str(figures[name]), str(figures[name].n), target] for name, (label, target) in LABELS.items()]
    print_table(rows)


if __name__ == "__main__":
    main()
