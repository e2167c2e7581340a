"""Exits and replacements of local workers; the processes and the trial store are fakes."""

import os
import signal
from multiprocessing.connection import Connection

import pytest
from factories import make_outage
from fakes import FakeProcess
from sqlalchemy.exc import OperationalError

from hpo.errors import WorkerRefusalError, WorkerStartupError
from hpo.fleet.local_pool import EXIT_SERVER_DIED, MAX_SAME_REFUSALS, MAX_STARTUP_CRASHES, LocalWorkerPool
from hpo.fleet.pool import WorkerExit
from hpo.fleet.shared_memory import Shared
from hpo.runner.trial_runner import NO_TRIAL, SharedProgress
from hpo.runner.worker_errors import EXIT_CRASHED, EXIT_OUTAGE, EXIT_REFUSED


class WorkerProcess(FakeProcess):
    """Process of a worker, with its end of the error pipe and its progress."""

    def __init__(self, pid: int, slot: int, owner: str, sender: Connection, progress: Shared[SharedProgress]) -> None:
        super().__init__(pid)
        self.slot = slot
        self.owner = owner
        self.progress = progress.value
        # The pool closes its own copy.
        self._sender = Connection(os.dup(sender.fileno()), readable=False)

    def die(
        self, code: int, error: str | None = None, epoch: int = 0, step: int = 0, in_trial_code: bool = True
    ) -> None:
        self.progress.reset(epoch)
        self.progress.step, self.progress.in_trial_code = step, in_trial_code
        if error is not None:
            self._sender.send_bytes(error.encode())
        self._sender.close()
        self.end(code)


class FakeStore:
    """Trial store that records releases.

    Attributes:
        held: The trials of each owner.
        failures: The failure of each call: None, "before" or "after" it was committed.
        calls: All committed calls.
        steps: The steps of all recorded deaths.
    """

    def __init__(self) -> None:
        self.held: dict[str, list[int]] = {}
        self.failures: list[str | None] = []
        self.calls: list[tuple[object, ...]] = []
        self.steps: list[int | None] = []

    def record_death(self, owner: str, error: str, epoch: int, step: int | None) -> list[int]:
        self.steps.append(step)
        return self._release("record_death", owner, error, epoch)

    def release_all(self, owner: str) -> list[int]:
        return self._release("release_all", owner)

    def _release(self, method: str, owner: str, *details: object) -> list[int]:
        failure = self.failures.pop(0) if self.failures else None
        if failure != "before":
            self.calls.append((method, owner, *details))
            held = self.held.pop(owner, [])
        if failure:
            raise make_outage()
        return held


class Setup:
    """Pools with fakes.

    Attributes:
        processes: All processes that were started.
    """

    def __init__(self) -> None:
        self.processes: list[WorkerProcess] = []
        self.store = FakeStore()

    def start(self, size: int) -> LocalWorkerPool:
        pool = LocalWorkerPool(self.start_worker, size, self.store, unknown_exit_code=EXIT_SERVER_DIED)
        pool.start()
        return pool

    def start_worker(self, slot, owner, error_pipe, progress) -> WorkerProcess:
        assert progress.value.number == NO_TRIAL
        self.processes.append(WorkerProcess(100 + len(self.processes), slot, owner, error_pipe, progress))
        return self.processes[-1]

    @property
    def alive(self) -> list[int]:
        return [process.pid for process in self.processes if process.is_alive()]


@pytest.fixture
def setup():
    return Setup()


def test_each_worker_has_an_owner_name(setup):
    pool = setup.start(3)
    assert len({process.owner for process in setup.processes}) == 3
    assert (pool.has_workers, pool.is_alive) == (True, True)
    assert pool.poll() == []
    assert len(setup.processes) == 3


def test_crashed_worker_is_recorded_and_replaced(setup):
    pool = setup.start(2)
    second = setup.processes[1]
    setup.store.held[second.owner] = [5]
    second.die(EXIT_CRASHED, "KeyError: 'x'\nTraceback:\n  line 1", epoch=7)
    assert pool.poll() == [WorkerExit(101, "KeyError: 'x'", "Traceback:\n  line 1", [5], killed=False)]
    assert setup.store.calls == [("record_death", second.owner, "KeyError: 'x'", 7)]
    assert setup.alive == [100, 102]
    assert len({process.owner for process in setup.processes}) == 3
    assert pool.poll() == []


