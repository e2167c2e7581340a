"""The chaos command, for half a minute on each storage."""

import json
import subprocess
import sys
from pathlib import Path

from commands import ROOT

KEYS = ["asked", "finished", "missing", "double", "running", "resumed", "epochs_lost", "different", "kills"]


def test_half_a_minute_of_chaos_loses_nothing(storage_url):
    settings = ["--minutes", "0.5", "--workers", "2", "--storage", storage_url]
    output = Path("ledger.json").absolute()
    command = [sys.executable, "-m", "benchmarks.chaos", *settings, "--json", output]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ledger = json.loads(output.read_text())
    assert list(ledger) == KEYS
    assert ledger["finished"] == ledger["asked"] > 0
    assert [ledger[key] for key in ("missing", "double", "running", "different")] == [0, 0, 0, 0], done.stderr
    assert ledger["kills"] > 0
