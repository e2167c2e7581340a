"""Workers that are fresh interpreters, with a small module in place of a script."""

import fcntl
import json
import multiprocessing.connection
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import wait_until_gone

from hpo.errors import WorkerStartupError
from hpo.fleet import logs
from hpo.fleet.gpus import Gpus
from hpo.fleet.interpreter import InterpreterStarter
from hpo.fleet.logs import WorkerLogs
from hpo.fleet.shared_memory import Shared, anonymous_file
from hpo.runner.trial_runner import SharedProgress
from hpo.runner.worker_errors import EXIT_CRASHED, EXIT_REFUSED
from hpo.utils.turns import Turns

TESTS = Path(__file__).parents[1]
POLL_INTERVAL_S = 0.01


class Worker:
    """Worker of a test.

    Attributes:
        process: The process.
        progress: Its position.
        errors: The pipe with its error.
    """

    def __init__(self, starter: InterpreterStarter, slot: int = 0) -> None:
        self.errors, sender = multiprocessing.Pipe(duplex=False)
        shared = Shared(SharedProgress)
        shared.value.reset()
        self.progress = shared.value
        try:
            self.process = starter(slot, "worker_a", sender, shared)
        finally:
            sender.close()
            shared.close_file()

    def wait_until_ready(self) -> None:
        while not self.progress.done:
            assert self.process.is_alive()
            time.sleep(POLL_INTERVAL_S)

    def end(self) -> int | None:
        """Wait for the sentinel and return the exit code."""
        multiprocessing.connection.wait([self.process.sentinel])
        assert not self.process.is_alive()
        return self.process.exitcode

    @property
    def error(self) -> str:
        return self.errors.recv_bytes().decode()


class Launch:
    """Launch of a test.

    Attributes:
        logs: The log files of the workers.
        workers: All started workers.
        gpus: The GPUs of the workers.
        turns: The file of the turns of the workers.
    """

    def __init__(self, folder: Path) -> None:
        self.notes: list[str] = []
        self.logs = WorkerLogs(folder, self.notes.append)
        self.gpus = Gpus(None)
        self.turns = anonymous_file(0)
        self.workers: list[Worker] = []

    def start(self, act: str, slot: int = 0, **job: object) -> Worker:
        starter = InterpreterStarter("interpreter_worker", {"act": act, **job}, self.logs, self.gpus, self.turns)
        self.workers.append(Worker(starter, slot))
        return self.workers[-1]


