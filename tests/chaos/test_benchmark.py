"""The chaos command, for less than a minute on each storage."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT

KEYS = ["asked", "finished", "missing", "double", "running", "resumed", "epochs_lost", "different", "kills"]


# PostgreSQL has all the faults, and time enough for some; in a quarter of a minute there may be none that kills.
@pytest.mark.parametrize(
    ("storage_url", "minutes", "least_kills"), [("sqlite", 0.25, 0), ("postgresql", 0.5, 1)], indirect=["storage_url"]
)
def test_chaos_loses_nothing(storage_url, minutes, least_kills):
    settings = ["--minutes", str(minutes), "--workers", "2", "--storage", storage_url]
    output = Path("ledger.json").absolute()
    command = [sys.executable, "-m", "benchmarks.chaos", *settings, "--json", output]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ledger = json.loads(output.read_text())
    assert list(ledger) == KEYS
    assert ledger["finished"] == ledger["asked"] > 0
    assert [ledger[key] for key in ("missing", "double", "running", "different")] == [0, 0, 0, 0], done.stderr
    assert ledger["kills"] >= least_kills