def test_replacement_keeps_slot(setup):
    pool = setup.start(3)
    assert [process.slot for process in setup.processes] == [0, 1, 2]
    setup.processes[0].die(0)
    for _ in range(2):
        setup.processes[-1 if len(setup.processes) > 3 else 1].die(-signal.SIGKILL)
        pool.poll()
    assert [process.slot for process in setup.processes[3:]] == [1, 1]


def test_code_of_dead_server_is_plain_without_server(setup):
    pool = LocalWorkerPool(setup.start_worker, 1, setup.store)
    pool.start()
    setup.processes[0].die(EXIT_SERVER_DIED)
    (worker_exit,) = pool.poll()
    assert (worker_exit.reason, worker_exit.killed) == ("exited with 255", False)


@pytest.mark.parametrize("content", [b"", b"\0\0\0\x09half"])
def test_torn_error_is_ignored(setup, content):
    pool = setup.start(1)
    os.write(setup.processes[0]._sender.fileno(), content)
    setup.processes[0].die(EXIT_CRASHED)
    (worker_exit,) = pool.poll()
    assert worker_exit.reason == "exited with 1"


@pytest.mark.parametrize(
    ("code", "reason", "killed"),
    [
        (-signal.SIGKILL, "killed by SIGKILL", True),
        (-signal.SIGTERM, "killed by SIGTERM", True),
        (EXIT_SERVER_DIED, "the server that it was forked from died", True),
        (-signal.SIGSEGV, "killed by SIGSEGV", False),
        (EXIT_CRASHED, "exited with 1", False),
    ],
)
def test_exit_without_error_is_described_by_its_code(setup, code, reason, killed):
    pool = setup.start(1)
    setup.processes[0].die(code)
    (worker_exit,) = pool.poll()
    assert (worker_exit.reason, worker_exit.details, worker_exit.killed) == (reason, "", killed)
    assert setup.store.calls[0][2] == reason


def test_finished_worker_is_not_replaced(setup):
    pool = setup.start(2)
    first, second = setup.processes
    first.die(0)
    assert pool.poll() == []
    assert (pool.has_workers, pool.is_alive) == (True, True)
    second.die(0)
    assert pool.is_alive is False
    assert pool.poll() == []
    assert pool.has_workers is False
    assert setup.store.calls == []
    assert len(setup.processes) == 2


def test_expected_error_does_not_count_against_trial(setup):
    pool = setup.start(1)
    process = setup.processes[0]
    setup.store.held[process.owner] = [3]
    process.die(EXIT_REFUSED, "cannot use the database", epoch=7)
    (worker_exit,) = pool.poll()
    assert (worker_exit.reason, worker_exit.trials) == ("cannot use the database", [3])
    assert setup.store.calls == [("release_all", process.owner)]
    assert setup.alive == [101]


@pytest.mark.parametrize("failure", ["before", "after"])
def test_outage_delays_exits_and_loses_none(setup, failure):
    pool = setup.start(4)
    dead = setup.processes[:3]
    for process in dead:
        setup.store.held[process.owner] = [process.pid - 100]
        process.die(EXIT_CRASHED, f"error of {process.pid}", epoch=process.pid)
    setup.store.failures = [None, failure, failure]
    for _ in range(2):
        with pytest.raises(OperationalError):
            pool.poll()
    # The first worker is replaced although the exit of the second is not recorded yet.
    assert setup.alive == [103, 104]
    exits = pool.poll()
    assert [worker_exit.pid for worker_exit in exits] == [100, 101, 102]
    assert [exits[0].trials, exits[2].trials] == [[0], [2]]
    assert [worker_exit.reason for worker_exit in exits] == [f"error of {process.pid}" for process in dead]
    assert setup.alive == [103, 104, 105, 106]
    certain = [call for call in setup.store.calls if call[1] != dead[1].owner]
    assert certain == [("record_death", process.owner, f"error of {process.pid}", process.pid) for process in dead[::2]]
    assert set(setup.store.calls) - set(certain) == {("record_death", dead[1].owner, "error of 101", 101)}
    assert pool.poll() == []


