"""What a trial may take: its time, and in a process of its own its memory."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import hpo
from hpo.errors import HpoError
from hpo.runner import limits
from hpo.runner.limits import LimitError, Stopwatch, TrialTimeoutError, limit_memory, show_size

LIMIT = 250_000_000
PIECE = 8_000_000

LIMITED = f"""
import json, re, threading
from pathlib import Path
import numpy as np
from hpo.runner.limits import limit_memory

def used():
    return 1024 * int(re.search("RssAnon:[^0-9]*([0-9]+)", Path("/proc/self/status").read_text())[1])

reserved = np.empty({LIMIT} * 4, np.uint8)  # mapped, not used
limit_memory({LIMIT})
told = {{"half": np.ones({LIMIT} // 2, np.uint8).nbytes}}
held = []
try:
    while len(held) < 1000:
        held.append(np.ones({PIECE}, np.uint8))
except MemoryError:
    told["full"] = used()
square = np.ones((256, 256), np.float32)
told["product"] = float((square @ square)[0, 0])
thread = threading.Thread(target=held.clear)
thread.start()
thread.join()
told["again"] = np.ones({LIMIT} // 2, np.uint8).nbytes
print(json.dumps(told))
"""


class Clock:
    """Stands in for the module ``time``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(limits, "time", clock)
    return clock


def run_alone(script: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: a limit is for good."""
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=Path(hpo.__file__).parents[1], capture_output=True, text=True, check=False)


def test_a_stopwatch_goes_on_from_what_was_spent_before(clock):
    stopwatch = Stopwatch(limit=None, spent=7.5)
    assert stopwatch.seconds == 7.5
    clock.now += 2
    assert stopwatch.seconds == 9.5


def test_time_is_up_just_after_the_limit(clock):
    stopwatch = Stopwatch(limit=60.0, spent=0.0)
    stopwatch.check()
    clock.now += 60
    stopwatch.check()
    clock.now += 1 / 1024
    with pytest.raises(TrialTimeoutError):
        stopwatch.check()


def test_the_time_of_former_attempts_counts(clock):
    stopwatch = Stopwatch(limit=60.0, spent=59.0)
    clock.now += 1
    stopwatch.check()
    clock.now += 1
    with pytest.raises(TrialTimeoutError):
        stopwatch.check()
    with pytest.raises(TrialTimeoutError):
        Stopwatch(limit=60.0, spent=61.0).check()


def test_without_a_limit_time_is_never_up(clock):
    stopwatch = Stopwatch(limit=None, spent=1e9)
    clock.now += 1e12
    stopwatch.check()


def test_a_limit_of_no_time_is_one(clock):
    stopwatch = Stopwatch(limit=0.0, spent=0.0)
    clock.now += 1
    with pytest.raises(TrialTimeoutError):
        stopwatch.check()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can keep a limit")
def test_an_allocation_beyond_the_limit_fails_and_the_process_goes_on():
    done = run_alone(LIMITED)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert LIMIT - 1.5 * PIECE < told["full"] <= LIMIT
    assert told == {"half": LIMIT // 2, "full": told["full"], "product": 256.0, "again": LIMIT // 2}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can keep a limit")
def test_a_limit_that_leaves_no_room_to_train_is_refused_with_both_sizes():
    done = run_alone(
        "import numpy as np\n"
        "from hpo.errors import HpoError\n"
        "from hpo.runner.limits import limit_memory\n"
        f"held = np.ones({LIMIT}, np.uint8)\n"
        "try:\n"
        f"    limit_memory({LIMIT})\n"
        "except HpoError as error:\n"
        "    print(error)\n"
        f"more = np.ones({LIMIT}, np.uint8)\n"
    )
    assert (done.returncode, done.stderr) == (0, "")
    words = done.stdout.split()
    assert words[:2] == ["--memory-limit", "250M:"]
    used = int(words[words.index("takes") + 1].removesuffix("M"))
    assert 250 < used < 350
    assert done.stdout == (f"--memory-limit 250M: a worker takes {used}M before it trains; give it more\n")


@pytest.mark.parametrize("platform", ["darwin", "freebsd14"])
def test_other_systems_are_refused_before_anything_is_limited(monkeypatch, platform):
    monkeypatch.setattr(limits, "sys", SimpleNamespace(platform=platform))
    monkeypatch.setattr(limits, "resource", None)
    with pytest.raises(LimitError, match=r"--memory-limit: only Linux can keep it; leave it out"):
        limit_memory(10**12)
    assert issubclass(LimitError, HpoError)


@pytest.mark.parametrize(
    ("size", "shown"),
    [(500_000_000, "500M"), (2_000_000_000, "2000M"), (1_499_999, "1M"), (1_500_001, "2M"), (0, "0M")],
)
def test_sizes_are_shown_in_megabytes(size, shown):
    assert show_size(size) == shown
