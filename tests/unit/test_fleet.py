"""Workers that die are buried and replaced; the processes, and the database, are made up."""

import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy.exc import OperationalError

from hpo.fleet import local_pool as fleet_module
from hpo.fleet.local_pool import MAX_STARTUP_CRASHES, Fleet, WorkerExit, WorkersDieError
from hpo.runner import worker_loop as worker
from hpo.runner.limits import Limits
from hpo.runner.trial_runner import SharedProgress
from hpo.runner.worker_loop import EXIT_CRASHED, EXIT_REFUSED, WorkerConfig

CONFIG = WorkerConfig("sqlite:///hpo.db", None, Path("prepared"), 4, Limits(300), verbose=False)
EXIT_UNKNOWN = 255


class FakeProcess:
    """A worker's, as its fleet sees it."""

    def __init__(self, pid: int, owner: str, sender: Connection, place: SharedProgress) -> None:
        self.pid = self.sentinel = pid
        self.owner = owner
        self.exitcode = None
        self.joined = False
        self.place = place
        # The fleet closes its own.
        self._sender = Connection(os.dup(sender.fileno()), readable=False)

    def is_alive(self) -> bool:
        return self.exitcode is None

    def join(self, timeout: float) -> None:
        self.joined = True

    def die(
        self, code: int, words: str | None = None, epoch: int = 0, step: int = 0, in_trial_code: bool = True
    ) -> None:
        self.place.reset(epoch)
        self.place.step, self.place.in_trial_code = step, in_trial_code
        if words is not None:
            self._sender.send(words)
        self._sender.close()
        self.exitcode = code


class FakeLeases:
    """``held`` by owner; ``script`` says of each call in turn what goes wrong."""

    def __init__(self) -> None:
        self.held: dict[str, list[int]] = {}
        self.script: list[str | None] = []
        self.said: list[tuple[object, ...]] = []
        self.steps: list[int | None] = []

    def record_death(self, owner: str, error: str, epoch: int, step: int | None) -> list[int]:
        self.steps.append(step)
        return self._let_go("record_death", owner, error, epoch)

    def retire(self, owner: str) -> list[int]:
        return self._let_go("retire", owner)

    def _let_go(self, what: str, owner: str, *details: object) -> list[int]:
        wrong = self.script.pop(0) if self.script else None
        if wrong != "away":
            self.said.append((what, owner, *details))
            held = self.held.pop(owner, [])
        if wrong:
            raise OperationalError("UPDATE", {}, ConnectionError("gone"))
        return held


class FakeWorkerPool:
    """A fleet of fakes. ``hired`` has every process that was ever started."""

    def __init__(self) -> None:
        self.hired: list[FakeProcess] = []
        self.leases = FakeLeases()
        self.signals: list[tuple[int, int]] = []

    def fleet(self, size: int) -> Fleet:
        fleet = Fleet(CONFIG, size, self.leases)
        fleet.start()
        return fleet

    def process_for(self, target, config, owner, sender, place) -> FakeProcess:
        assert target is worker.main
        assert config is CONFIG
        self.hired.append(FakeProcess(100 + len(self.hired), owner, sender, place))
        return self.hired[-1]

    @property
    def alive(self) -> list[int]:
        return [process.pid for process in self.hired if process.is_alive()]


@pytest.fixture
def workshop(monkeypatch):
    workshop = FakeWorkerPool()
    monkeypatch.setattr(fleet_module, "process_for", workshop.process_for)
    monkeypatch.setattr(fleet_module, "os", SimpleNamespace(kill=lambda *call: workshop.signals.append(call)))
    return workshop


def tend(fleet: Fleet) -> tuple[list[WorkerExit], Exception | None]:
    """The deaths that were told, and the outage that ended it."""
    deaths = []
    try:
        for death in fleet.tend():
            deaths.append(death)  # noqa: PERF402  # what was told before an error counts
    except OperationalError as error:
        return deaths, error
    return deaths, None


def test_every_worker_has_a_name_of_its_own(workshop):
    fleet = workshop.fleet(3)
    assert len({process.owner for process in workshop.hired}) == 3
    assert (fleet.working, fleet.alive) == (True, True)
    assert tend(fleet) == ([], None)
    assert len(workshop.hired) == 3


