"""The chaos command on each storage."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT

KEYS = ["asked", "finished", "missing", "double", "running", "resumed", "epochs_lost", "different", "kills"]


@pytest.mark.parametrize(
    ("storage_url", "kills"),
    [
        pytest.param("sqlite", 4, marks=pytest.mark.slow),
        pytest.param("sqlite", 60, marks=pytest.mark.slow),
        pytest.param("postgresql", 60, marks=pytest.mark.slow),
    ],
    indirect=["storage_url"],
)
def test_chaos_loses_no_trial(storage_url, kills):
    settings = ["--kills", str(kills), "--workers", "2", "--storage", storage_url]
    output = Path("ledger.json").absolute()
    command = [sys.executable, "-m", "benchmarks.chaos", *settings, "--json", output]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ledger = json.loads(output.read_text())
    assert list(ledger) == KEYS
    assert ledger["finished"] == ledger["asked"] > 0
    assert [ledger[key] for key in ("missing", "double", "running", "different")] == [0, 0, 0, 0], done.stderr
    assert ledger["kills"] >= kills