@pytest.fixture
def launch(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    launch = Launch(tmp_path / "results")
    yield launch
    for worker in launch.workers:
        worker.process.kill()
        worker.end()
    os.close(launch.turns)


@pytest.fixture
def stdin():
    """Let stdin of the launch have one byte."""
    before, (receiver, sender) = os.dup(0), os.pipe()
    os.dup2(receiver, 0)
    os.write(sender, b"x")
    os.close(sender)
    yield
    os.dup2(before, 0)
    for descriptor in (before, receiver):
        os.close(descriptor)


@pytest.mark.usefixtures("stdin")
def test_worker_gets_job_and_environment(launch, tmp_path):
    launch.gpus = Gpus(("4", "5"))
    worker = launch.start("describe", slot=3, url="postgresql://user:secret@host/db")
    assert worker.end() == 0
    assert worker.progress.epoch == 7
    assert (tmp_path / "results/worker-4.log").read_text().splitlines() == [
        "stdin ''",
        "slot 3 owner worker_a gpus 5",
        "arguments True",
        "environment False",
        # The fourth descriptor is the folder that the child lists.
        "child ['0', '1', '2', '3']",
        "written to stdout",
        "written to stderr",
    ]


def test_variables_of_launch_have_precedence_over_defaults(launch, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    job = {"act": "print_variables", "names": ["OMP_NUM_THREADS", "MKL_NUM_THREADS"]}
    defaults = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    starter = InterpreterStarter("interpreter_worker", job, launch.logs, launch.gpus, launch.turns, defaults)
    launch.workers.append(Worker(starter))
    assert launch.workers[0].end() == 0
    assert (tmp_path / "results/worker-1.log").read_text() == "5 1\n"


def test_expected_error_reaches_launch(launch):
    worker = launch.start("refuse", text="no table")
    assert worker.end() == EXIT_REFUSED
    assert worker.error == "no table"


def test_unexpected_error_has_traceback_if_verbose(launch):
    worker = launch.start("crash", text="x", verbose=True)
    assert worker.end() == EXIT_CRASHED
    reason, _, details = worker.error.partition("\n")
    assert reason == "KeyError: 'x'"
    assert "in crash" in details


def test_long_error_does_not_block_worker(launch):
    worker = launch.start("crash", text="x" * 1_000_000)
    assert worker.end() == EXIT_CRASHED
    assert re.fullmatch(r"KeyError: 'x+ \.\.\. x+'", worker.error)


def test_exit_code_of_script_is_kept(launch):
    assert launch.start("leave", code=255).end() == 255


def test_workers_have_turns(launch, tmp_path):
    file = tmp_path / "count"
    file.write_text("0")
    workers = [launch.start("count_in_turns", slot, file=str(file), rounds=200) for slot in range(3)]
    assert [worker.end() for worker in workers] == [0, 0, 0]
    assert file.read_text() == "600"


def test_turn_of_killed_worker_ends(launch):
    owner = launch.start("hold_turn")
    owner.wait_until_ready()
    owner.process.kill()
    owner.end()
    fcntl.lockf(launch.turns, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_worker_goes_on_without_a_turn_after_timeout(launch):
    owner = launch.start("hold_turn")
    owner.wait_until_ready()
    with Turns(launch.turns, timeout_s=0).turn():
        pass
    # The turn of the owner has not ended.
    with pytest.raises(BlockingIOError):
        fcntl.lockf(launch.turns, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_missing_module_is_a_crash(launch):
    starter = InterpreterStarter("no_such_module", {}, launch.logs, launch.gpus, launch.turns)
    launch.workers.append(Worker(starter))
    assert launch.workers[0].end() == 1


def test_sigterm_stops_worker(launch):
    worker = launch.start("wait")
    worker.wait_until_ready()
    worker.process.terminate()
    assert worker.end() == 0


def test_early_sigterm_is_not_lost(launch):
    worker = launch.start("wait")
    worker.process.terminate()
    assert worker.end() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_other_stop_signals_stop_worker(launch, number):
    worker = launch.start("wait")
    worker.wait_until_ready()
    os.kill(worker.process.pid, number)
    assert worker.end() == 0


def test_worker_can_end_its_children(launch):
    assert launch.start("end_children").end() == 0


@pytest.mark.parametrize("from_outside", [True, False])
def test_kill_is_seen_and_ends_children(launch, from_outside):
    worker = launch.start("wait_with_child")
    worker.wait_until_ready()
    if from_outside:
        os.kill(worker.process.pid, signal.SIGKILL)
    else:
        worker.process.kill()
    assert worker.end() == -signal.SIGKILL
    wait_until_gone([worker.progress.step])


@pytest.mark.parametrize("act", ["leave_child", "fork_and_leave"])
def test_children_end_with_worker(launch, act):
    worker = launch.start(act)
    assert worker.end() == 0
    wait_until_gone([worker.progress.step])


def test_ended_worker_gets_no_signal(launch):
    worker = launch.start("leave", code=0)
    worker.end()
    worker.process.terminate()
    worker.process.kill()
    assert worker.process.exitcode == 0


@pytest.mark.parametrize("has_memory", [True, False])
def test_verbose_launch_shows_lines_with_their_trial(launch, tmp_path, has_memory, monkeypatch):
    if not has_memory:
        # As on macOS.
        monkeypatch.delattr(os, "memfd_create")
    shown = []

    def show(line: str) -> None:
        shown.append(line)
        launch.workers[0].progress.done += 1

    launch.logs.show = show
    lines = [(-1, "import\n"), (0, "epoch 1\n"), (0, "epoch 2\n"), (12, "epoch 1\n"), (-1, "callback\n")]
    assert launch.start("print_lines", lines=lines).end() == 0
    assert shown == [
        "worker 1: import",
        "trial 0: epoch 1",
        "trial 0: epoch 2",
        "trial 12: epoch 1",
        "trial 12: callback",
    ]
    assert (tmp_path / "results/worker-1.log").read_text() == "".join(text for _, text in lines)


def test_all_output_is_shown_before_end(launch, monkeypatch):
    # A busy machine can need longer than the default.
    monkeypatch.setattr(logs, "_READ_TIMEOUT_S", 300.0)
    shown = []

    def show(line: str) -> None:
        while not launch.workers or not launch.workers[0].process._is_reaped:
            time.sleep(POLL_INTERVAL_S)
        shown.append(line)

    launch.logs.show = show
    launch.start("describe").end()
    assert shown[-1] == "worker 1: written to stderr"


# The launch is a process of its own, which is killed.
LAUNCH = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from integration.test_interpreter_workers import Launch

launch = Launch(Path("results"))
launch.logs.show = print if {verbose!r} else None
worker = launch.start({act!r}, file="file")
worker.wait_until_ready()
print(json.dumps([worker.process.pid, worker.progress.step]), flush=True)
time.sleep(3600)
"""


def kill_launch(folder: Path, act: str, *, verbose: bool = False) -> None:
    """Kill a launch with one worker, and wait for the end of the worker and of its child."""
    source = LAUNCH.format(tests=str(TESTS), act=act, verbose=verbose)
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        pids = json.loads(process.stdout.readline())
        process.kill()
    wait_until_gone([pid for pid in pids if pid])


@pytest.mark.parametrize("act", ["wait", "wait_with_child", "ignore_stop"])
@pytest.mark.usefixtures("launch")
def test_death_of_launch_ends_worker(tmp_path, act):
    kill_launch(tmp_path, act)


@pytest.mark.parametrize("verbose", [True, False])
@pytest.mark.usefixtures("launch")
def test_output_after_death_of_launch_is_no_error(tmp_path, verbose):
    kill_launch(tmp_path, "print_after_launch", verbose=verbose)
    assert (tmp_path / "file").exists()


def test_no_process_is_a_startup_error(launch, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", fail)
    with pytest.raises(WorkerStartupError, match="no process can be started for a worker: Resource temporarily unav"):
        launch.start("wait")
