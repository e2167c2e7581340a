"""The watch over a fleet; the fleet, the database and the display are made up, the signals are real."""

import math
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import OperationalError, ProgrammingError

from hpo.errors import StorageError
from hpo.fleet import supervisor as supervisor_module
from hpo.fleet.local_pool import WorkerExit, WorkersDieError
from hpo.fleet.supervisor import Supervisor
from hpo.runner.limits import Limits
from hpo.runner.worker_loop import WorkerConfig
from hpo.storage import database as storage
from hpo.storage.database import BackgroundQuery, NoAnswerError
from hpo.storage.leases import Progress
from hpo.storage.trial_cache import TrialView
from hpo.ui.display import Snapshot

BUDGET = 2
CRASH = WorkerExit(17, "KeyError: 'x'", "", [3], killed=False)
AWAY = "the database cannot be used: gone; waiting for it, 5:00 at most"
BACK = "the database is back after 0:00"
STOPPING = "stopping: the workers end their epoch and keep their checkpoints"
TIME_IS_UP = "the time is up: the workers end their epoch and keep their checkpoints"


def outage() -> OperationalError:
    return OperationalError("SELECT", {}, ConnectionError("gone"))


class Clock:
    """Stands in for the module ``time``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class FakeFleet:
    """Workers that go when ``working`` is set to False; ``deaths`` has a list for each time that they are tended."""

    def __init__(self, clock: Clock) -> None:
        self.working = True
        self.sentinels: list[int] = []
        self.still_there = 0  # how many seconds they need to stop, one for each time that they are asked
        self.deaths: list[list[WorkerExit | Exception]] = []
        self.said: list[str] = []
        self._clock = clock

    def start(self) -> None:
        self.said.append("start")

    def tend(self) -> Iterator[WorkerExit]:
        for death in self.deaths.pop(0) if self.deaths else []:
            if isinstance(death, Exception):
                raise death
            yield death

    @property
    def alive(self) -> bool:
        self._clock.advance(1)
        self.still_there -= 1
        return self.still_there >= 0

    def stop(self) -> None:
        self.said.append("stop")

    def kill(self) -> None:
        self.said.append("kill")

    def retire(self) -> None:
        self.said.append("retire")


class FakeDatabase:
    """``script`` has what becomes of each question in turn: an error, something to do, or None."""

    def __init__(self, fleet: FakeFleet) -> None:
        self.leases = self
        self.script: list[Exception | Callable[[], object] | None] = []
        self.found: list[FrozenTrial] = []
        self.running: list[Progress] = []
        self.full = False
        self._fleet = fleet
        self._asked = threading.Lock()

    def look(self) -> TrialView:
        assert self._asked.acquire(blocking=False), "asked anew before it has answered"
        try:
            return TrialView(self._next(), {})
        finally:
            self._asked.release()

    def _next(self) -> list[FrozenTrial]:
        step = self.script.pop(0) if self.script else None
        if not self.script:
            self._fleet.working = False
        if isinstance(step, Exception):
            raise step
        if step:
            step()
        return self.found

    def unfinished(self) -> list[Progress]:
        return self.running

    def check_writable(self) -> None:
        if self.full:
            raise outage()


class FakeDisplay:
    """Remembers what it was told; ``then`` is called with each note."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.shown: list[Snapshot] = []
        self.then: Callable[[str], None] = lambda note: None

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, snapshot: Snapshot) -> None:
        self.shown.append(snapshot)

    def note(self, message: str) -> None:
        self.notes.append(message)
        self.then(message)


