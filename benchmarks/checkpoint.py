"""``python -m benchmarks.checkpoint``: what checkpoints cost, and what they save, on CIFAR-10.

The cost is that of taking a checkpoint and writing it to a database; the rescue is measured by killing the worker of a
real launch when its trial is at 90%.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import psutil
from optuna.trial import TrialState

from benchmarks.measuring import Spread, environment, json_option, spread, write_json
from hpo.config.study import StudyConfig, load_config
from hpo.data.cache import PreparedData, load_prepared, prepare
from hpo.errors import HpoError
from hpo.models.trainer import Trainer
from hpo.runner.reporter import CHECKPOINT_SECONDS
from hpo.storage import database as storage
from hpo.storage import trial_store as trials
from hpo.storage.leases import Checkpoint, Progress
from hpo.storage.study import Study, join_study, load_study

HIDDEN_SIZES = (32, 400)
KILLED_AT = 0.9  # of the trial, at least
KILLED_AFTER_SECONDS = 0.95 * CHECKPOINT_SECONDS  # the worst moment: just before the next checkpoint

STUDY = """
[study]
name = "checkpoint"
trials = 1
pruner = "none"

[data]
dataset = "cifar10"
split = { train = 49000, validation = 1000, test = 1000 }
pca = 0.95

[train]
batch_size = 200
momentum = 0.9
learning_rate = 1e-3
regularization = 1e-4
epochs = 800
hidden_size = 400
"""


def measure_cost(study: Study, spec: StudyConfig, data: PreparedData, hidden_size: int, rounds: int) -> Spread:
    """The CPU time of a checkpoint, taken and written, as a share of the time in which one is taken.

    Measured by itself: blocks of training with and without checkpoints differ by more than that for other reasons.
    """
    hyperparameters = spec.hyperparameters({}).model_copy(update={"hidden_size": hidden_size})
    training = Trainer(data.train, len(data.classes), hyperparameters, seed=(0, 0))
    lease = trials.create(study, spec, {}, len(study.trials), "benchmark")
    shares = []
    for epoch in range(1, rounds + 1):
        started = time.process_time()
        trials.write(study, lease, [], Checkpoint(epoch, 0.0, training.save()))
        shares.append((time.process_time() - started) / CHECKPOINT_SECONDS)
    trials.end(study, lease, TrialState.PRUNED)
    return spread(shares)


def measure_rescue(path: Path, url: str, spec: StudyConfig) -> tuple[float, float]:
    """Kill the worker of a trial near its end; returns the seconds until it goes on, and those of work it repeats."""
    command = [sys.executable, "-m", "hpo.launch", str(path), "--workers", "1", "--no-dashboard", "--quiet"]
    command += ["--storage", url, "--output", str(path.parent), "--confirm", "0"]
    with launched(command) as (launch, _), loaded(url, spec) as study:
        seconds_per_epoch = _wait_until_near(study, KILLED_AT * spec.max_epochs)
        time.sleep(KILLED_AFTER_SECONDS)
        os.kill(_worker(launch), signal.SIGKILL)
        killed = time.monotonic()
        _wait_until(study, lambda progress: progress.attempt > 1 and progress.owned)
        rescued = time.monotonic() - killed
        launch.wait()
        return rescued, study.leases.interruption_stats().epochs_lost * seconds_per_epoch


@contextlib.contextmanager
def launched(command: list[str]) -> Iterator[tuple["subprocess.Popen[bytes]", float]]:
    """A launch and the time of its start, killed at the end if it is still there."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process, time.monotonic()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def loaded(url: str, spec: StudyConfig) -> Iterator[Study]:
    """The study, as soon as the launch has created it."""
    while True:
        with contextlib.suppress(HpoError):
            study = load_study(storage.parse_url(url), spec)
            break
        time.sleep(0.1)
    with study:
        yield study


def _wait_until(study: Study, there: Callable[[Progress], bool]) -> Progress:
    while not any(map(there, unfinished := study.leases.unfinished())):
        time.sleep(0.01)
    return unfinished[0]


def _wait_until_near(study: Study, epoch: float) -> float:
    """Wait for the checkpoint behind which that epoch comes before the next; returns the seconds of an epoch by now."""
    reached, at, seconds_per_epoch = 0, time.monotonic(), float("inf")
    while reached + KILLED_AFTER_SECONDS / seconds_per_epoch < epoch:
        newest, now = _next_checkpoint(study, reached), time.monotonic()
        seconds_per_epoch = (now - at) / (newest - reached)
        reached, at = newest, now
    return seconds_per_epoch


def _next_checkpoint(study: Study, epoch: int) -> int:
    return _wait_until(study, lambda progress: progress.epoch > epoch).epoch


def _worker(launch: "subprocess.Popen[bytes]") -> int:
    for process in psutil.Process(launch.pid).children(recursive=True):
        if "train.joblib" in Path(f"/proc/{process.pid}/maps").read_text():
            return int(process.pid)
    raise HpoError("the launch has no worker")


@click.command("python -m benchmarks.checkpoint", context_settings={"show_default": True})
@click.option("--rounds", type=click.IntRange(1), default=100, help="Checkpoints of each hidden size.")
@json_option
def main(rounds: int, output: Path | None) -> None:
    """Measure what checkpoints cost and save on CIFAR-10, in SQLite."""
    try:
        with tempfile.TemporaryDirectory(prefix="hpo-checkpoint-") as folder:
            figures = measure(Path(folder), rounds)
    except HpoError as error:
        raise click.ClickException(str(error)) from None
    click.echo(environment())
    for size, cost in figures["cost"].items():
        click.echo(
            f"hidden {size}: checkpoints cost {cost['median']:.2%} of the training "
            f"({cost['low']:.2%} to {cost['high']:.2%}, n = {cost['n']})"
        )
    click.echo(f"killed at {KILLED_AT:.0%}: goes on after {figures['rescue_seconds']:.1f} s", nl=False)
    click.echo(f" and repeats {figures['repeated_seconds']:.1f} s of work")
    if output is not None:
        write_json(output, figures)


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """All figures.

    Raises:
        HpoError: CIFAR-10 is not there.
    """
    path = folder / "checkpoint.toml"
    path.write_text(STUDY)
    spec = load_config(path)
    data = load_prepared(prepare(spec, path))
    costs = storage.parse_url(f"sqlite:///{folder}/costs.db")
    storage.check_reachable(costs)
    with join_study(costs, spec, data.fingerprint) as study:
        cost = {size: vars(measure_cost(study, spec, data, size, rounds)) for size in HIDDEN_SIZES}
    rescued, repeated = measure_rescue(path, f"sqlite:///{folder}/rescue.db", spec)
    return {"cost": cost, "rescue_seconds": rescued, "repeated_seconds": repeated}


if __name__ == "__main__":
    main()
