"""Lifetime of the fork server and its processes, in a process of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

# The child reports its parent, which is the fork server, and stays until it is killed.
SCRIPT = """
import os, signal, sys
from hpo.fleet.forkserver import context, process_for, server_running

def report(sender):
    sender.send((os.getppid(), "json.tool" in sys.modules, os.environ["OMP_NUM_THREADS"]))
    signal.pause()

if __name__ == "__main__":
    receiver, sender = context.Pipe(duplex=False)
    try:
        with server_running(["json.tool"]):
            process = process_for(report, sender)
            server, *state = receiver.recv()
            {act}
            process.kill()
            raise KeyError("study")
    except KeyError:
        process.join()
        print(*state, "OMP_NUM_THREADS" in os.environ)
        print(server, process.pid)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def run(tmp_path: Path, act: str) -> tuple[str, list[int]]:
    """Run the script; return its first line, and the ids of the server and of the child."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(act=act))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    first, last = done.stdout.splitlines()
    return first, [int(pid) for pid in last.split()]


@pytest.mark.parametrize("act", ["pass", "os.kill(server, signal.SIGSTOP)"], ids=["alive", "frozen"])
def test_server_preloads_and_ends_with_block(tmp_path, act):
    first, pids = run(tmp_path, act)
    assert first == "True 1 False"
    assert [pid for pid in pids if is_running(pid)] == []


# The server has not forked a process, so it ends by itself when its parent has ended.
IDLE = """
from hpo.fleet.forkserver import server_running

with server_running():
    pass
"""


def test_idle_server_ends_with_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(IDLE)
    # The output ends when the last process that holds it has ended.
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# The server has ended when the first block ends, but nobody has reaped it.
DEAD = """
import os, signal
from hpo.fleet.forkserver import context, process_for, server_running

def report(sender):
    sender.send(os.getppid())

if __name__ == "__main__":
    for _ in range(2):
        receiver, sender = context.Pipe(duplex=False)
        with server_running():
            process = process_for(report, sender)
            server = receiver.recv()
            process.join()
            os.kill(server, signal.SIGKILL)
            os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT)
"""


def test_server_starts_again_after_its_death(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(DEAD)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
