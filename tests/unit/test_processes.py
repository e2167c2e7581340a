"""Starting processes while the server that they are forked from may die."""

import subprocess
import sys

import pytest

from hpo.fleet import forkserver as processes


class FakeProcess:
    """Starts in the end, after these errors."""

    errors: list[Exception]
    started = 0

    def __init__(self, target, args, daemon):
        assert daemon

    def start(self):
        if self.errors:
            raise self.errors.pop(0)
        FakeProcess.started += 1


@pytest.fixture(autouse=True)
def _faked(monkeypatch):
    monkeypatch.setattr(processes.context, "Process", FakeProcess)
    monkeypatch.setattr(processes.forkserver, "ensure_running", lambda: None)
    monkeypatch.setattr(processes.process_for.retry, "wait", lambda _: 0.0)
    FakeProcess.started = 0


def test_a_server_that_dies_while_it_is_asked_is_asked_again():
    FakeProcess.errors = [EOFError(), ConnectionRefusedError(), BrokenPipeError()]
    assert isinstance(processes.process_for(print), FakeProcess)
    assert FakeProcess.started == 1


def test_other_errors_get_out():
    FakeProcess.errors = [OSError("no more processes")]
    with pytest.raises(OSError, match="no more processes"):
        processes.process_for(print)


# In a process of its own: the servers of this one are not to be touched.
SERVERS = """
import os
from multiprocessing import forkserver, resource_tracker
from hpo.fleet.forkserver import server_running

try:
    with server_running():
        pids = [forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid]
        for pid in pids:
            os.kill(pid, 0)
        raise KeyError("study")
except KeyError:
    for pid in pids:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            print("gone")
print("OMP_NUM_THREADS" in os.environ)
"""


def test_the_servers_are_gone_whatever_happens_while_they_start():
    done = subprocess.run([sys.executable, "-c", SERVERS], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("gone\ngone\nFalse\n", "")
