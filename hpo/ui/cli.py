"""What the commands share: options with their environment twins, and the border at which errors become exit codes."""

import functools
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

import click

from hpo.errors import HpoError
from hpo.utils.signals import STOP_SIGNALS

DEFAULT_STUDY = "digits"
DEFAULT_URL = "sqlite:///hpo.db"
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8080

MAX_CONFIRM = 10  # trials; those whose weights are kept

EXPERIMENTS = ("gradients", "toy", "raw", "pca", "random-grid", "best", "torch", "deep", "saved")  # of the report

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_UNITS = {"s": 1, "m": 60, "h": 3600}


class Duration(click.ParamType[float]):
    """Seconds, minutes or hours: 90s, 30m, 2h."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", value)
        if match is None or float(match[1]) == 0:
            self.fail(f"{value!r} is no duration; use 90s, 30m or 2h", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


class Size(click.ParamType[int]):
    """Bytes: 500M, 2G."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG])(i?)B?", value, re.IGNORECASE)
        if match is None or float(match[1]) == 0:
            self.fail(f"{value!r} is no size; use 500M or 2G", param, ctx)
        base = 1024 if match[3] else 1000
        return int(float(match[1]) * base ** (1 + "KMG".index(match[2].upper())))


# Every flag has a twin HPO_* in the environment, shown in its help; a flag wins.
option = functools.partial(click.option, show_envvar=True)


def command(prog: str) -> Callable[[Callable[..., Any]], click.Command]:
    """A command that is run as ``prog``."""
    settings = {"auto_envvar_prefix": "HPO", "show_default": True, "max_content_width": 100}
    return click.command(prog, context_settings=settings)


study_argument = click.argument("study", default=DEFAULT_STUDY, envvar="HPO_STUDY")
storage_option = option(
    "--storage", default=DEFAULT_URL, metavar="URL", help="The database: a SQLite file or PostgreSQL."
)
verbose_option = option("--verbose", is_flag=True, help="Show tracebacks, also those of workers.")
host_option = option("--host", default=DEFAULT_HOST, help="Where the dashboard listens; it asks for no password.")
port_option = option("--port", type=click.IntRange(1, 65535), default=DEFAULT_PORT, help="The dashboard's port.")


def say(message: str) -> None:
    """A line for people, on stderr."""
    click.echo(message, err=True)


def main(command: click.Command) -> NoReturn:
    """Run a command and exit: 0 done, 1 an expected error in one line, 2 wrong usage, 130 interrupted."""
    for number in STOP_SIGNALS:
        signal.signal(number, _interrupt)
    verbose = False
    try:
        with command.make_context(command.name, sys.argv[1:]) as context:
            verbose = context.params["verbose"]
            code = command.invoke(context) or 0
        sys.stdout.flush()
    except click.exceptions.Exit as exit_:
        code = exit_.exit_code
    except click.UsageError as error:
        error.show()
        code = EXIT_USAGE
    except (KeyboardInterrupt, click.Abort):
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read stdout has gone; the interpreter would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_ERROR
    except HpoError as error:
        code = _fail(str(error), verbose)
    except Exception as error:  # noqa: BLE001  # the border: a bug is told in one line, too
        code = _fail(f"a bug in hpo: {type(error).__name__}: {error}; see it whole with --verbose", verbose)
    sys.exit(code)


def _fail(message: str, verbose: bool) -> int:
    if verbose:
        traceback.print_exc()
    say(f"hpo: {' '.join(message.split())}")
    return EXIT_ERROR


class _Interrupt(KeyboardInterrupt):
    """A stop signal.

    If a KeyboardInterrupt itself strikes in code that is text, as that which dataclasses and SQLAlchemy write, CPython
    will end with SIGINT, whatever the exit code.
    """


def _interrupt(_: int, __: FrameType | None) -> None:
    raise _Interrupt