class Watch:
    """A supervisor of fakes. It looks after all of its workers until the database's script has ended."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.fleet = FakeFleet(self.clock)
        self.database = FakeDatabase(self.fleet)
        self.display = FakeDisplay()
        self.others = 0

    def run(self, timeout: float | None = None) -> bool:
        limits = Limits(storage_timeout=300)
        config = WorkerConfig("sqlite:///hpo.db", SPEC, Path("prepared"), BUDGET, limits, verbose=False)
        return Supervisor(self.database, self.fleet, config, timeout, self.display, self.tend_others).run()

    def tend_others(self) -> None:
        self.others += 1
        assert self.others < 100_000, "it goes on for ever"


SPEC = SimpleNamespace(hyperparameters=lambda params: SimpleNamespace(epochs=10))


@pytest.fixture
def watch(monkeypatch):
    watch = Watch()
    monkeypatch.setattr(supervisor_module, "time", watch.clock)
    monkeypatch.setattr(supervisor_module, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(supervisor_module, "LAST_SECONDS", 30.0)
    return watch


def send(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def after(condition: Callable[[], object], rounds: int, act: Callable[[], None]) -> Callable[[], None]:
    """What does something when it was called so often while the condition held."""
    left = iter(range(rounds))

    def tend() -> None:
        if condition() and next(left, None) is None:
            act()

    return tend


def complete(value: float) -> FrozenTrial:
    return create_trial(state=TrialState.COMPLETE, value=value)


def test_a_launch_ends_with_its_last_worker(watch):
    watch.database.script = [None] * 3
    assert watch.run() is True
    assert watch.fleet.said == ["start", "kill", "retire"]
    assert watch.display.notes == []
    assert watch.others > 0


def test_what_the_database_says_is_shown(watch):
    watch.database.found = [create_trial(state=TrialState.RUNNING), complete(0.5)]
    for number, trial in enumerate(watch.database.found):
        trial.number = number
    watch.database.running = [Progress(0, 4, 1, owned=True)]
    watch.database.script = [None] * 3
    watch.run()
    snapshot = watch.display.shown[0]
    assert (snapshot.budget, snapshot.complete, snapshot.best.value) == (BUDGET, 1, 0.5)
    assert [(running.number, running.epoch, running.epochs) for running in snapshot.running] == [(0, 4, 10)]


def test_an_answer_that_comes_after_the_last_worker_has_gone_is_heard(watch):
    def answer_late() -> None:
        rounds = watch.others + 3
        for _ in range(1000):
            if watch.others >= rounds:
                break
            threading.Event().wait(0.001)

    watch.database.script = [outage(), answer_late]
    assert watch.run() is True
    assert watch.display.notes == [AWAY, BACK]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_workers_end_their_epoch(watch, number):
    watch.database.script = [None, send(number), *[None] * 10_000]
    watch.fleet.still_there = 3
    assert watch.run() is False
    assert watch.display.notes == [STOPPING]
    assert watch.fleet.said == ["start", "stop", "kill", "retire"]
    assert watch.fleet.still_there == -1


def test_a_second_signal_ends_them_at_once(watch, monkeypatch):
    monkeypatch.setattr(supervisor_module, "STOP_SECONDS", 1e9)
    watch.database.script = [send(signal.SIGINT), *[None] * 10_000]
    watch.display.then = lambda _: send(signal.SIGINT)()
    watch.fleet.still_there = 10_000
    assert watch.run() is False
    assert watch.fleet.said == ["start", "stop", "kill", "retire"]
    assert watch.fleet.still_there > 0


def test_the_end_of_a_worker_is_noticed_at_once(watch, monkeypatch):
    monkeypatch.setattr(supervisor_module, "POLL_SECONDS", 3600.0)
    receiver, sender = os.pipe()
    watch.fleet.sentinels = [receiver]
    watch.database.script = [None, lambda: os.read(receiver, 1), None]
    watch.display.show = lambda _: os.write(sender, b"x")
    assert watch.run() is True
    os.close(receiver)
    os.close(sender)


def test_those_who_wait_for_the_trials_of_others_are_told_when_all_have_ended(watch):
    watch.database.found = [complete(0.5)] * BUDGET
    watch.database.script = [None] * 3
    watch.run()
    assert watch.fleet.said == ["start", "stop", "kill", "retire"]


def test_workers_that_do_not_end_their_epoch_are_not_waited_for_without_end(watch):
    watch.database.script = [send(signal.SIGINT), *[None] * 10_000]
    watch.fleet.still_there = 10_000
    assert watch.run() is False
    assert watch.fleet.said == ["start", "stop", "kill", "retire"]
    assert 10_000 - watch.fleet.still_there == math.ceil(supervisor_module.STOP_SECONDS)


def test_a_launch_whose_time_is_up_ends_well(watch):
    watch.database.script = [lambda: watch.clock.advance(59), lambda: watch.clock.advance(2), *[None] * 10_000]
    watch.fleet.still_there = 2
    assert watch.run(timeout=60) is True
    assert watch.display.notes == [TIME_IS_UP]
    assert watch.fleet.said == ["start", "stop", "kill", "retire"]


def test_a_launch_that_is_interrupted_when_its_time_is_up_does_not(watch):
    watch.database.script = [lambda: watch.clock.advance(61), *[None] * 10_000]
    watch.display.then = lambda _: send(signal.SIGTERM)()
    watch.fleet.still_there = 5
    assert watch.run(timeout=60) is False
    assert watch.fleet.still_there > 0


def test_an_outage_is_told_once_and_so_is_its_end(watch):
    watch.database.script = [None, *[outage()] * 5, *[None] * 3]
    assert watch.run() is True
    assert watch.display.notes == [AWAY, BACK]


def test_a_database_that_can_be_read_but_not_written_is_told_of_too(watch):
    def full(full: bool) -> Callable[[], None]:
        return lambda: setattr(watch.database, "full", full)

    watch.database.script = [full(True), None, full(False), None, None]
    watch.run()
    assert watch.display.notes == [AWAY, BACK]


def test_a_database_that_trials_write_to_is_not_asked_whether_it_can_be_written(watch):
    watch.database.found = [create_trial(state=TrialState.RUNNING)]
    watch.database.running = [Progress(0, 4, 1, owned=True)]
    watch.database.full = True
    watch.database.script = [None] * 5
    watch.run()
    assert watch.display.notes == []


def test_a_database_that_stays_away_ends_the_launch(watch):
    def away() -> None:
        watch.clock.advance(100)
        raise outage()

    watch.database.script = [away] * 1000
    with pytest.raises(StorageError, match=r"sqlite:///hpo.db could not be used for 300 s: gone; nothing is lost"):
        watch.run()
    assert watch.display.notes == [AWAY]
    assert len(watch.database.script) == 1000 - 5
    assert watch.fleet.said == ["start", "kill", "retire"]


def test_two_outages_do_not_add_up(watch):
    def away() -> None:
        watch.clock.advance(100)
        raise outage()

    watch.database.script = [away, away, away, None, away, away, away, None, None]
    assert watch.run() is True
    assert len(watch.display.notes) == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_database_that_hangs_keeps_nobody_from_stopping(watch, monkeypatch, number):
    monkeypatch.setattr(supervisor_module, "ANSWER_SECONDS", 0.01)
    monkeypatch.setattr(supervisor_module, "LAST_SECONDS", 0.01)
    answer = threading.Event()
    watch.database.script = [answer.wait, *[None] * 10_000]
    watch.fleet.retire = answer.wait
    watch.display.then = lambda note: send(number)() if "cannot be used" in note else None
    assert watch.run() is False
    answer.set()
    assert re.fullmatch(r"the database cannot be used: no answer for \d+ s; waiting .*", watch.display.notes[0])
    assert watch.display.notes[1:] == [STOPPING]
    assert watch.fleet.said == ["start", "stop", "kill"]


def test_a_database_that_hangs_is_asked_nothing_more_until_it_answers(watch, monkeypatch):
    monkeypatch.setattr(supervisor_module, "ANSWER_SECONDS", 0.01)
    answer = threading.Event()
    watch.tend_others = after(lambda: watch.display.notes, 50, answer.set)
    watch.database.script = [answer.wait, None, None]
    assert watch.run() is True
    assert "cannot be used: no answer" in watch.display.notes[0]
    assert watch.display.notes[1:] == [BACK]
    assert watch.display.shown != []


def test_a_database_that_is_slow_to_answer_is_not_away(watch, monkeypatch):
    monkeypatch.setattr(supervisor_module, "ANSWER_SECONDS", 3600.0)
    answer = threading.Event()
    watch.tend_others = after(lambda: True, 10, answer.set)
    watch.database.script = [answer.wait, None, None]
    watch.run()
    assert watch.display.notes == []
    assert watch.display.shown != []


def test_an_answer_that_comes_just_when_it_is_given_up_is_told(watch, monkeypatch):
    answer = threading.Event()

    class JustThen(BackgroundQuery):
        def answer(self, seconds):
            try:
                return super().answer(seconds)
            except NoAnswerError:
                answer.set()
                super().answer(30)
                raise

    monkeypatch.setattr(storage, "BackgroundQuery", JustThen)
    monkeypatch.setattr(supervisor_module, "ANSWER_SECONDS", 0.0)
    watch.fleet.deaths = [[CRASH]]
    watch.database.script = [answer.wait, None, None, None]
    watch.run()
    assert len([note for note in watch.display.notes if "worker 17 died" in note]) == 1


def test_other_errors_of_the_database_end_the_launch(watch):
    watch.database.script = [None, ProgrammingError("SELEC", {}, Exception("syntax")), None]
    with pytest.raises(ProgrammingError):
        watch.run()
    assert watch.fleet.said == ["start", "kill", "retire"]


def test_a_death_is_told(watch):
    watch.fleet.deaths = [[CRASH, WorkerExit(18, "exited with 1", "Traceback:\n  line 1", [], killed=False)]]
    watch.database.script = [None] * 3
    watch.run()
    assert watch.display.notes == [
        "worker 17 died in trial 3: KeyError: 'x'; another takes its place",
        "worker 18 died: exited with 1; another takes its place",
        "Traceback:\n  line 1",
    ]


@pytest.mark.parametrize("fails", ["the next burial", "what is asked next"])
def test_a_death_in_an_outage_is_told_afterwards_and_once(watch, fails):
    if fails == "the next burial":
        watch.fleet.deaths = [[CRASH, outage()], [outage()], []]
        watch.database.script = [None] * 3
    else:
        watch.fleet.deaths = [[CRASH], [], []]
        watch.database.script = [outage(), outage(), None, None, None]
    watch.run()
    assert watch.display.notes == [AWAY, BACK, "worker 17 died in trial 3: KeyError: 'x'; another takes its place"]


def test_a_launch_whose_workers_cannot_work_ends(watch):
    watch.fleet.deaths = [[], [WorkersDieError("no module named x")]]
    watch.database.script = [None] * 1000
    with pytest.raises(WorkersDieError):
        watch.run()
    assert watch.fleet.said == ["start", "kill", "retire"]


def test_frozen_workers_do_not_hold_up_the_end(watch):
    watch.database.found = [complete(0.5)] * BUDGET
    watch.database.script = [None, *[lambda: watch.clock.advance(1)] * 10_000]
    assert watch.run() is True
    assert watch.fleet.working
    assert watch.display.notes == []
    assert watch.fleet.said == ["start", "stop", "kill", "retire"]
    assert watch.clock.now > 1000 + supervisor_module.STOP_SECONDS


def test_before_the_end_workers_have_all_the_time(watch):
    watch.database.found = [complete(0.5)] * (BUDGET - 1)
    watch.database.script = [lambda: watch.clock.advance(3600)] * 10
    watch.run()
    assert not watch.fleet.working


def test_an_outage_at_the_very_end_is_none_of_the_launch_any_more(watch, monkeypatch):
    def away() -> None:
        raise outage()

    watch.fleet.retire = away
    watch.database.script = [None] * 2
    assert watch.run() is True
