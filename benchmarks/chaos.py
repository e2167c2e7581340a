"""``python -m benchmarks.chaos``: kill, freeze and restart a fleet at random, and count what was lost.

The study is run undisturbed first, for a third of the time, in a database of its own; what it finished is asked of
the disturbed one. Every trial of it must end with the same parameters, state and values to the last bit.
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
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL

from hpo.config.study import StudyConfig, load_config
from hpo.errors import HpoError
from hpo.storage import database as storage
from hpo.storage.leases import LEASE_SECONDS
from hpo.storage.study import Study, load_study
from hpo.utils.files import writing

FAULT_SECONDS = (0.2, 2.0)  # between two faults
FROZEN_SECONDS = (0.2 * LEASE_SECONDS, 2 * LEASE_SECONDS)
LAUNCHES = 2
UNDISTURBED_SHARE = 1 / 3  # of the time
QUIET_SHARE = 0.15  # of the time, at its end: whoever is left finishes
# The end, kill -9, SIGTERM, and SIGTERM while the interpreter starts.
EXPECTED_CODES = (0, -signal.SIGKILL, 130, -signal.SIGTERM)
MORE_THAN_ENOUGH = 100_000  # trials

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
    """What became of the trials.

    ``missing`` and ``running`` count trials that have not ended, ``double`` those that were not asked for,
    ``different`` those that are not as in the undisturbed run, ``kills`` the processes that were killed.
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


class Fleet:
    """Launches of one study, and what can happen to them."""

    def __init__(self, path: Path, url: URL, trials: int, workers: int, rng: random.Random) -> None:
        self._command = [*launch_command(path, url), "--trials", str(trials), "--workers", str(workers)]
        self._log = (path.parent / "launches.log").open("w")
        self._url = url
        self._rng = rng
        self._launches: list[subprocess.Popen[bytes]] = []
        self._frozen: dict[psutil.Process, float] = {}
        self.kills = 0

    def top_up(self) -> bool:
        """Start the launches that are missing; tells whether one has come to the end of the study."""
        ended = [launch for launch in self._launches if launch.poll() is not None]
        if any(launch.returncode == 0 for launch in ended):
            return True
        self._check(ended)
        self._launches = [launch for launch in self._launches if launch not in ended]
        while len(self._launches) < LAUNCHES:
            # The first shows the dashboard.
            arguments = ["--no-dashboard"] if self._launches else ["--port", "18080"]
            self._launches.append(
                subprocess.Popen(
                    [*self._command, *arguments], stdout=subprocess.DEVNULL, stderr=self._log, start_new_session=True
                )
            )
        return False

    def thaw(self, everybody: bool = False) -> None:
        """Let those go on who were frozen for long enough."""
        for process, until in list(self._frozen.items()):
            if everybody or time.monotonic() > until:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()
                del self._frozen[process]

    def finish(self) -> None:
        """Leave them alone until the study is at its end."""
        self.thaw(everybody=True)
        while not self.top_up():
            time.sleep(0.2)
        for launch in self._launches:
            launch.wait()
        self._check(self._launches)

    def close(self) -> None:
        """End what is left."""
        for launch in self._launches:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(launch.pid, signal.SIGKILL)
            launch.wait()
        self._log.close()

    def kill_a_worker(self) -> None:
        """A worker dies."""
        self._kill(self._some_of(self._workers(), 1))

    def kill_several_workers(self) -> None:
        """Several workers die at once."""
        self._kill(self._some_of(self._workers(), 3))

    def freeze_a_worker(self) -> None:
        """A worker stops for a while, perhaps past its lease."""
        for process in self._some_of(self._workers(), 1):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
                self._frozen[process] = time.monotonic() + self._rng.uniform(*FROZEN_SECONDS)

    def kill_a_launch(self) -> None:
        """A launch dies; its workers are to stop by themselves."""
        self._kill([psutil.Process(self._rng.choice(self._launches).pid)])

    def interrupt_a_launch(self) -> None:
        """A launch is told to stop."""
        self._rng.choice(self._launches).terminate()

    def kill_a_helper(self) -> None:
        """A dashboard, or a server that workers are forked from, dies."""
        self._kill(self._some_of([process for process in self._processes() if not _trains(process)], 1))

    def cut_connections(self) -> None:
        """The database, a PostgreSQL, ends every connection."""
        engine = sqlalchemy.create_engine(self._url)
        with engine.connect() as connection:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'hpo' AND datname = current_database()"
            )
        engine.dispose()

    def _check(self, ended: list[subprocess.Popen[bytes]]) -> None:
        for launch in ended:
            if launch.returncode not in EXPECTED_CODES:
                said = Path(self._log.name).read_text()
                raise HpoError(f"a launch ended with {launch.returncode}; this is what they said:\n{said}")

    def _kill(self, processes: list[psutil.Process]) -> None:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                self.kills += 1

    def _some_of(self, processes: list[psutil.Process], most: int) -> list[psutil.Process]:
        return self._rng.sample(processes, min(self._rng.randint(1, most), len(processes)))

    def _workers(self) -> list[psutil.Process]:
        return [process for process in self._processes() if _trains(process)]

    def _processes(self) -> list[psutil.Process]:
        found = []
        for launch in self._launches:
            with contextlib.suppress(psutil.NoSuchProcess):
                found += psutil.Process(launch.pid).children(recursive=True)
        return sorted(found, key=lambda process: process.pid)


