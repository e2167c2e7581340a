"""``python -m benchmarks.time_to_target``: compute of a real launch until a net has the report's accuracy.

``benchmarks.search`` replays the same study. The launch of ``studies/cifar10.toml`` continues after the target to its
end.
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
from hpo.config.loader import find_study, load_config
from hpo.storage.study import Study, best_trial

POLL_INTERVAL_S = 1.0


class Spent(NamedTuple):
    """Multiply-adds and seconds until now, and the best accuracy; None without a complete trial."""

    compute: float
    seconds: float
    best: float | None


def spent(study: Study, since: float) -> Spent:
    """Return the compute of all trials, including unfinished trials."""
    trials = study.trials
    reached = {trial.number: trial.epoch for trial in study.store.active_trials()}
    best = best_trial(trials)
    compute = sum(_compute(trial, reached.get(trial.number, 0)) for trial in trials)
    return Spent(compute, time.monotonic() - since, None if best is None else best.value)


def _compute(trial: FrozenTrial, checkpoint: int) -> float:
    epochs = max([checkpoint, *trial.intermediate_values])
    return epochs * multiply_adds(trial.params["hidden_size"])


def watch(launch: "Popen[bytes]", study: Study, started: float) -> tuple[Spent | None, Spent]:
    """Return the cost of the target, None if not reached, and of the study."""
    found = None
    while launch.poll() is None:
        now = spent(study, started)
        if found is None and now.best is not None and now.best >= TARGET:
            found = now
        time.sleep(POLL_INTERVAL_S)
    return found, spent(study, started)


@click.command("python -m benchmarks.time_to_target")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True)
@json_option
def main(workers: int, output: Path | None) -> None:
    """Launch studies/cifar10.toml, and print the cost of the report's accuracy."""
    study_file = find_study("cifar10")
    with tempfile.TemporaryDirectory(prefix="hpo-target-") as folder:
        url = f"sqlite:///{folder}/study.db"
        command = [sys.executable, "-m", "hpo.launch", str(study_file), "--workers", str(workers), "--no-dashboard"]
        command += ["--storage", url, "--output", folder, "--confirm", "0"]
        with launched(command) as (launch, started), loaded(url, load_config(study_file)) as study:
            found, end = watch(launch, study, started)
    click.echo(environment())
    click.echo("target not reached" if found is None else _describe(f"{TARGET} reached", found))
    click.echo(_describe("the end", end))
    if output is not None:
        figures: dict[str, Any] = {"machine": machine(), "versions": versions(), "workers": workers}
        write_json(output, figures | {"found": found and found._asdict(), "end": end._asdict()})


def _describe(event: str, cost: Spent) -> str:
    best = "no trial is complete" if cost.best is None else f"best {cost.best:.3f}"
    return f"{event}: {cost.compute / 1e12:.1f} Tmadd, {cost.seconds / 60:.1f} minutes, {best}"


if __name__ == "__main__":
    main()
