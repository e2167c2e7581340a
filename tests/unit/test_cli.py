"""Options of the commands, exit codes, and the environment."""

import errno
import math
import os
import signal
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
def process_settings(monkeypatch):
    """Restore the streams and signal handlers that a command replaces."""
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("HPO_")]:
        monkeypatch.delenv(name)


def seconds(text):
    return cli.Duration().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("1.5h", 5400), ("0.5s", 0.5), ("1s", 1), ("007m", 420)],
)
def test_duration_is_converted_to_seconds(text, expected):
    assert seconds(text) == expected


@given(number=st.integers(1, 10**6) | st.floats(0.001, 1e6).map(lambda number: round(number, 3)))
def test_units_of_duration_are_consistent(number):
    assert math.isclose(seconds(f"{number}h"), 60 * seconds(f"{number}m"))
    assert math.isclose(seconds(f"{number}m"), 60 * seconds(f"{number}s"))


@pytest.mark.parametrize(
    "text",
    ["", "90", "s", "0s", "0.0h", "-1s", "+1s", "1 h", "1d", "1H", "1h30m", ".5h", "1.h", "1e3s", "nans", "1s\n"],
)
def test_invalid_duration_is_refused_with_examples(text):
    with pytest.raises(click.BadParameter, match="is not a valid duration; use 90s, 30m or 2h"):
        seconds(text)


def size(text):
    return cli.ByteSize().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("500M", 500_000_000), ("2G", 2 * 10**9), ("1.5g", 15 * 10**8), ("64kB", 64_000), ("2GiB", 2**31), ("1Mi", 2**20)],
)
def test_size_is_converted_to_bytes(text, expected):
    assert size(text) == expected


@pytest.mark.parametrize("text", ["", "500", "M", "0M", "-1M", "1 G", "1T", "1GG", "1e3M", ".5G", "1M\n"])
def test_invalid_size_is_refused_with_examples(text):
    with pytest.raises(click.BadParameter, match="is not a valid size; use 500M or 2G"):
        size(text)


def command_that(act):
    @cli.command("python -m hpo.test")
    @cli.option("--count", type=int, default=1, help="A number.")
    @cli.verbose_option
    def command(count, verbose):
        """Do something."""
        return act()

    return command


