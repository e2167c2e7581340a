"""Log files of workers; the test writes in place of a worker."""

import errno
import os
import re
import threading
import time
from pathlib import Path

import pytest

from hpo.fleet.logs import WorkerLogs
from hpo.runner.trial_runner import NO_TRIAL, SharedProgress

RESTART = r"--- \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d worker 1 starts again ---\n"


class Worker:
    """Worker of a test: the end of its output is the end of the worker.

    Attributes:
        progress: Its position.
    """

    def __init__(self, logs: WorkerLogs, slot: int = 0, number: int = NO_TRIAL) -> None:
        self._slot = slot
        self.progress = SharedProgress()
        self.progress.reset(number=number)
        self._output = logs.open(slot, self.progress)
        self._stdout = os.dup(self._output.descriptor)
        self._output.close()

    def write(self, text: str) -> "Worker":
        os.write(self._stdout, text.encode(errors="surrogateescape"))
        return self

    def end(self) -> None:
        os.close(self._stdout)
        self._output.finish()
        # A busy machine can need longer.
        while any(thread.name == f"output of worker {self._slot + 1}" for thread in threading.enumerate()):
            self._output.finish()


class Setup:
    """Logs of a test.

    Attributes:
        shown: The lines that a verbose launch shows.
        notes: The messages.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shown: list[str] = []
        self.notes: list[str] = []

    def logs(self, *, verbose: bool = True) -> WorkerLogs:
        return WorkerLogs(self.folder, self.notes.append, self.shown.append if verbose else None)

    def content(self, number: int = 1) -> str:
        return (self.folder / f"worker-{number}.log").read_text(errors="surrogateescape")


@pytest.fixture
def setup(tmp_path):
    return Setup(tmp_path / "results" / "s")


@pytest.mark.parametrize("verbose", [True, False])
def test_each_worker_has_its_log(setup, verbose):
    logs = setup.logs(verbose=verbose)
    workers = [Worker(logs, slot).write(f"from {slot}\n") for slot in range(2)]
    for worker in workers:
        worker.end()
    assert [setup.content(1), setup.content(2)] == ["from 0\n", "from 1\n"]
    assert sorted(setup.shown) == (["worker 1: from 0", "worker 2: from 1"] if verbose else [])
    assert setup.notes == []


@pytest.mark.parametrize("verbose", [True, False])
def test_restart_continues_log(setup, verbose):
    logs = setup.logs(verbose=verbose)
    for text in ("first\n", "second\n"):
        Worker(logs).write(text).end()
    assert re.fullmatch(f"first\n{RESTART}second\n", setup.content())


def test_lines_have_their_trial(setup):
    worker = Worker(setup.logs(), number=12)
    worker.write("epoch 3\n\n  \nepoch ").write("4\n").write("no end")
    worker.end()
    assert setup.shown == ["trial 12: epoch 3", "trial 12: epoch 4", "trial 12: no end"]
    assert setup.content() == "epoch 3\n\n  \nepoch 4\nno end"


def test_line_after_trial_belongs_to_it(setup):
    worker = Worker(setup.logs(), number=12)
    worker.write("in trial\n")
    while not setup.shown:
        time.sleep(0.001)
    worker.progress.reset()
    worker.write("after trial\n").end()
    assert setup.shown == ["trial 12: in trial", "trial 12: after trial"]


@pytest.mark.parametrize("parts", [1, 3, 100])
def test_progress_bar_is_shown_once(setup, parts):
    text = "10%\r50%\r100%\r\nnext\r\n\r20%\r"
    worker = Worker(setup.logs(), number=0)
    for start in range(0, len(text), max(1, len(text) // parts)):
        worker.write(text[start : start + max(1, len(text) // parts)])
    worker.end()
    assert setup.shown == ["trial 0: 100%", "trial 0: next", "trial 0: 20%"]


def test_bytes_that_are_no_text_are_shown_escaped(setup):
    Worker(setup.logs()).write("\udcff\n").end()
    assert setup.shown == [r"worker 1: \xff"]
    assert setup.content() == "\udcff\n"


def test_line_without_end_is_shown_in_parts(setup):
    worker = Worker(setup.logs())
    # More than a single read.
    for _ in range(200):
        worker.write("x" * 1000)
    worker.end()
    assert len(setup.shown) > 1
    assert "".join(line.removeprefix("worker 1: ") for line in setup.shown) == "x" * 200_000


@pytest.mark.parametrize("verbose", [True, False])
def test_log_that_cannot_be_opened_is_noted_once(setup, verbose):
    setup.folder.parent.mkdir()
    setup.folder.write_text("a file")
    logs = setup.logs(verbose=verbose)
    for slot in (0, 1):
        Worker(logs, slot).write("text\n").end()
    assert setup.notes == [
        f"{setup.folder}/worker-1.log: cannot be written: File exists; the workers run without a log"
    ]
    assert setup.shown == (["worker 1: text", "worker 2: text"] if verbose else [])


def test_full_disk_does_not_end_launch(setup, monkeypatch):
    write = os.write

    def fail(descriptor: int, content: bytes) -> int:
        if os.path.realpath(f"/proc/self/fd/{descriptor}").endswith(".log"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content)

    monkeypatch.setattr(os, "write", fail)
    Worker(setup.logs()).write("text\n").end()
    assert setup.shown == ["worker 1: text"]
    assert setup.content() == ""
