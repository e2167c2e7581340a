"""The memory limit of a process, in processes of their own, because a limit is permanent."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import hpo

LIMIT = 250_000_000
PIECE = 8_000_000

LIMITED = f"""
import json, re, threading
from pathlib import Path
import numpy as np
from hpo.runner.limits import limit_memory

def used():
    return 1024 * int(re.search("RssAnon:[^0-9]*([0-9]+)", Path("/proc/self/status").read_text())[1])

mapped_but_not_used = np.empty({LIMIT} * 4, np.uint8)
limit_memory({LIMIT})
found = {{"half": np.ones({LIMIT} // 2, np.uint8).nbytes}}
held = []
try:
    while len(held) < 1000:
        held.append(np.ones({PIECE}, np.uint8))
except MemoryError:
    found["full"] = used()
square = np.ones((256, 256), np.float32)
found["product"] = float((square @ square)[0, 0])
thread = threading.Thread(target=held.clear)
thread.start()
thread.join()
found["again"] = np.ones({LIMIT} // 2, np.uint8).nbytes
print(json.dumps(found))
"""

REFUSED = f"""
import numpy as np
from hpo.errors import HpoError
from hpo.runner.limits import limit_memory
held = np.ones({LIMIT}, np.uint8)
try:
    limit_memory({LIMIT})
except HpoError as error:
    print(error)
more = np.ones({LIMIT}, np.uint8)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can keep a memory limit")


def run(script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=Path(hpo.__file__).parents[1], capture_output=True, text=True, check=False)


def test_allocation_beyond_limit_fails_and_process_continues():
    done = run(LIMITED)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert LIMIT - 1.5 * PIECE < found["full"] <= LIMIT
    assert found == {"half": LIMIT // 2, "full": found["full"], "product": 256.0, "again": LIMIT // 2}


def test_limit_below_used_memory_is_refused():
    done = run(REFUSED)
    assert (done.returncode, done.stderr) == (0, "")
    words = done.stdout.split()
    assert words[:2] == ["--memory-limit", "250M:"]
    used = int(words[words.index("takes") + 1].removesuffix("M"))
    assert 250 < used < 350
    assert done.stdout == f"--memory-limit 250M: a worker takes {used}M before it trains; give it more\n"