def run_main(act, monkeypatch, *arguments):
    """Run a command; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["test", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main(command_that(act))
    return caught.value.code


def raising(error):
    def act():
        raise error

    return act


def test_error_has_no_control_character(monkeypatch, capsys):
    assert run_main(raising(StorageError("study \x1b[2J\x9b\u202e")), monkeypatch) == 1
    assert capsys.readouterr().err == "hpo: study \\x1b[2J\\x9b\\u202e\n"


def test_usage_error_has_no_control_character(monkeypatch, capsys):
    assert run_main(lambda: 0, monkeypatch, "--\x1b[2J") == 2
    assert "--\\x1b[2J" in capsys.readouterr().err


def test_finished_command_exits_with_0(monkeypatch, capsys):
    assert run_main(lambda: None, monkeypatch) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("code", [0, 1, 130])
def test_command_returns_its_exit_code(code, monkeypatch):
    assert run_main(lambda: code, monkeypatch) == code


@pytest.mark.parametrize("error", [HpoError, StorageError])
def test_expected_error_is_one_line(error, monkeypatch, capsys):
    assert run_main(raising(error("no such study; use another")), monkeypatch) == 1
    assert capsys.readouterr() == ("", "hpo: no such study; use another\n")


def test_message_of_several_lines_is_joined(monkeypatch, capsys):
    assert run_main(raising(HpoError("it is away:\n\n  connection   refused\r\n")), monkeypatch) == 1
    assert capsys.readouterr() == ("", "hpo: it is away: connection refused\n")


def test_message_is_not_markup(monkeypatch, capsys):
    run_main(raising(HpoError("[red]mine.toml[/red]: %s {0}")), monkeypatch)
    assert capsys.readouterr().err == "hpo: [red]mine.toml[/red]: %s {0}\n"


@pytest.mark.parametrize("error", [ValueError("boom\nbang"), KeyError("boom"), OSError(5, "boom"), MemoryError("boom")])
def test_unexpected_error_is_one_line(error, monkeypatch, capsys):
    assert run_main(raising(error), monkeypatch) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("hpo: ")
    for part in (type(error).__name__, "boom", "--verbose"):
        assert part in err


@pytest.mark.parametrize("error", [ValueError("boom"), HpoError("boom")])
def test_verbose_shows_traceback(error, monkeypatch, capsys):
    assert run_main(raising(error), monkeypatch, "--verbose") == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)")
    assert err.splitlines()[-1].startswith("hpo: ")
    assert "boom" in err.splitlines()[-1]


@pytest.mark.parametrize("arguments", [[], ["--verbose"]])
def test_error_has_no_password(arguments, monkeypatch, capsys):
    run_main(raising(ValueError("postgresql://hpo:hunter2@host/hpo")), monkeypatch, *arguments)
    err = capsys.readouterr().err
    assert "hunter2" not in err
    assert "postgresql://hpo:***@host/hpo" in err


def test_verbose_in_environment_shows_traceback(monkeypatch, capsys):
    monkeypatch.setenv("HPO_VERBOSE", "1")
    run_main(raising(HpoError("boom")), monkeypatch)
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_interrupt_exits_with_130(error, monkeypatch, capsys):
    assert run_main(raising(error), monkeypatch) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_sigterm_exits_with_130(monkeypatch):
    assert run_main(lambda: signal.raise_signal(signal.SIGTERM), monkeypatch) == 130


def test_interrupted_import_exits_with_130(monkeypatch, capsys):
    def import_module():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    assert run_main(import_module, monkeypatch) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["--cuont", "3"], "--cuont"), (["--count", "many"], "'many'"), (["--count"], "--count"), (["more"], "more")],
)
def test_wrong_usage_exits_with_2(arguments, word, monkeypatch, capsys):
    assert run_main(raising(AssertionError("the command must not run")), monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Error: " in err
    assert word in err
    assert "Traceback" not in err


def test_wrong_usage_shows_usage(monkeypatch, capsys):
    run_main(raising(AssertionError("the command must not run")), monkeypatch, "--cuont", "3")
    assert "Usage: python -m hpo.test" in capsys.readouterr().err


def test_invalid_environment_is_wrong_usage(monkeypatch, capsys):
    monkeypatch.setenv("HPO_COUNT", "many")
    assert run_main(raising(AssertionError("the command must not run")), monkeypatch) == 2
    assert "'many'" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["tcp://10.43.0.5:8080", "udp://10.0.0.1:53", "tcp://[fd00::1]:80"])
def test_address_of_kubernetes_is_ignored(value, monkeypatch):
    monkeypatch.setenv("HPO_COUNT", value)
    assert run_main(lambda: None, monkeypatch) == 0


@pytest.mark.parametrize(("name", "value"), [("HPO_COUNT", "many"), ("HPO_VERBOSE", "perhaps")])
def test_invalid_environment_is_named(name, value, monkeypatch, capsys):
    monkeypatch.setenv(name, value)
    assert run_main(raising(AssertionError("the command must not run")), monkeypatch) == 2
    assert f"(environment variable {name})" in capsys.readouterr().err


def test_invalid_flag_does_not_name_environment(monkeypatch, capsys):
    monkeypatch.setenv("HPO_COUNT", "3")
    assert run_main(raising(AssertionError("the command must not run")), monkeypatch, "--count", "many") == 2
    assert "HPO_COUNT" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [OSError(24, "Too many open files", "hpo.db"), MemoryError(), PermissionError(1, "no")]
)
def test_error_of_machine_is_no_bug(error, monkeypatch, capsys):
    assert run_main(raising(error), monkeypatch) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "a bug in hpo" not in err


def test_missing_working_folder_is_one_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run_main(raising(AssertionError("the command must not run")), monkeypatch) == 1
    assert capsys.readouterr().err.startswith("hpo: the working folder cannot be used: ")


def test_help_goes_to_stdout(monkeypatch, capsys):
    assert run_main(raising(AssertionError("the command must not run")), monkeypatch, "--help") == 0
    out, err = capsys.readouterr()
    assert "Do something." in out
    assert err == ""


@pytest.mark.parametrize("arguments", [[], ["--cuont", "3"]])
def test_unwritable_stderr_keeps_exit_code(arguments, monkeypatch):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert run_main(raising(HpoError("no such study")), monkeypatch, *arguments) == (2 if arguments else 1)
        monkeypatch.undo()


def options(command):
    """Return the options of a command by their flags, without ``--help``."""
    return {option.opts[0]: option for option in command.params if isinstance(option, click.Option)}


EVERY_OPTION = [(name, flag) for name, command in COMMANDS.items() for flag in options(command)]


def variable(flag):
    return "HPO_" + flag.removeprefix("--").replace("-", "_").upper()


VALUES = {
    cli.Duration: (("90s", 90.0), ("2h", 7200.0)),
    cli.ByteSize: (("500M", 500_000_000), ("2G", 2_000_000_000)),
    cli.Integer: (("4", 4), ("5", 5)),
    click.Path: (("here/a.npz", Path("here/a.npz")), ("there/b.npz", Path("there/b.npz"))),
    cli.GpuList: (("0", "0"), ("none", "none")),
}


def two_values(option):
    """Return two values of an option, each as text and as an object."""
    values = VALUES.get(type(option.type), (("here", "here"), ("there", "there")))
    if isinstance(option.type, click.Choice):
        # The only choice of an option is both values.
        values = [(choice, choice) for choice in (option.type.choices * 2)[:2]]
    return [(text, (value,)) if option.multiple else (text, value) for text, value in values]


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
            "--enqueue --refit --allow-import --output --direction --pruner --gpus --allow-changes --host --port "
            "--allow-host --no-dashboard --quiet --verbose",
        ),
        ("export", "--storage --trial --output --model --artifact --refit --allow-import --verbose"),
        ("dashboard", "--storage --host --port --allow-host --verbose"),
        ("reproduce", "--only --quick --workers --storage --storage-timeout --output --quiet --verbose"),
    ],
)
def test_command_has_flags_of_contract(command, flags):
    assert set(options(COMMANDS[command])) == set(flags.split())


@pytest.mark.parametrize(("command", "flag"), EVERY_OPTION)
def test_help_shows_each_flag_and_variable(command, flag):
    shown = help_of(COMMANDS[command]).split(f" {flag} ")[1].split(" --")[0]
    assert f"env var: {variable(flag)}" in shown
    assert options(COMMANDS[command])[flag].help


@pytest.mark.parametrize(("command", "flag"), EVERY_OPTION)
def test_variable_replaces_flag(command, flag, monkeypatch):
    command = COMMANDS[command]
    option = options(command)[flag]
    text, value = ("1", True) if option.is_flag else two_values(option)[0]
    before = params(command)
    monkeypatch.setenv(variable(flag), text)
    assert params(command) == before | {option.name: value} != before


@pytest.mark.parametrize(
    ("command", "flag"), [(name, flag) for name, flag in EVERY_OPTION if not options(COMMANDS[name])[flag].is_flag]
)
def test_flag_has_precedence_over_variable(command, flag, monkeypatch):
    command = COMMANDS[command]
    option = options(command)[flag]
    (text, value), (other, _) = two_values(option)
    monkeypatch.setenv(variable(flag), other)
    assert params(command, flag, text)[option.name] == value


@pytest.mark.parametrize("command", ["launch", "export"])
def test_study_is_argument_with_variable_and_default(command, monkeypatch):
    command = COMMANDS[command]
    assert params(command)["study"] == "digits"
    monkeypatch.setenv("HPO_STUDY", "cifar10")
    assert params(command)["study"] == "cifar10"
    assert params(command, "mine.toml")["study"] == "mine.toml"


def test_launch_has_defaults():
    assert params(launch) == {
        "study": "digits",
        "arguments": (),
        "workers": None,
        "trials": None,
        "timeout": None,
        "storage": "sqlite:///hpo.db",
        "storage_timeout": 300.0,
        "trial_timeout": None,
        "memory_limit": None,
        "confirm": 3,
        "enqueue": (),
        "allow_import": (),
        "refit": False,
        "output": None,
        "direction": (),
        "pruner": None,
        "gpus": "auto",
        "allow_changes": False,
        "host": "127.0.0.1",
        "port": 8080,
        "allow_host": (),
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
def test_option_out_of_range_is_wrong_usage(arguments):
    with pytest.raises(click.BadParameter) as caught:
        params(launch, *arguments)
    assert caught.value.param.opts == arguments[:1]


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.EMFILE, "ulimit -n"), (errno.EAGAIN, "use fewer --workers"), (errno.ENOMEM, "smaller data")],
)
def test_shortage_of_machine_is_one_line_with_advice(number, advice, monkeypatch, capsys):
    assert run_main(raising(OSError(number, os.strerror(number))), monkeypatch) == 1
    line = capsys.readouterr().err
    assert advice in line
    assert "a bug in hpo" not in line
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "flag"),
    [("export", "--output"), ("export", "--model"), ("launch", "--output"), ("launch", "--enqueue")]
    + [(name, "--storage") for name in COMMANDS],
)
def test_empty_value_is_wrong_usage(command, flag):
    result = CliRunner().invoke(COMMANDS[command], [flag, ""])
    assert result.exit_code == 2
    assert f"'{flag}': the value is empty; give a value, or leave out the option" in result.output


@pytest.mark.parametrize(
    ("command", "flag", "value", "allowed"),
    [
        ("launch", "--workers", "two", "an integer of at least 1 is allowed, not 'two'"),
        ("launch", "--trials", "0", "an integer of at least 1 is allowed, not '0'"),
        ("launch", "--confirm", "11", "an integer from 0 to 10 is allowed, not '11'"),
        ("dashboard", "--port", "65536", "an integer from 1 to 65535 is allowed, not '65536'"),
    ],
)
def test_invalid_integer_is_refused_with_range(command, flag, value, allowed):
    result = CliRunner().invoke(COMMANDS[command], [flag, value])
    assert result.exit_code == 2
    assert allowed in result.output


def test_stop_signal_during_report_of_error_exits_with_130(monkeypatch):
    monkeypatch.setattr(cli, "print_error", lambda _: signal.raise_signal(signal.SIGTERM))
    assert run_main(raising(HpoError("boom")), monkeypatch) == 130


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train.py", "--model", "a.npz"],
            "--model is for a study file that trains a model; --artifact is for a script",
        ),
        (["digits", "--artifact", "a.bin"], "--artifact is for a script such as train.py; --model is for a study file"),
    ],
)
def test_file_of_other_kind_of_study_is_wrong_usage(arguments, message):
    with pytest.raises(click.UsageError) as caught, export.make_context("test", arguments) as context:
        export.invoke(context)
    assert caught.value.message == message
    assert not Path("hpo.db").exists()
