"""The script and the commands of docs/optuna-scripts.md."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, hpo, strict_json

DOCUMENT = (ROOT / "docs/optuna-scripts.md").read_text()


def blocks(language: str) -> list[str]:
    """Return the code blocks of the document in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)


SCRIPT, CHECKPOINTS = blocks("python")
COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]


@pytest.fixture(autouse=True)
def _script() -> None:
    Path("train.py").write_text(SCRIPT)


def test_script_runs_under_plain_python():
    done = subprocess.run([sys.executable, "-W", "error", "train.py"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("{'x': ")


@pytest.mark.slow
def test_commands_run_in_order():
    for line, trials in zip(COMMANDS, (40, 60, 40, 20), strict=True):
        words = shlex.split(line)
        assert words[:3] == ["python", "-m", "hpo.launch"]
        done = hpo("launch", words[3], "--no-dashboard", *words[4:])
        assert done.returncode == 0, done.stderr
        best = strict_json(Path("results/train/best.json").read_text())
        assert sum(best["trials"].values()) == trials, line


def test_checkpoint_calls_are_public():
    names = re.findall(r"hpo\.(\w+)\(", CHECKPOINTS)
    ran = subprocess.run(
        [sys.executable, "-c", f"import hpo; print([hasattr(hpo, name) for name in {names}])"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "[True, True]\n"