def test_a_dead_worker_is_buried_with_its_epoch_and_replaced(workshop):
    fleet = workshop.fleet(2)
    second = workshop.hired[1]
    workshop.leases.held[second.owner] = [5]
    second.die(EXIT_CRASHED, "KeyError: 'x'\nTraceback:\n  line 1", epoch=7)
    assert tend(fleet) == ([WorkerExit(101, "KeyError: 'x'", "Traceback:\n  line 1", [5], killed=False)], None)
    assert workshop.leases.said == [("record_death", second.owner, "KeyError: 'x'", 7)]
    assert workshop.alive == [100, 102]
    assert len({process.owner for process in workshop.hired}) == 3
    assert tend(fleet) == ([], None)


@pytest.mark.parametrize(
    ("code", "reason", "killed"),
    [
        (-signal.SIGKILL, "killed by SIGKILL", True),
        (-signal.SIGTERM, "killed by SIGTERM", True),
        (EXIT_UNKNOWN, "the server that it was forked from died", True),
        (-signal.SIGSEGV, "killed by SIGSEGV", False),
        (EXIT_CRASHED, "exited with 1", False),
    ],
)
def test_who_died_without_a_word_is_told_by_the_way_it_ended(workshop, code, reason, killed):
    fleet = workshop.fleet(1)
    workshop.hired[0].die(code)
    (death,), _ = tend(fleet)
    assert (death.reason, death.details, death.killed) == (reason, "", killed)
    assert workshop.leases.said[0][2] == reason


def test_a_worker_that_found_nothing_left_to_do_just_goes(workshop):
    fleet = workshop.fleet(2)
    first, second = workshop.hired
    first.die(0)
    assert tend(fleet) == ([], None)
    assert (fleet.working, fleet.alive) == (True, True)
    second.die(0)
    assert fleet.alive is False
    assert tend(fleet) == ([], None)
    assert fleet.working is False
    assert workshop.leases.said == []
    assert len(workshop.hired) == 2


def test_an_expected_error_is_the_fault_of_no_trial(workshop):
    fleet = workshop.fleet(1)
    process = workshop.hired[0]
    workshop.leases.held[process.owner] = [3]
    process.die(EXIT_REFUSED, "cannot use the database", epoch=7)
    (death,), _ = tend(fleet)
    assert (death.reason, death.trials) == ("cannot use the database", [3])
    assert workshop.leases.said == [("retire", process.owner)]
    assert workshop.alive == [101]


@pytest.mark.parametrize("wrong", ["away", "lost"])
def test_an_outage_delays_burials_and_loses_nobody(workshop, wrong):
    fleet = workshop.fleet(4)
    dead = workshop.hired[:3]
    for process in dead:
        workshop.leases.held[process.owner] = [process.pid - 100]
        process.die(EXIT_CRASHED, f"last words of {process.pid}", epoch=process.pid)
    workshop.leases.script = [None, wrong, wrong]
    told = []
    for expected in ([100], [], [101, 102]):
        deaths, error = tend(fleet)
        assert [death.pid for death in deaths] == expected
        assert (error is None) == (expected == [101, 102])
        told += deaths
    assert [told[0].trials, told[2].trials] == [[0], [2]]
    assert [death.reason for death in told] == [f"last words of {process.pid}" for process in dead]
    assert workshop.alive == [103, 104, 105, 106]
    buried = [call for call in workshop.leases.said if call[1] != dead[1].owner]
    assert buried == [
        ("record_death", process.owner, f"last words of {process.pid}", process.pid) for process in dead[::2]
    ]
    assert set(workshop.leases.said) - set(buried) == {("record_death", dead[1].owner, "last words of 101", 101)}
    assert tend(fleet) == ([], None)


def die_in_turn(workshop: FakeWorkerPool, fleet: Fleet, *deaths: tuple[int, list[int]]) -> None:
    """Let the one worker die, and each that takes its place: with a code, holding trials."""
    for code, held in deaths:
        process = workshop.hired[-1]
        workshop.leases.held[process.owner] = held
        process.die(code, None if code < 0 else "no module named x")
        assert len(list(fleet.tend())) == 1


