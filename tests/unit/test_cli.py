"""The border between the commands and people: durations, exit codes, and the environment."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from hpo.dashboard import dashboard
from hpo.errors import HpoError, StorageError
from hpo.export import export
from hpo.launch import launch
from hpo.reproduce import reproduce
from hpo.ui import cli
from hpo.utils.signals import STOP_SIGNALS

COMMANDS = {"launch": launch, "export": export, "dashboard": dashboard, "reproduce": reproduce}


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("HPO_")]:
        monkeypatch.delenv(name)


# Durations


def seconds(text):
    return cli.Duration().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("1.5h", 5400), ("0.5s", 0.5), ("1s", 1), ("007m", 420)],
)
def test_a_duration_is_seconds_minutes_or_hours(text, expected):
    assert seconds(text) == expected


@given(number=st.integers(1, 10**6) | st.floats(0.001, 1e6).map(lambda number: round(number, 3)))
def test_an_hour_is_sixty_minutes_of_sixty_seconds(number):
    assert math.isclose(seconds(f"{number}h"), 60 * seconds(f"{number}m"))
    assert math.isclose(seconds(f"{number}m"), 60 * seconds(f"{number}s"))


@pytest.mark.parametrize(
    "text",
    ["", "90", "s", "0s", "0.0h", "-1s", "+1s", "1 h", "1d", "1H", "1h30m", ".5h", "1.h", "1e3s", "nans", "1s\n"],
)
def test_other_durations_are_refused_with_what_is_allowed(text):
    with pytest.raises(click.BadParameter, match="use 90s, 30m or 2h"):
        seconds(text)


# Sizes


def size(text):
    return cli.Size().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("500M", 500_000_000), ("2G", 2 * 10**9), ("1.5g", 15 * 10**8), ("64kB", 64_000), ("2GiB", 2**31), ("1Mi", 2**20)],
)
def test_a_size_is_in_bytes(text, expected):
    assert size(text) == expected


@pytest.mark.parametrize("text", ["", "500", "M", "0M", "-1M", "1 G", "1T", "1GG", "1e3M", ".5G", "1M\n"])
def test_other_sizes_are_refused_with_what_is_allowed(text):
    with pytest.raises(click.BadParameter, match="use 500M or 2G"):
        size(text)


# Exit codes


def command_that(act):
    @cli.command("python -m hpo.test")
    @cli.option("--count", type=int, default=1, help="A number.")
    @cli.verbose_option
    def command(count, verbose):
        """Do something."""
        return act()

    return command


def run_main(act, monkeypatch, *arguments):
    """The exit code of a command."""
    monkeypatch.setattr(sys, "argv", ["test", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main(command_that(act))
    return caught.value.code


def raising(error):
    def act():
        raise error

    return act


def test_done_is_0_and_silent(monkeypatch, capsys):
    assert run_main(lambda: None, monkeypatch) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("code", [0, 1, 130])
def test_a_command_may_say_its_own_code(code, monkeypatch):
    assert run_main(lambda: code, monkeypatch) == code


@pytest.mark.parametrize("error", [HpoError, StorageError])
def test_an_expected_error_is_1_and_one_line(error, monkeypatch, capsys):
    assert run_main(raising(error("no such study; use another")), monkeypatch) == 1
    assert capsys.readouterr() == ("", "hpo: no such study; use another\n")


def test_a_message_of_several_lines_is_told_in_one(monkeypatch, capsys):
    assert run_main(raising(HpoError("it is away:\n\n  connection   refused\r\n")), monkeypatch) == 1
    assert capsys.readouterr() == ("", "hpo: it is away: connection refused\n")


def test_what_looks_like_markup_is_told_as_it_is(monkeypatch, capsys):
    run_main(raising(HpoError("[red]mine.toml[/red]: %s {0}")), monkeypatch)
    assert capsys.readouterr().err == "hpo: [red]mine.toml[/red]: %s {0}\n"


@pytest.mark.parametrize("error", [ValueError("boom\nbang"), KeyError("boom"), OSError(5, "boom"), MemoryError("boom")])
def test_a_bug_is_1_and_one_line_too(error, monkeypatch, capsys):
    assert run_main(raising(error), monkeypatch) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("hpo: ")
    for part in (type(error).__name__, "boom", "--verbose"):
        assert part in err


@pytest.mark.parametrize("error", [ValueError("boom"), HpoError("boom")])
def test_with_verbose_the_traceback_is_shown(error, monkeypatch, capsys):
    assert run_main(raising(error), monkeypatch, "--verbose") == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)")
    assert err.splitlines()[-1].startswith("hpo: ")
    assert "boom" in err.splitlines()[-1]


def test_verbose_from_the_environment_shows_it_too(monkeypatch, capsys):
    monkeypatch.setenv("HPO_VERBOSE", "1")
    run_main(raising(HpoError("boom")), monkeypatch)
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interrupt_is_130_without_a_traceback(error, monkeypatch, capsys):
    assert run_main(raising(error), monkeypatch) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_sigterm_is_an_interrupt(monkeypatch):
    assert run_main(lambda: signal.raise_signal(signal.SIGTERM), monkeypatch) == 130


# In code that is text CPython takes an interrupt for the end, whatever comes of it.
STRUCK = """
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
def test_an_interrupt_is_130_wherever_it_strikes(name):
    Path("struck.py").write_text(STRUCK.format(name=name))
    done = subprocess.run([sys.executable, "-m", "struck"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--cuont", "3"], "--cuont"), (["--count", "many"], "'many'"), (["--count"], "--count"), (["more"], "more")],
)
def test_wrong_usage_is_2_and_told_on_stderr(arguments, said, monkeypatch, capsys):
    assert run_main(raising(AssertionError("it must not start")), monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Error: " in err
    assert said in err
    assert "Traceback" not in err


def test_wrong_usage_is_told_with_how_it_is_used(monkeypatch, capsys):
    run_main(raising(AssertionError("it must not start")), monkeypatch, "--cuont", "3")
    assert "Usage: python -m hpo.test" in capsys.readouterr().err


def test_a_wrong_environment_is_wrong_usage(monkeypatch, capsys):
    monkeypatch.setenv("HPO_COUNT", "many")
    assert run_main(raising(AssertionError("it must not start")), monkeypatch) == 2
    assert "'many'" in capsys.readouterr().err


def test_help_is_0_and_data(monkeypatch, capsys):
    assert run_main(raising(AssertionError("it must not start")), monkeypatch, "--help") == 0
    out, err = capsys.readouterr()
    assert "Do something." in out
    assert err == ""


def test_what_people_are_told_is_no_data(capsys):
    cli.say("a line")
    assert capsys.readouterr() == ("", "a line\n")


# The three commands


def options(command):
    """Flag and option of a command, ``--help`` aside."""
    return {option.opts[0]: option for option in command.params if isinstance(option, click.Option)}


EVERY_OPTION = [(name, flag) for name, command in COMMANDS.items() for flag in options(command)]


def twin(flag):
    return "HPO_" + flag.removeprefix("--").replace("-", "_").upper()


VALUES = {
    cli.Duration: (("90s", 90.0), ("2h", 7200.0)),
    cli.Size: (("500M", 500_000_000), ("2G", 2_000_000_000)),
    click.IntRange: (("4", 4), ("5", 5)),
    click.Path: (("here/a.npz", Path("here/a.npz")), ("there/b.npz", Path("there/b.npz"))),
    click.Choice: (("toy", "toy"), ("pca", "pca")),
}


def two_values(option):
    """Two values of an option: what is typed, and what it means."""
    values = VALUES.get(type(option.type), (("here", "here"), ("there", "there")))
    return [(text, (meaning,)) if option.multiple else (text, meaning) for text, meaning in values]


def params(command, *arguments):
    with command.make_context("test", list(arguments)) as context:
        return context.params


def help_of(command):
    return " ".join(CliRunner().invoke(command, ["--help"]).output.split())


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (
            "launch",
            "--workers --trials --timeout --storage --storage-timeout --trial-timeout --memory-limit --confirm "
            "--enqueue --output --host --port --no-dashboard --quiet --verbose",
        ),
        ("export", "--storage --trial --output --model --verbose"),
        ("dashboard", "--storage --host --port --verbose"),
        ("reproduce", "--only --quick --workers --storage --storage-timeout --output --quiet --verbose"),
    ],
)
def test_the_flags_are_those_of_the_contract(command, flags):
    assert set(options(COMMANDS[command])) == set(flags.split())


