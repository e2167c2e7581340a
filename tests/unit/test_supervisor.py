"""Supervision of a pool; the pool, the database and the listener are fakes, the signals are real."""

import math
import os
import re
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import pytest
from factories import make_outage
from fakes import FakeClock, FakeListener, FakeWorkerPool
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import ProgrammingError

from hpo.errors import DatabaseTimeoutError, StorageError, WorkerStartupError
from hpo.fleet import supervisor as supervisor_module
from hpo.fleet.pool import WorkerExit
from hpo.fleet.status import TrialNames, own_numbers
from hpo.fleet.supervisor import Supervisor, SupervisorTimings
from hpo.runner.limits import Limits
from hpo.runner.worker_loop import WorkerConfig
from hpo.storage.database.connection import Database
from hpo.storage.database.retry import BackgroundQuery
from hpo.storage.study import best_trial
from hpo.storage.tables.leases import ActiveTrial
from hpo.storage.trial_cache import TrialView

BUDGET = 2
CRASH = WorkerExit(17, "KeyError: 'x'", "", [3], killed=False)
CRASH_NOTE = "worker 17 died in trial 3: KeyError: 'x'; another takes its place"
OUTAGE = "the database cannot be used: gone; waiting for at most 5:00"
RECOVERY = "the database is back after 0:00"
STOPPING = "stopping: finishing the current epoch and keeping the checkpoints"
TIME_IS_UP = "the time is up: finishing the current epoch and keeping the checkpoints"


class FakeObjective:
    metric = "validation accuracy"
    ticks = True
    space: ClassVar = {}

    def n_steps(self, params) -> int:
        return 10


class FakeStudy:
    """Study that is its own trial store.

    Attributes:
        script: What each refresh does: raise an error, call a function, or nothing. The pool has work until its end.
        trials: All trials.
        active: The unfinished trials.
        is_full: Whether writes fail.
        losses: How often the database has lost commits.
    """

    direction = StudyDirection.MAXIMIZE

    def __init__(self, pool: FakeWorkerPool) -> None:
        self.store = self
        self.script: list[Exception | Callable[[], object] | None] = []
        self.trials: list[FrozenTrial] = []
        self.active: list[ActiveTrial] = []
        self.is_full = False
        self.losses = 0
        self._pool = pool
        self._queried = threading.Lock()

    def refresh(self) -> TrialView:
        assert self._queried.acquire(blocking=False), "a query started before the last one ended"
        try:
            return TrialView(self._next(), {}, self.losses, BUDGET)
        finally:
            self._queried.release()

    def _next(self) -> list[FrozenTrial]:
        step = self.script.pop(0) if self.script else None
        if not self.script:
            self._pool.has_workers = False
        if isinstance(step, Exception):
            raise step
        if step:
            step()
        return self.trials

    def best_trained(self) -> int | None:
        best = best_trial(self.trials)
        return None if best is None else best.number

    def active_trials(self) -> list[ActiveTrial]:
        return self.active

    def check_writable(self) -> None:
        if self.is_full:
            raise outage()


