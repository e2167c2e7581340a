"""``python -m benchmarks.checkpoint``: cost of checkpoints, and work that they save after a crash, on CIFAR-10.

The cost is the CPU time of taking a checkpoint and writing it to a database. For the saved work, the worker of a real
launch is killed when its trial is at 90%.
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

from benchmarks.measuring import Spread, environment, has_mapped_data, json_option, spread, write_json
from hpo.config.loader import load_config
from hpo.config.study import StudyConfig
from hpo.data.prepared.cache import PreparedData, prepare
from hpo.data.task import Classification
from hpo.errors import HpoError
from hpo.models.nets.hyperparameters import hyperparameters_of, max_epochs
from hpo.models.trainer import make_trainer
from hpo.runner.heartbeat import HeartbeatTimings
from hpo.storage.database.connection import Database
from hpo.storage.study import Study, load_study, open_or_create_study
from hpo.storage.tables.leases import ActiveTrial, Checkpoint
from hpo.storage.trial_store import TrialOutcome

HIDDEN_SIZES = (32, 400)
CHECKPOINT_INTERVAL_S = HeartbeatTimings().checkpoint_interval_s
# Minimum progress of the trial at the kill.
KILLED_AT = 0.9
# The kill costs most just before the next checkpoint.
KILL_DELAY_S = 0.95 * CHECKPOINT_INTERVAL_S

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


def measure_cost(study: Study, config: StudyConfig, data: PreparedData, hidden_size: int, rounds: int) -> Spread:
    """Return the CPU time of a checkpoint as a share of the checkpoint interval.

    Only the checkpoints are timed, because two trainings differ by more than the cost of checkpoints.
    """
    hyperparameters = hyperparameters_of(config, {}).model_copy(update={"hidden_size": hidden_size})
    trainer = make_trainer(hyperparameters, [data.folds[0].train], Classification(), data.classes, seed=(0, 0))
    study.store.raise_budget(len(study.trials) + 1)
    lease = study.store.allocate("benchmark")
    assert lease is not None
    shares = []
    for step in range(1, rounds + 1):
        started = time.process_time()
        study.store.report(lease, [], Checkpoint(step, 0.0, trainer.save()))
        shares.append((time.process_time() - started) / CHECKPOINT_INTERVAL_S)
    study.store.finish(lease, TrialOutcome.cut_short(0.0, "benchmark"))
    return spread(shares)


def measure_rescue(path: Path, url: str, config: StudyConfig) -> tuple[float, float]:
    """Kill the worker of a trial near its end.

    Returns:
        Seconds until the trial resumes, and seconds of training that are repeated.
    """
    command = [sys.executable, "-m", "hpo.launch", str(path), "--workers", "1", "--no-dashboard", "--quiet"]
    command += ["--storage", url, "--output", str(path.parent), "--confirm", "0"]
    with launched(command) as (launch, _), loaded(url, config) as study:
        seconds_per_epoch = _wait_until_near(study, KILLED_AT * max_epochs(config))
        time.sleep(KILL_DELAY_S)
        os.kill(_worker_pid(launch), signal.SIGKILL)
        killed = time.monotonic()
        _wait_until(study, lambda trial: trial.attempt > 1 and trial.owned)
        rescued = time.monotonic() - killed
        launch.wait()
        return rescued, study.store.interruption_stats().epochs_lost * seconds_per_epoch


@contextlib.contextmanager
def launched(command: list[str]) -> Iterator[tuple["subprocess.Popen[bytes]", float]]:
    """Run a launch; yield its process and start time, and kill its processes at the end."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process, time.monotonic()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def loaded(url: str, config: StudyConfig) -> Iterator[Study]:
    """Wait until the launch has created the study, and open it."""
    database = Database.parse(url)
    while True:
        with contextlib.suppress(HpoError):
            database.check_exists()
            study = load_study(database, config)
            break
        time.sleep(0.1)
    with study:
        yield study


def _wait_until(study: Study, is_reached: Callable[[ActiveTrial], bool]) -> ActiveTrial:
    while not any(map(is_reached, active := study.store.active_trials())):
        time.sleep(0.01)
    return active[0]


def _wait_until_near(study: Study, epoch: float) -> float:
    """Wait for the last checkpoint before an epoch; return the seconds of an epoch."""
    reached, at, seconds_per_epoch = 0, time.monotonic(), float("inf")
    while reached + KILL_DELAY_S / seconds_per_epoch < epoch:
        newest, now = _next_checkpoint(study, reached), time.monotonic()
        seconds_per_epoch = (now - at) / (newest - reached)
        reached, at = newest, now
    return seconds_per_epoch


def _next_checkpoint(study: Study, epoch: int) -> int:
    return _wait_until(study, lambda trial: trial.epoch > epoch).epoch


def _worker_pid(launch: "subprocess.Popen[bytes]") -> int:
    """Return the process that has mapped the prepared data."""
    for process in psutil.Process(launch.pid).children(recursive=True):
        if has_mapped_data(process.pid):
            return int(process.pid)
    raise HpoError("the launch has no worker")


@click.command("python -m benchmarks.checkpoint", context_settings={"show_default": True})
@click.option("--rounds", type=click.IntRange(1), default=100, help="Checkpoints of each hidden size.")
@json_option
def main(rounds: int, output: Path | None) -> None:
    """Measure the cost and the benefit of checkpoints on CIFAR-10, in SQLite."""
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
    click.echo(f"killed at {KILLED_AT:.0%}: resumes after {figures['rescue_seconds']:.1f} s", nl=False)
    click.echo(f" and repeats {figures['repeated_seconds']:.1f} s of work")
    if output is not None:
        write_json(output, figures)


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Return all figures.

    Raises:
        HpoError: if CIFAR-10 is missing.
    """
    path = folder / "checkpoint.toml"
    path.write_text(STUDY)
    config = load_config(path)
    data = prepare(config)
    database = Database.parse(f"sqlite:///{folder}/costs.db")
    database.check_reachable()
    with open_or_create_study(database, config, data.fingerprint, "validation accuracy") as study:
        cost = {size: vars(measure_cost(study, config, data, size, rounds)) for size in HIDDEN_SIZES}
    rescued, repeated = measure_rescue(path, f"sqlite:///{folder}/rescue.db", config)
    return {"cost": cost, "rescue_seconds": rescued, "repeated_seconds": repeated}


if __name__ == "__main__":
    main()