BARREN, BUSY, KILLED = (EXIT_CRASHED, []), (EXIT_CRASHED, [3]), (-signal.SIGKILL, [])


def test_workers_that_die_one_after_the_other_before_they_get_to_a_trial_end_the_launch(workshop):
    fleet = workshop.fleet(1)
    die_in_turn(workshop, fleet, *[BARREN] * (MAX_STARTUP_CRASHES - 1))
    with pytest.raises(WorkersDieError, match="no module named x"):
        die_in_turn(workshop, fleet, BARREN)
    assert workshop.alive == []


def test_a_worker_that_held_a_trial_shows_that_it_can_be_done(workshop):
    fleet = workshop.fleet(1)
    die_in_turn(workshop, fleet, BARREN, BARREN, BUSY, BARREN, BARREN)
    with pytest.raises(WorkersDieError):
        die_in_turn(workshop, fleet, BARREN)


def test_workers_that_somebody_kills_show_nothing(workshop):
    fleet = workshop.fleet(1)
    die_in_turn(workshop, fleet, *[KILLED] * 9, BARREN, KILLED, BARREN, KILLED)
    with pytest.raises(WorkersDieError):
        die_in_turn(workshop, fleet, BARREN)


def test_workers_that_are_refused_count_too(workshop):
    fleet = workshop.fleet(1)
    die_in_turn(workshop, fleet, *[(EXIT_REFUSED, [])] * (MAX_STARTUP_CRASHES - 1))
    with pytest.raises(WorkersDieError):
        die_in_turn(workshop, fleet, (EXIT_REFUSED, []))


@pytest.mark.parametrize(("how", "number"), [("stop", signal.SIGTERM), ("kill", signal.SIGKILL)])
def test_those_who_are_there_are_told_and_nobody_is_hired_any_more(workshop, how, number):
    fleet = workshop.fleet(3)
    workshop.hired[0].die(EXIT_CRASHED, "before")
    getattr(fleet, how)()
    assert workshop.signals == [(101, number), (102, number)]
    workshop.hired[1].die(EXIT_CRASHED, "after")
    assert [death.reason for death in tend(fleet)[0]] == ["before", "after"]
    assert tend(fleet) == ([], None)
    assert len(workshop.hired) == 3
    assert workshop.alive == fleet.sentinels == [102]


def test_who_ends_just_when_it_is_told_to_is_not_missed(workshop, monkeypatch):
    def gone(pid: int, number: int) -> None:
        raise ProcessLookupError

    fleet = workshop.fleet(2)
    monkeypatch.setattr(fleet_module, "os", SimpleNamespace(kill=gone))
    fleet.stop()


def test_who_is_killed_is_waited_for(workshop):
    fleet = workshop.fleet(2)
    fleet.kill()
    assert [process.joined for process in workshop.hired] == [True, True]


def test_what_the_workers_held_when_they_were_ended_is_freed_once_each(workshop):
    fleet = workshop.fleet(3)
    fleet.kill()
    workshop.leases.script = [None, "away"]
    with pytest.raises(OperationalError):
        fleet.retire()
    assert fleet.working
    fleet.retire()
    assert sorted(workshop.leases.said) == sorted(("retire", process.owner) for process in workshop.hired)
    assert not fleet.working


@pytest.mark.parametrize(
    ("code", "in_trial_code", "step"),
    [
        (-signal.SIGKILL, True, 7),
        (-signal.SIGKILL, False, None),  # by whom ever, and not for what it did
        (EXIT_UNKNOWN, False, None),
        (-signal.SIGSEGV, False, 7),
        (EXIT_CRASHED, False, 7),
    ],
)
def test_who_is_killed_before_it_is_at_work_says_nothing_of_the_trial(workshop, code, in_trial_code, step):
    fleet = workshop.fleet(1)
    workshop.hired[0].die(code, epoch=3, step=7, in_trial_code=in_trial_code)
    tend(fleet)
    assert workshop.leases.steps == [step]