class Setup:
    """A supervisor with fakes. Its pool has workers until the script of the study has ended."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.pool = FakeWorkerPool(self.clock)
        self.study = FakeStudy(self.pool)
        self.listener = FakeListener()
        self.timings = SupervisorTimings(poll_interval_s=0.001, release_timeout_s=30.0, clock=self.clock)
        self.polls = 0

    def run(self, timeout_s: float | None = None, trial_names: TrialNames = own_numbers, **timings: float) -> bool:
        database = Database.parse("sqlite:///hpo.db")
        config = WorkerConfig(database, None, FakeObjective(), BUDGET, Limits(storage_timeout=300), verbose=False)
        deadline_s = float("inf") if timeout_s is None else self.clock() + timeout_s
        return Supervisor(
            self.study,
            self.pool,
            config,
            self.listener,
            self.on_poll,
            replace(self.timings, deadline_s=deadline_s, **timings),
            trial_names,
        ).run()

    def on_poll(self) -> None:
        self.polls += 1
        assert self.polls < 100_000, "the supervisor does not end"


@pytest.fixture
def setup():
    return Setup()


def outage() -> Exception:
    return make_outage("gone")


def send(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def after(condition: Callable[[], object], rounds: int, act: Callable[[], None]) -> Callable[[], None]:
    """Return a function that acts after this number of calls during which the condition holds."""
    left = iter(range(rounds))

    def poll() -> None:
        if condition() and next(left, None) is None:
            act()

    return poll


def complete(value: float) -> FrozenTrial:
    return create_trial(state=TrialState.COMPLETE, value=value)


def test_supervision_ends_with_last_worker(setup):
    setup.study.script = [None] * 3
    assert setup.run() is True
    assert setup.pool.calls == ["start", "kill", "release_leases"]
    assert setup.listener.notes == []
    assert setup.polls > 0


def test_status_of_study_is_shown(setup):
    setup.study.trials = [create_trial(state=TrialState.RUNNING), complete(0.5)]
    for number, trial in enumerate(setup.study.trials):
        trial.number = number
    setup.study.active = [ActiveTrial(0, 4, 1, owned=True)]
    setup.study.script = [None] * 3
    setup.run()
    status = setup.listener.shown[0]
    assert (status.budget, status.complete, status.best.value) == (BUDGET, 1, 0.5)
    assert [(running.number, running.step, running.n_steps) for running in status.running] == [(0, 4, 10)]


def test_reply_after_last_worker_is_handled(setup):
    def answer_late() -> None:
        rounds = setup.polls + 3
        for _ in range(1000):
            if setup.polls >= rounds:
                break
            threading.Event().wait(0.001)

    setup.study.script = [outage(), answer_late]
    assert setup.run() is True
    assert setup.listener.notes == [OUTAGE, RECOVERY]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_workers(setup, number):
    setup.study.script = [None, send(number), *[None] * 10_000]
    setup.pool.stop_duration_s = 3
    assert setup.run() is False
    assert setup.listener.notes == [STOPPING]
    assert setup.pool.calls == ["start", "stop", "kill", "release_leases"]
    assert setup.pool.stop_duration_s == -1


def test_second_signal_kills_workers(setup):
    setup.study.script = [send(signal.SIGINT), *[None] * 10_000]
    setup.listener.on_note = lambda _: send(signal.SIGINT)()
    setup.pool.stop_duration_s = 10_000
    assert setup.run(stop_timeout_s=1e9) is False
    assert setup.pool.calls == ["start", "stop", "kill", "release_leases"]
    assert setup.pool.stop_duration_s > 0


def test_worker_exit_ends_wait(setup):
    setup.pool.exit_handle, sender = os.pipe()
    setup.study.script = [None, lambda: os.read(setup.pool.exit_handle, 1), None]
    setup.listener.on_show = lambda _: os.write(sender, b"x")
    assert setup.run(poll_interval_s=3600.0) is True
    os.close(setup.pool.exit_handle)
    os.close(sender)


def test_idle_workers_are_stopped_at_end(setup):
    setup.study.trials = [complete(0.5)] * BUDGET
    setup.study.script = [None] * 3
    setup.run()
    assert setup.pool.calls == ["start", "stop", "kill", "release_leases"]


def test_stop_waits_at_most_stop_timeout(setup):
    setup.study.script = [send(signal.SIGINT), *[None] * 10_000]
    setup.pool.stop_duration_s = 10_000
    assert setup.run() is False
    assert setup.pool.calls == ["start", "stop", "kill", "release_leases"]
    assert 10_000 - setup.pool.stop_duration_s == math.ceil(setup.timings.stop_timeout_s)


def test_deadline_stops_workers(setup):
    setup.study.script = [lambda: setup.clock.advance(59), lambda: setup.clock.advance(2), *[None] * 10_000]
    setup.pool.stop_duration_s = 2
    assert setup.run(timeout_s=60) is True
    assert setup.listener.notes == [TIME_IS_UP]
    assert setup.pool.calls == ["start", "stop", "kill", "release_leases"]


def test_signal_after_deadline_interrupts(setup):
    setup.study.script = [lambda: setup.clock.advance(61), *[None] * 10_000]
    setup.listener.on_note = lambda _: send(signal.SIGTERM)()
    setup.pool.stop_duration_s = 5
    assert setup.run(timeout_s=60) is False
    assert setup.pool.stop_duration_s > 0


def test_outage_is_reported_once(setup):
    setup.study.script = [None, *[outage()] * 5, *[None] * 3]
    assert setup.run() is True
    assert setup.listener.notes == [OUTAGE, RECOVERY]


def test_full_disk_is_reported_as_outage(setup):
    def set_full(is_full: bool) -> Callable[[], None]:
        return lambda: setattr(setup.study, "is_full", is_full)

    setup.study.script = [set_full(True), None, set_full(False), None, None]
    setup.run()
    assert setup.listener.notes == [OUTAGE, RECOVERY]


def test_running_trials_replace_write_check(setup):
    setup.study.trials = [create_trial(state=TrialState.RUNNING)]
    setup.study.trials[0].number = 0
    setup.study.active = [ActiveTrial(0, 4, 1, owned=True)]
    setup.study.is_full = True
    setup.study.script = [None] * 5
    setup.run()
    assert setup.listener.notes == []


def test_long_outage_raises_storage_error(setup):
    def fail() -> None:
        setup.clock.advance(100)
        raise outage()

    setup.study.script = [fail] * 1000
    with pytest.raises(StorageError, match=r"sqlite:///hpo.db could not be used for 300 s: gone; nothing is lost"):
        setup.run()
    assert setup.listener.notes == [OUTAGE]
    assert len(setup.study.script) == 1000 - 5
    assert setup.pool.calls == ["start", "kill", "release_leases"]


def test_storage_timeout_restarts_with_each_outage(setup):
    def fail() -> None:
        setup.clock.advance(100)
        raise outage()

    setup.study.script = [fail, fail, fail, None, fail, fail, fail, None, None]
    assert setup.run() is True
    assert len(setup.listener.notes) == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_interrupts_hanging_query(setup, number):
    answer = threading.Event()
    setup.study.script = [answer.wait, *[None] * 10_000]
    setup.pool.release_leases = answer.wait
    setup.listener.on_note = lambda note: send(number)() if "cannot be used" in note else None
    assert setup.run(query_timeout_s=0.01, release_timeout_s=0.01) is False
    answer.set()
    assert re.fullmatch(r"the database cannot be used: no answer for \d+ s; waiting .*", setup.listener.notes[0])
    assert setup.listener.notes[1:] == [STOPPING]
    assert setup.pool.calls == ["start", "stop", "kill"]


def test_hanging_query_is_not_repeated(setup):
    answer = threading.Event()
    setup.on_poll = after(lambda: setup.listener.notes, 50, answer.set)
    setup.study.script = [answer.wait, None, None]
    assert setup.run(query_timeout_s=0.01) is True
    assert "cannot be used: no answer" in setup.listener.notes[0]
    assert setup.listener.notes[1:] == [RECOVERY]
    assert setup.listener.shown != []


def test_slow_query_is_not_an_outage(setup):
    answer = threading.Event()
    setup.on_poll = after(lambda: True, 10, answer.set)
    setup.study.script = [answer.wait, None, None]
    setup.run(query_timeout_s=3600.0)
    assert setup.listener.notes == []
    assert setup.listener.shown != []


def test_reply_during_timeout_is_handled(setup, monkeypatch):
    answer = threading.Event()

    class LateReply(BackgroundQuery):
        def result(self, timeout_s):
            try:
                return super().result(timeout_s)
            except DatabaseTimeoutError:
                answer.set()
                super().result(30)
                raise

    monkeypatch.setattr(supervisor_module, "BackgroundQuery", LateReply)
    setup.pool.exits = [[CRASH]]
    setup.study.script = [answer.wait, None, None, None]
    setup.run(query_timeout_s=0.0)
    assert len([note for note in setup.listener.notes if "worker 17 died" in note]) == 1


def test_other_database_error_is_raised(setup):
    setup.study.script = [None, ProgrammingError("SELEC", {}, Exception("syntax")), None]
    with pytest.raises(StorageError, match=r"cannot use sqlite:///hpo.db: syntax; nothing is lost: remove the cause"):
        setup.run()
    assert setup.pool.calls == ["start", "kill", "release_leases"]


def test_worker_exit_is_noted(setup):
    setup.pool.exits = [[CRASH, WorkerExit(18, "exited with 1", "Traceback:\n  line 1", [], killed=False)]]
    setup.study.script = [None] * 3
    setup.run()
    assert setup.listener.notes == [
        CRASH_NOTE,
        "worker 18 died: exited with 1; another takes its place",
        "Traceback:\n  line 1",
    ]


def test_notes_use_names_of_trials(setup):
    setup.pool.exits = [[CRASH]]
    setup.study.script = [None] * 3
    setup.run(trial_names=lambda _: {3: "12 seed 1/3"})
    assert setup.listener.notes == [CRASH_NOTE.replace("trial 3", "trial 12 seed 1/3")]


@pytest.mark.parametrize("failing", ["poll", "refresh"])
def test_exit_during_outage_is_noted_once_afterwards(setup, failing):
    if failing == "poll":
        setup.pool.exits = [outage(), outage(), [CRASH], []]
        setup.study.script = [None] * 3
    else:
        setup.pool.exits = [[CRASH], [], []]
        setup.study.script = [outage(), outage(), None, None, None]
    setup.run()
    assert setup.listener.notes == [OUTAGE, RECOVERY, CRASH_NOTE]


def test_lost_commits_are_noted_once(setup):
    def lose() -> None:
        setup.study.losses += 1

    setup.study.trials = [complete(0.5)]
    setup.study.script = [None, lose, None, None, lose, None]
    setup.run()
    note = (
        "the database has lost its last commits, or a trial was deleted: 1 of 2 trials are finished in it; "
        "the other trials run again from what it has"
    )
    assert setup.listener.notes == [note, note]


def test_startup_error_is_raised(setup):
    setup.pool.exits = [[], WorkerStartupError("no module named x")]
    setup.study.script = [None] * 1000
    with pytest.raises(WorkerStartupError):
        setup.run()
    assert setup.pool.calls == ["start", "kill", "release_leases"]


def test_frozen_workers_are_killed_at_end(setup):
    setup.study.trials = [complete(0.5)] * BUDGET
    setup.study.script = [None, *[lambda: setup.clock.advance(1)] * 10_000]
    assert setup.run() is True
    assert setup.pool.has_workers
    assert setup.listener.notes == []
    assert setup.pool.calls == ["start", "stop", "kill", "release_leases"]
    assert setup.clock.now > 1000 + setup.timings.stop_timeout_s


def test_workers_have_unlimited_time_before_end(setup):
    setup.study.trials = [complete(0.5)] * (BUDGET - 1)
    setup.study.script = [lambda: setup.clock.advance(3600)] * 10
    setup.run()
    assert not setup.pool.has_workers


@pytest.mark.parametrize("error", [outage(), ProgrammingError("UPDATE", {}, Exception("permission denied"))])
def test_database_error_during_release_is_suppressed(setup, error):
    def fail() -> None:
        raise error

    setup.pool.release_leases = fail
    setup.study.script = [None] * 2
    assert setup.run() is True


def test_workers_without_connection_are_reported_once(setup):
    setup.pool.unconnected = 2
    setup.study.trials = [create_trial(state=TrialState.RUNNING)]
    setup.study.active = [ActiveTrial(0, 4, 1, owned=True)]
    setup.study.script = [lambda: setup.clock.advance(200)] * 5
    setup.run()
    (note,) = [note for note in setup.listener.notes if "connection" in note]
    assert note.startswith("the database has no connection for 2 workers; the other workers go on; use fewer --workers")


def test_no_connection_for_any_worker_ends_launch(setup):
    setup.pool.unconnected = 1
    setup.study.script = [lambda: setup.clock.advance(200)] * 5
    with pytest.raises(StorageError, match="no connection for 1 worker for 300 s; use fewer --workers"):
        setup.run()
