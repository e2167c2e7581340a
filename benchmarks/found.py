"""``python -m benchmarks.found``: what a real launch spends until it has found what ``benchmarks.search`` replays.

The launch is watched until a complete trial of ``studies/cifar10.toml`` has the report's accuracy, and then goes on to
its end.
"""

import sys
import tempfile
import time
from pathlib import Path
from subprocess import Popen
from typing import Any, NamedTuple

import click
from optuna.trial import FrozenTrial

from benchmarks.checkpoint import launched, loaded
from benchmarks.measuring import environment, json_option, machine, versions, write_json
from benchmarks.replay import multiply_adds
from benchmarks.search import TARGET
from hpo.config.study import find_study, load_config
from hpo.storage.study import Study, best_of

LOOK_SECONDS = 1.0  # between two looks at the study


class Spent(NamedTuple):
    """Multiply-adds and seconds, and the best accuracy that they bought; None without a complete trial."""

    compute: float
    seconds: float
    best: float | None


def spent(study: Study, since: float) -> Spent:
    """By all trials, those that are not finished among them."""
    trials = study.trials
    reached = {progress.number: progress.epoch for progress in study.leases.unfinished()}
    best = best_of(trials)
    compute = sum(_compute(trial, reached.get(trial.number, 0)) for trial in trials)
    return Spent(compute, time.monotonic() - since, None if best is None else best.value)


def _compute(trial: FrozenTrial, checkpoint: int) -> float:
    epochs = max([checkpoint, *trial.intermediate_values])
    return epochs * multiply_adds(trial.params["hidden_size"])


def watch(launch: "Popen[bytes]", study: Study, started: float) -> tuple[Spent | None, Spent]:
    """What was spent when the target was reached, if it was, and in the end."""
    found = None
    while launch.poll() is None:
        now = spent(study, started)
        if found is None and now.best is not None and now.best >= TARGET:
            found = now
        time.sleep(LOOK_SECONDS)
    return found, spent(study, started)


@click.command("python -m benchmarks.found")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True)
@json_option
def main(workers: int, output: Path | None) -> None:
    """Launch studies/cifar10.toml on the real images, and tell when it has found a net as good as the report's."""
    study_file = find_study("cifar10")
    with tempfile.TemporaryDirectory(prefix="hpo-found-") as folder:
        url = f"sqlite:///{folder}/found.db"
        command = [sys.executable, "-m", "hpo.launch", str(study_file), "--workers", str(workers), "--no-dashboard"]
        command += ["--storage", url, "--output", folder, "--confirm", "0"]
        with launched(command) as (launch, started), loaded(url, load_config(study_file)) as study:
            found, end = watch(launch, study, started)
    click.echo(environment())
    click.echo("not found" if found is None else _describe(f"{TARGET} found", found))
    click.echo(_describe("the end", end))
    if output is not None:
        figures: dict[str, Any] = {"machine": machine(), "versions": versions(), "workers": workers}
        write_json(output, figures | {"found": found and found._asdict(), "end": end._asdict()})


def _describe(when: str, what: Spent) -> str:
    best = "no trial is complete" if what.best is None else f"best {what.best:.3f}"
    return f"{when}: {what.compute / 1e12:.1f} Tmadd, {what.seconds / 60:.1f} minutes, {best}"


if __name__ == "__main__":
    main()
