"""``python -m benchmarks.chaos``: kill, freeze and restart the processes of a study at random, and count the losses.

Two launches run a study without an end, while processes are killed, up to a number of kills. Then two new launches
finish the trials that were started, and some more. Another launch runs as many trials undisturbed in a database of its
own. Each trial must end with the same parameters, state and values to the last bit.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import psutil
import psycopg
from optuna.trial import FrozenTrial, TrialState

from benchmarks.measuring import has_mapped_data
from hpo.config.loader import load_config
from hpo.config.study import StudyConfig
from hpo.errors import HpoError
from hpo.storage.database.connection import Database, StorageTimings
from hpo.storage.study import Study, load_study
from hpo.utils.files import atomic_write

LEASE_S = StorageTimings().lease_s
FAULT_INTERVAL_S = (0.2, 2.0)
FROZEN_S = (0.2 * LEASE_S, 2 * LEASE_S)
POLL_INTERVAL_S = 0.2
# Far above the time that the workers of a killed launch need to stop.
ORPHAN_TIMEOUT_S = 300.0
LAUNCHES = 2
# A launch that comes to its end, is killed, is stopped, or is stopped while its interpreter starts.
EXPECTED_CODES = (0, -signal.SIGKILL, 130, -signal.SIGTERM)
ENDLESS_TRIALS = 100_000

STUDY = """
[study]
name = "chaos-{seed}-{started}"
seed = {seed}
sampler = "random"
pruner = "none"

[data]
dataset = "digits"
split = {{ train = 400, validation = 100, test = 100 }}
pca = 0.9

[train]
batch_size = 50
momentum = 0.9

