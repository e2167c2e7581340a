"""Interrupts of a command in code that was compiled from text."""

import subprocess
import sys
from pathlib import Path

import pytest

# CPython ends with SIGINT if a KeyboardInterrupt itself is raised in such code.
SCRIPT = """
import signal
import click
from hpo.ui import cli

@click.command("test")
@cli.verbose_option
def command(verbose):
    exec("signal.raise_signal(signal.{name})")

cli.main(command)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_interrupt_in_compiled_text_exits_with_130(name):
    Path("script.py").write_text(SCRIPT.format(name=name))
    done = subprocess.run([sys.executable, "-m", "script"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
