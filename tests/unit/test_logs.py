"""Log lines on stderr, and failures to print."""

import io
import logging
import re
import sys

import pytest
from rich.console import Console

from hpo.ui.display import LogDisplay, display_for
from hpo.ui.logs import configure_logging, stderr_console
from hpo.ui.secrets import hide_passwords

LOGGER = logging.getLogger("hpo.test")


def make_console(terminal: bool) -> Console:
    console = Console(file=io.StringIO(), width=40, force_terminal=terminal, color_system=None)
    configure_logging(console)
    return console


def test_line_has_time_and_level():
    console = make_console(terminal=False)
    LOGGER.warning("no space left")
    line = console.file.getvalue()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} WARNING no space left\n", line)


def test_each_line_of_message_has_prefix():
    console = make_console(terminal=False)
    LOGGER.info("first\nsecond", extra={"study": "mine", "trial": 3, "worker": "host-17"})
    first, second = console.file.getvalue().splitlines()
    assert first.endswith(" INFO mine trial 3 worker host-17: first")
    assert second.endswith(" INFO mine trial 3 worker host-17: second")


def test_terminal_shows_plain_message():
    console = make_console(terminal=True)
    LOGGER.info("[red]%s", "a message that is longer than the terminal is wide", extra={"study": "mine"})
    assert console.file.getvalue() == "[red]a message that is longer than the terminal is wide\n"


def test_debug_messages_need_verbose():
    console = make_console(terminal=True)
    LOGGER.debug("hidden")
    configure_logging(console, verbose=True)
    LOGGER.debug("shown")
    assert console.file.getvalue() == "shown\n"


@pytest.mark.parametrize("quiet", [True, False])
def test_quiet_hides_progress_of_downloads(quiet):
    console = make_console(terminal=True)
    configure_logging(console, quiet=quiet)
    logging.getLogger("hpo.data.cifar10").info("downloading")
    logging.getLogger("hpo.data.cifar10").warning("damaged")
    LOGGER.info("stopping")
    lines = console.file.getvalue().splitlines()
    assert lines == (["damaged", "stopping"] if quiet else ["downloading", "damaged", "stopping"])


@pytest.mark.parametrize("terminal", [True, False])
def test_line_has_no_password(terminal):
    console = make_console(terminal)
    LOGGER.info("cannot use %s", "postgresql://hpo:hunter2@host/hpo")
    assert "hunter2" not in console.file.getvalue()
    assert "postgresql://hpo:***@host/hpo" in console.file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_line_has_no_control_character(terminal):
    console = make_console(terminal)
    LOGGER.info("worker on %s", "host\x1b[2J\a\x9b\u202e", extra={"study": "\x1b]0;mine\a"})
    assert console.file.getvalue().rstrip("\n").isprintable()
    assert r"host\x1b[2J\x07\x9b\u202e" in console.file.getvalue()


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("postgresql+psycopg://hpo:p@ss:w0rd@host:5432/hpo?a=b", "postgresql+psycopg://hpo:***@host:5432/hpo?a=b"),
        ("postgresql://host/hpo?user=hpo&password=hunter2&a=b", "postgresql://host/hpo?user=hpo&password=***&a=b"),
        ("host=localhost password=hunter2 user=hpo", "host=localhost password=*** user=hpo"),
        ("sqlite:///hpo.db", "sqlite:///hpo.db"),
        ("http://127.0.0.1:8080 and me@example.org", "http://127.0.0.1:8080 and me@example.org"),
    ],
)
def test_passwords_are_hidden(text, hidden):
    assert hide_passwords(text) == hidden


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE", "CLICOLOR_FORCE"])
def test_file_is_no_terminal_in_any_environment(variable, monkeypatch, tmp_path):
    monkeypatch.setenv(variable, "1")
    with (tmp_path / "log").open("w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        console = stderr_console()
    assert not console.is_terminal
    assert type(display_for(console, "mine", quiet=False)) is LogDisplay