@pytest.mark.parametrize(("command", "flag"), EVERY_OPTION)
def test_the_help_shows_every_flags_twin_and_what_it_is_for(command, flag):
    shown = help_of(COMMANDS[command]).split(f" {flag} ")[1].split(" --")[0]
    assert f"env var: {twin(flag)}" in shown
    assert options(COMMANDS[command])[flag].help


@pytest.mark.parametrize(("command", "flag"), EVERY_OPTION)
def test_the_twin_stands_for_the_flag(command, flag, monkeypatch):
    command = COMMANDS[command]
    option = options(command)[flag]
    text, meaning = ("1", True) if option.is_flag else two_values(option)[0]
    before = params(command)
    monkeypatch.setenv(twin(flag), text)
    assert params(command) == before | {option.name: meaning} != before


@pytest.mark.parametrize(
    ("command", "flag"), [(name, flag) for name, flag in EVERY_OPTION if not options(COMMANDS[name])[flag].is_flag]
)
def test_a_flag_wins_over_its_twin(command, flag, monkeypatch):
    command = COMMANDS[command]
    option = options(command)[flag]
    (text, meaning), (other, _) = two_values(option)
    monkeypatch.setenv(twin(flag), other)
    assert params(command, flag, text)[option.name] == meaning


@pytest.mark.parametrize("command", ["launch", "export"])
def test_the_study_is_an_argument_with_a_twin_and_a_default(command, monkeypatch):
    command = COMMANDS[command]
    assert params(command)["study"] == "digits"
    monkeypatch.setenv("HPO_STUDY", "cifar10")
    assert params(command)["study"] == "cifar10"
    assert params(command, "mine.toml")["study"] == "mine.toml"


def test_the_defaults_of_a_launch():
    assert params(launch) == {
        "study": "digits",
        "workers": None,
        "trials": None,
        "timeout": None,
        "storage": "sqlite:///hpo.db",
        "storage_timeout": 300.0,
        "trial_timeout": None,
        "memory_limit": None,
        "confirm": 3,
        "enqueue": (),
        "output": None,
        "host": "127.0.0.1",
        "port": 8080,
        "no_dashboard": False,
        "quiet": False,
        "verbose": False,
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["--workers", "0"],
        ["--trials", "0"],
        ["--port", "0"],
        ["--port", "65536"],
        ["--timeout", "90"],
        ["--confirm", "-1"],
        ["--confirm", "11"],
    ],
)
def test_what_makes_no_sense_is_wrong_usage(arguments):
    with pytest.raises(click.BadParameter) as caught:
        params(launch, *arguments)
    assert caught.value.param.opts == arguments[:1]