Fault = Callable[[Fleet], None]
FAULTS: dict[Fault, int] = {
    Fleet.kill_a_worker: 6,
    Fleet.kill_several_workers: 3,
    Fleet.freeze_a_worker: 3,
    Fleet.kill_a_launch: 2,
    Fleet.interrupt_a_launch: 1,
    Fleet.kill_a_helper: 1,
}
FAULTS_OF = {"sqlite": FAULTS, "postgresql": FAULTS | {Fleet.cut_connections: 2}}


def _trains(process: psutil.Process) -> bool:
    try:
        return "train.joblib" in Path(f"/proc/{process.pid}/maps").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def launch_command(path: Path, url: URL) -> list[str]:
    """A launch of the study in this database, but for its size."""
    shown = url.render_as_string(hide_password=False)
    command = [sys.executable, "-m", "hpo.launch", str(path), "--quiet", "--confirm", "0"]
    return [*command, "--output", str(path.parent), "--storage", shown]


def run_undisturbed(path: Path, spec: StudyConfig, workers: int, seconds: float) -> list[FrozenTrial]:
    """The trials that a study finishes in this time, in the order of their numbers up to the first that it did not."""
    url = storage.parse_url(f"sqlite:///{path.parent}/undisturbed.db")
    command = [*launch_command(path, url), "--no-dashboard", "--trials", str(MORE_THAN_ENOUGH)]
    command += ["--timeout", f"{seconds:.1f}s", "--workers", str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HpoError(f"the undisturbed launch failed: {done.stderr.strip()}")
    with load_study(url, spec) as study:
        unfinished = [trial.number for trial in study.trials if not trial.state.is_finished()]
        return study.trials[: min(unfinished, default=len(study.trials))]


def disturb(fleet: Fleet, faults: dict[Fault, int], rng: random.Random, until: float) -> Counter[str]:
    """One fault after the other until the time is up or the study at its end; returns how often each came."""
    happened = Counter[str]()
    fleet.top_up()
    while time.monotonic() < until:
        time.sleep(rng.uniform(*FAULT_SECONDS))
        fleet.thaw()
        if fleet.top_up():
            break
        (fault,) = rng.choices(list(faults), weights=list(faults.values()))
        fault(fleet)
        happened[fault.__name__] += 1
    fleet.finish()
    return happened


def balance(study: Study, undisturbed: list[FrozenTrial], kills: int) -> Ledger:
    """What the database says now."""
    trials, interruption_stats, asked = study.trials, study.leases.interruption_stats(), range(len(undisturbed))
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


def measure(path: Path, url: URL, workers: int, seconds: float, rng: random.Random) -> tuple[Ledger, Counter[str]]:
    """Run the study undisturbed and disturbed; returns what was lost, and how often each fault came.

    Raises:
        HpoError: a launch ended with an error.
    """
    deadline = time.monotonic() + (1 - QUIET_SHARE) * seconds
    storage.check_reachable(url)
    spec = load_config(path)
    undisturbed = run_undisturbed(path, spec, LAUNCHES * workers, UNDISTURBED_SHARE * seconds)
    click.echo(f"{len(undisturbed)} trials undisturbed; now the same with faults", err=True)
    fleet = Fleet(path, url, len(undisturbed), workers, rng)
    try:
        happened = disturb(fleet, FAULTS_OF[url.get_backend_name()], rng, deadline)
    finally:
        fleet.close()
    with load_study(url, spec) as study:
        return balance(study, undisturbed, fleet.kills), happened


def _content(trial: FrozenTrial) -> tuple[Any, ...]:
    return trial.number, trial.state, trial.params, trial.intermediate_values, trial.value


@contextlib.contextmanager
def _study_file(seed: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hpo-chaos-") as folder:
        path = Path(folder) / "chaos.toml"
        path.write_text(STUDY.format(seed=seed, started=int(time.time())))
        yield path


@click.command("python -m benchmarks.chaos", context_settings={"show_default": True})
@click.option("--minutes", type=click.FloatRange(0.5), default=5.0, help="How long it takes, more or less.")
@click.option("--storage", "url", required=True, metavar="URL", help="The database of the disturbed study.")
@click.option("--workers", type=click.IntRange(1), default=4, help=f"Of each of the {LAUNCHES} launches.")
@click.option("--seed", type=click.IntRange(0), help="Of the study and of the faults.  [default: another each time]")
@click.option("--json", "output", type=click.Path(path_type=Path, dir_okay=False), help="Write the ledger there, too.")
def main(minutes: float, url: str, workers: int, seed: int | None, output: Path | None) -> None:
    """Kill, freeze and restart the processes of a study at random, and print what was lost."""
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    click.echo(f"seed {seed}", err=True)
    try:
        with _study_file(seed) as path:
            ledger, happened = measure(path, storage.parse_url(url), workers, 60 * minutes, random.Random(seed))
    except HpoError as error:
        raise click.ClickException(str(error)) from None
    for name, count in asdict(ledger).items():
        click.echo(f"{name:12}{count:6}")
    click.echo(", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in happened.most_common()), err=True)
    if output is not None:
        with writing(output) as file:
            file.write(json.dumps(asdict(ledger), indent=2).encode() + b"\n")
    sys.exit(not ledger.clean)


if __name__ == "__main__":
    main()