def die_in_turn(setup: Setup, pool: LocalWorkerPool, *deaths: tuple[int, list[int]]) -> None:
    """End the single worker and each of its replacements with an exit code, while it holds trials."""
    for code, held in deaths:
        process = setup.processes[-1]
        setup.store.held[process.owner] = held
        process.die(code, None if code < 0 else "no module named x")
        assert len(pool.poll()) == 1


STARTUP_CRASH, CRASH_IN_TRIAL, KILL = (EXIT_CRASHED, []), (EXIT_CRASHED, [3]), (-signal.SIGKILL, [])


def test_consecutive_startup_crashes_raise_error(setup):
    pool = setup.start(1)
    die_in_turn(setup, pool, *[STARTUP_CRASH] * (MAX_STARTUP_CRASHES - 1))
    with pytest.raises(WorkerStartupError, match="no module named x"):
        die_in_turn(setup, pool, STARTUP_CRASH)
    assert setup.alive == []


def test_crash_in_trial_resets_startup_crashes(setup):
    pool = setup.start(1)
    die_in_turn(setup, pool, STARTUP_CRASH, STARTUP_CRASH, CRASH_IN_TRIAL, STARTUP_CRASH, STARTUP_CRASH)
    with pytest.raises(WorkerStartupError):
        die_in_turn(setup, pool, STARTUP_CRASH)


def test_kills_do_not_change_startup_crashes(setup):
    pool = setup.start(1)
    die_in_turn(setup, pool, *[KILL] * 9, STARTUP_CRASH, KILL, STARTUP_CRASH, KILL)
    with pytest.raises(WorkerStartupError):
        die_in_turn(setup, pool, STARTUP_CRASH)


@pytest.mark.parametrize("trials", [[], [3]])
@pytest.mark.parametrize(
    "message",
    [
        "cannot use the database: no table 'hpo_checkpoints'",
        "cannot use the database: value {} is too long (trial {})",
    ],
)
def test_same_expected_errors_end_pool(setup, trials, message):
    pool = setup.start(1)
    for number in range(MAX_SAME_REFUSALS):
        process = setup.processes[-1]
        setup.store.held[process.owner] = list(trials)
        process.die(EXIT_REFUSED, message.format(number, number))
        if number < MAX_SAME_REFUSALS - 1:
            assert [worker_exit.trials for worker_exit in pool.poll()] == [trials]
    with pytest.raises(WorkerRefusalError, match=r"3 workers died of the same error: cannot use the database: .*"):
        pool.poll()


def test_other_exits_do_not_reset_expected_errors(setup):
    pool = setup.start(1)
    refused = (EXIT_REFUSED, [3])
    die_in_turn(setup, pool, refused, KILL, refused, CRASH_IN_TRIAL)
    with pytest.raises(WorkerRefusalError):
        die_in_turn(setup, pool, refused)


@pytest.mark.parametrize("then", [(EXIT_REFUSED, [3]), KILL, (0, [])])
def test_finished_trial_resets_expected_errors(setup, then):
    pool = setup.start(2)
    refused, finisher = (EXIT_REFUSED, [3]), setup.processes[0]
    die_in_turn(setup, pool, *[refused] * (MAX_SAME_REFUSALS - 1))
    finisher.progress.done += 1
    code, _ = then
    finisher.die(code, "no module named x" if code == EXIT_REFUSED else None)
    pool.poll()
    deaths = MAX_SAME_REFUSALS - 1 - (code == EXIT_REFUSED)
    die_in_turn(setup, pool, *[refused] * deaths)
    with pytest.raises(WorkerRefusalError):
        die_in_turn(setup, pool, refused)


def test_finished_trial_before_first_error_resets_nothing(setup):
    pool = setup.start(1)
    setup.processes[0].progress.done = 5
    die_in_turn(setup, pool, *[(EXIT_REFUSED, [])] * (MAX_SAME_REFUSALS - 1))
    with pytest.raises(WorkerRefusalError):
        die_in_turn(setup, pool, (EXIT_REFUSED, []))