[space]
learning_rate  = {{ low = 1e-3, high = 1e-1, log = true }}
regularization = {{ low = 1e-7, high = 1e-2, log = true }}
hidden_size    = {{ low = 16, high = 64 }}
epochs         = {{ low = 200, high = 2000 }}
"""


@dataclass(frozen=True)
class Ledger:
    """Counts of the trials after a disturbed study.

    Attributes:
        asked: The budget.
        finished: Trials that are complete or pruned.
        missing: Trials of the budget that have not ended.
        double: Trials outside the budget.
        running: Trials that are still running or waiting.
        resumed: Interruptions after which a trial was resumed.
        epochs_lost: Epochs that were trained again.
        different: Trials that differ from the undisturbed study.
        kills: Processes that were killed.
    """

    asked: int
    finished: int
    missing: int
    double: int
    running: int
    resumed: int
    epochs_lost: int
    different: int
    kills: int

    @property
    def clean(self) -> bool:
        """Whether nothing was lost."""
        return self.finished == self.asked and not (self.missing or self.double or self.running or self.different)


class Launches:
    """The launches of one study, and the faults that disturb them.

    Args:
        path: The study file. Messages of the launches are written next to it.
        url: The database.
        workers: The workers of each launch.
        rng: Draws the faults.
    """

    def __init__(self, path: Path, url: str, workers: int, rng: random.Random) -> None:
        self._command = [*launch_command(path, url), "--workers", str(workers)]
        self._log = (path.parent / "launches.log").open("w")
        self._url = url
        self._rng = rng
        self._processes: list[subprocess.Popen[bytes]] = []
        self._frozen_until: dict[psutil.Process, float] = {}
        # Children of launches that are killed or stopped, which may end later than the launches.
        self._seen: set[psutil.Process] = set()
        self.kills = 0

    def replace_ended(self, trials: int = ENDLESS_TRIALS) -> None:
        """Start launches until there are as many as there should be."""
        self._check_codes([launch for launch in self._processes if launch.poll() is not None])
        self._processes = [launch for launch in self._processes if launch.poll() is None]
        while len(self._processes) < LAUNCHES:
            # Only one launch serves the dashboard.
            dashboard = ["--no-dashboard"] if self._processes else ["--port", "18080"]
            command = [*self._command, "--trials", str(trials), *dashboard]
            self._processes.append(
                subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=self._log, start_new_session=True)
            )

    def thaw(self, *, everything: bool = False) -> None:
        """Continue the processes that were frozen for long enough."""
        for process, until in list(self._frozen_until.items()):
            if everything or time.monotonic() > until:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()
                del self._frozen_until[process]

    def stop(self) -> None:
        """Stop all launches, and wait for them and for the workers that killed launches have left."""
        self.thaw(everything=True)
        self._remember_children()
        for launch in self._processes:
            launch.terminate()
        self._wait()
        _, alive = psutil.wait_procs(self._seen, ORPHAN_TIMEOUT_S)
        if alive:
            raise HpoError(f"processes of killed launches are still there: {sorted(process.pid for process in alive)}")

    def finish(self, trials: int) -> None:
        """Run the study to the end of a budget without a fault."""
        self.replace_ended(trials)
        self._wait()
        if any(launch.returncode != 0 for launch in self._processes):
            raise HpoError(f"a launch did not finish the study:\n{self._messages()}")

    def close(self) -> None:
        """Kill the launches that are left."""
        for launch in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(launch.pid, signal.SIGKILL)
            launch.wait()
        self._log.close()

    def kill_a_worker(self) -> None:
        """Kill a worker."""
        self._kill(self._some_of(self._workers(), 1))

    def kill_several_workers(self) -> None:
        """Kill up to three workers at once."""
        self._kill(self._some_of(self._workers(), 3))

    def freeze_a_worker(self) -> None:
        """Suspend a worker for a while, which may be longer than its lease."""
        for process in self._some_of(self._workers(), 1):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
                self._frozen_until[process] = time.monotonic() + self._rng.uniform(*FROZEN_S)

    def kill_a_launch(self) -> None:
        """Kill a launch, so that its workers have to stop by themselves."""
        self._remember_children()
        self._kill([psutil.Process(self._rng.choice(self._processes).pid)])

    def interrupt_a_launch(self) -> None:
        """Send SIGTERM to a launch."""
        self._rng.choice(self._processes).terminate()

    def kill_a_helper(self) -> None:
        """Kill a dashboard, a fork server, or another process that does not train."""
        self._kill(self._some_of([process for process in self._children() if not has_mapped_data(process.pid)], 1))

    def cut_connections(self) -> None:
        """Let the PostgreSQL server end all connections."""
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'hpo' AND datname = current_database()"
            )

    def _wait(self) -> None:
        for launch in self._processes:
            launch.wait()
        self._check_codes(self._processes)

    def _check_codes(self, ended: list[subprocess.Popen[bytes]]) -> None:
        for launch in ended:
            if launch.returncode not in EXPECTED_CODES:
                raise HpoError(f"a launch ended with exit code {launch.returncode}:\n{self._messages()}")

    def _messages(self) -> str:
        return Path(self._log.name).read_text()

    def _kill(self, processes: list[psutil.Process]) -> None:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                self.kills += 1

    def _some_of(self, processes: list[psutil.Process], most: int) -> list[psutil.Process]:
        return self._rng.sample(processes, min(self._rng.randint(1, most), len(processes)))

    def _workers(self) -> list[psutil.Process]:
        return [process for process in self._children() if has_mapped_data(process.pid)]

    def _remember_children(self) -> None:
        self._seen.update(self._children())

    def _children(self) -> list[psutil.Process]:
        found = []
        for launch in self._processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                found += psutil.Process(launch.pid).children(recursive=True)
        return sorted(found, key=lambda process: process.pid)


Fault = Callable[[Launches], None]
FAULTS: dict[Fault, int] = {
    Launches.kill_a_worker: 6,
    Launches.kill_several_workers: 3,
    Launches.freeze_a_worker: 3,
    Launches.kill_a_launch: 2,
    Launches.interrupt_a_launch: 1,
    Launches.kill_a_helper: 1,
}
POSTGRES_FAULTS = FAULTS | {Launches.cut_connections: 2}


def launch_command(path: Path, url: str) -> list[str]:
    """Return the command of a launch of the study in this database, without its size."""
    command = [sys.executable, "-m", "hpo.launch", str(path), "--quiet", "--confirm", "0"]
    return [*command, "--output", str(path.parent), "--storage", url]


def run_undisturbed(path: Path, config: StudyConfig, workers: int, trials: int) -> list[FrozenTrial]:
    """Run the study in a new database, and return its trials."""
    url = f"sqlite:///{path.parent}/undisturbed.db"
    command = [*launch_command(path, url), "--no-dashboard", "--trials", str(trials), "--workers", str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HpoError(f"the undisturbed launch failed: {done.stderr.strip()}")
    with load_study(Database.parse(url), config) as study:
        return study.trials


def disturb(launches: Launches, faults: dict[Fault, int], rng: random.Random, kills: int) -> Counter[str]:
    """Cause one fault after the other up to a number of kills, and return how often each fault occurred."""
    occurred = Counter[str]()
    while launches.kills < kills:
        launches.replace_ended()
        time.sleep(rng.uniform(*FAULT_INTERVAL_S))
        launches.thaw()
        (fault,) = rng.choices(list(faults), weights=list(faults.values()))
        fault(launches)
        occurred[fault.__name__] += 1
    launches.stop()
    return occurred


def balance(study: Study, undisturbed: list[FrozenTrial], kills: int) -> Ledger:
    """Compare the disturbed study with the undisturbed trials."""
    trials, interruption_stats, asked = study.trials, study.store.interruption_stats(), range(len(undisturbed))
    states = [trial.state for trial in trials]
    ended = {trial.number: trial for trial in trials if trial.state.is_finished()}
    return Ledger(
        asked=len(undisturbed),
        finished=states.count(TrialState.COMPLETE) + states.count(TrialState.PRUNED),
        missing=sum(number not in ended for number in asked),
        double=len(trials) - len({trial.number for trial in trials} & set(asked)),
        running=states.count(TrialState.RUNNING) + states.count(TrialState.WAITING),
        resumed=interruption_stats.resumed,
        epochs_lost=interruption_stats.epochs_lost,
        different=sum(number in ended and _content(ended[number]) != _content(undisturbed[number]) for number in asked),
        kills=kills,
    )


def measure(path: Path, url: str, workers: int, kills: int, rng: random.Random) -> tuple[Ledger, Counter[str]]:
    """Run the study disturbed and undisturbed, and return the losses and how often each fault occurred.

    Raises:
        HpoError: if a launch ends with an error.
    """
    database, config = Database.parse(url), load_config(path)
    database.check_reachable()
    launches = Launches(path, url, workers, rng)
    try:
        occurred = disturb(launches, FAULTS if database.is_sqlite else POSTGRES_FAULTS, rng, kills)
        # The end of a budget is shared by all workers, too.
        trials = _close_budget(database, config) + LAUNCHES * workers
        click.echo(f"{launches.kills} kills; now the launches finish {trials} trials", err=True)
        launches.finish(trials)
    finally:
        launches.close()
    undisturbed = run_undisturbed(path, config, LAUNCHES * workers, trials)
    with load_study(database, config) as study:
        return balance(study, undisturbed, launches.kills), occurred


def _close_budget(database: Database, config: StudyConfig) -> int:
    """Lower the budget to the trials that have started, because the highest budget wins; return their number."""
    try:
        with load_study(database, config) as study:
            study.store.close_budget()
            return len(study.trials)
    except HpoError:
        # All launches were killed before the first of them created the study.
        return 0


def _content(trial: FrozenTrial) -> tuple[Any, ...]:
    return trial.number, trial.state, trial.params, trial.intermediate_values, trial.value


@contextlib.contextmanager
def _study_file(seed: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hpo-chaos-") as folder:
        path = Path(folder) / "chaos.toml"
        path.write_text(STUDY.format(seed=seed, started=int(time.time())))
        yield path


@click.command("python -m benchmarks.chaos", context_settings={"show_default": True})
@click.option("--kills", type=click.IntRange(1), default=50, help="Kills after which the study may finish.")
@click.option("--storage", "url", required=True, metavar="URL", help="Database of the disturbed study.")
@click.option("--workers", type=click.IntRange(1), default=4, help=f"Workers of each of the {LAUNCHES} launches.")
@click.option("--seed", type=click.IntRange(0), help="Seed of the study and of the faults.  [default: random]")
@click.option("--json", "output", type=click.Path(path_type=Path, dir_okay=False), help="Write the counts to a file.")
def main(kills: int, url: str, workers: int, seed: int | None, output: Path | None) -> None:
    """Kill, freeze and restart the processes of a study at random, and print the losses."""
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    click.echo(f"seed {seed}", err=True)
    try:
        with _study_file(seed) as path:
            ledger, occurred = measure(path, url, workers, kills, random.Random(seed))
    except HpoError as error:
        raise click.ClickException(str(error)) from None
    for name, count in asdict(ledger).items():
        click.echo(f"{name:12}{count:6}")
    click.echo(", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in occurred.most_common()), err=True)
    if output is not None:
        with atomic_write(output) as file:
            file.write(json.dumps(asdict(ledger), indent=2).encode() + b"\n")
    sys.exit(not ledger.clean)


if __name__ == "__main__":
    main()
