"""Worker that is a fresh interpreter: ``python -m interpreter_worker DESCRIPTOR`` does what its job says.

A worker that is ready sets ``progress.done``, and the process id of its child in ``progress.step``.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from hpo.errors import StorageError
from hpo.fleet.job import Received, receive

POLL_INTERVAL_S = 0.001
SLEEP = [sys.executable, "-c", "import signal; signal.pause()"]


def refuse(received: Received) -> None:
    raise StorageError(received.job["text"])


def crash(received: Received) -> None:
    raise KeyError(received.job["text"])


def leave(received: Received) -> None:
    raise SystemExit(received.job["code"])


def wait(received: Received) -> None:
    received.progress.done = 1
    received.stop.wait()


def ignore_stop(received: Received) -> None:
    received.progress.done = 1
    while True:
        time.sleep(1)


def wait_with_child(received: Received) -> None:
    # The child holds all descriptors of the worker that it can inherit.
    child = subprocess.Popen(SLEEP, close_fds=False)
    received.progress.step = child.pid
    wait(received)


def hold_turn(received: Received) -> None:
    with received.turns.turn():
        wait(received)


def count_in_turns(received: Received) -> None:
    file = Path(received.job["file"])
    for _ in range(received.job["rounds"]):
        with received.turns.turn():
            file.write_text(str(int(file.read_text()) + 1))


def leave_child(received: Received) -> None:
    received.progress.step = subprocess.Popen(SLEEP, close_fds=False).pid


def fork_and_leave(received: Received) -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
    received.progress.step = pid


def describe(received: Received) -> None:
    received.progress.epoch = 7
    print("stdin", repr(sys.stdin.read()))
    print("slot", received.slot, "owner", received.owner, "gpus", os.environ.get("CUDA_VISIBLE_DEVICES"))
    print("arguments", sys.argv[1:] == [sys.argv[-1]] and sys.argv[-1].isdecimal())
    print("environment", any("secret" in value for value in os.environ.values()))
    list_descriptors = "import os; print('child', sorted(os.listdir('/proc/self/fd')))"
    subprocess.run([sys.executable, "-c", list_descriptors], check=True, close_fds=False)
    os.write(1, b"written to stdout\n")
    os.write(2, b"written to stderr\n")


def print_variables(received: Received) -> None:
    print(*(os.environ.get(name) for name in received.job["names"]))


def end_children(received: Received) -> None:
    """End children of several kinds by SIGTERM, as a DataLoader and ``multiprocessing.Pool`` do."""
    # A signal can arrive at any moment of a fork.
    for method in [*20 * ["fork"], "spawn"]:
        process = multiprocessing.get_context(method).Process(target=time.sleep, args=(3600,))
        process.start()
        process.terminate()
        process.join()
        assert process.exitcode == -signal.SIGTERM, method
    child = subprocess.Popen(SLEEP)
    child.terminate()
    assert child.wait() == -signal.SIGTERM


def print_lines(received: Received) -> None:
    for position, (number, text) in enumerate(received.job["lines"]):
        received.progress.number = number
        print(text, end="")
        # The launch reads the line while the trial has this number.
        while received.progress.done <= position:
            time.sleep(POLL_INTERVAL_S)


def print_after_launch(received: Received) -> None:
    wait(received)
    os.write(1, b"after the launch\n")
    Path(received.job["file"]).touch()


def main() -> None:
    received = receive(int(sys.argv[1]), orphan_timeout_s=0.1)
    with received.errors_sent(verbose=received.job.get("verbose", False)):
        globals()[received.job["act"]](received)


if __name__ == "__main__":
    main()