def test_outages_do_not_end_pool(setup):
    pool = setup.start(1)
    die_in_turn(setup, pool, *[(EXIT_OUTAGE, []), (EXIT_OUTAGE, [3])] * 3)
    assert {call[0] for call in setup.store.calls} == {"release_all"}
    assert pool.has_workers


def test_different_expected_errors_do_not_end_pool(setup):
    pool = setup.start(1)
    for message in ("no table", "no column", "no right to write", "read-only"):
        setup.processes[-1].die(EXIT_REFUSED, message)
        assert [worker_exit.reason for worker_exit in pool.poll()] == [message]


@pytest.mark.parametrize("code", [0, EXIT_REFUSED, EXIT_OUTAGE])
def test_exit_code_of_objective_is_crash_of_its_trial(setup, code):
    pool = setup.start(1)
    process = setup.processes[0]
    setup.store.held[process.owner] = [3]
    process.progress.reset(epoch=2, number=3)
    process.end(code)
    assert [(worker_exit.reason, worker_exit.trials) for worker_exit in pool.poll()] == [(f"exited with {code}", [3])]
    assert setup.store.calls == [("record_death", process.owner, f"exited with {code}", 2)]
    assert len(setup.alive) == 1


def test_worker_that_is_stopped_in_a_trial_is_not_replaced(setup):
    pool = setup.start(1)
    pool.stop()
    setup.processes[0].progress.reset(number=3)
    setup.processes[0].end(0)
    assert pool.poll() == []
    assert not pool.has_workers


@pytest.mark.parametrize(("method", "number"), [("stop", signal.SIGTERM), ("kill", signal.SIGKILL)])
def test_stopped_pool_starts_no_worker(setup, method, number):
    pool = setup.start(3)
    setup.processes[0].die(EXIT_CRASHED, "before")
    getattr(pool, method)()
    assert [process.signals for process in setup.processes] == [[], [number], [number]]
    setup.processes[1].die(EXIT_CRASHED, "after")
    assert [worker_exit.reason for worker_exit in pool.poll()] == ["before", "after"]
    assert pool.poll() == []
    assert len(setup.processes) == 3
    assert setup.alive == [102]


def test_kill_waits_for_workers(setup):
    pool = setup.start(2)
    pool.kill()
    assert [process.joined for process in setup.processes] == [True, True]


@pytest.mark.parametrize("readable", ["worker", "handle"])
def test_wait_ends_with_exit_or_handle(setup, readable):
    pool = setup.start(1)
    (sentinel, sentinel_end), (handle, handle_end) = os.pipe(), os.pipe()
    setup.processes[0].sentinel = sentinel
    os.write(sentinel_end if readable == "worker" else handle_end, b"x")
    with open(handle, "rb") as file:  # noqa: PTH123  # a descriptor
        pool.wait(3600, [file])
    for descriptor in (sentinel, sentinel_end, handle_end):
        os.close(descriptor)


def test_release_continues_after_outage(setup):
    pool = setup.start(3)
    pool.kill()
    setup.store.failures = [None, "before"]
    with pytest.raises(OperationalError):
        pool.release_leases()
    assert pool.has_workers
    pool.release_leases()
    assert sorted(setup.store.calls) == sorted(("release_all", process.owner) for process in setup.processes)
    assert not pool.has_workers


@pytest.mark.parametrize(
    ("code", "in_trial_code", "step"),
    [
        (-signal.SIGKILL, True, 7),
        # The trial cannot have caused these deaths.
        (-signal.SIGKILL, False, None),
        (EXIT_SERVER_DIED, False, None),
        (-signal.SIGSEGV, False, 7),
        (EXIT_CRASHED, False, 7),
    ],
)
def test_kill_outside_trial_code_has_no_step(setup, code, in_trial_code, step):
    pool = setup.start(1)
    setup.processes[0].die(code, epoch=3, step=7, in_trial_code=in_trial_code)
    pool.poll()
    assert setup.store.steps == [step]
