"""Options of the commands, and the border at which errors become exit codes."""

import errno
import functools
import io
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from hpo.errors import HpoError, OutputError, ReaderGoneError
from hpo.fleet.gpus import parse_gpus
from hpo.ui.exit_codes import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_USAGE
from hpo.ui.secrets import hide_passwords
from hpo.utils.signals import handle_stop_signals
from hpo.utils.streams import protect_streams
from hpo.utils.text import printable

DEFAULT_STUDY = "digits"
DEFAULT_URL = "sqlite:///hpo.db"
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8080

# Name of the exported parameters in a folder, and the folder of the folders of all studies.
RESULT_NAME = "best.json"
RESULTS = Path("results")

# Modules that the fork server of a command imports.
PRELOAD = ("hpo.tuning._preload",)
# Modules that it imports for a study with estimators, too.
ESTIMATOR_PRELOAD = ("hpo.tuning._preload_estimators",)

# At most the number of trials whose weights the storage keeps.
MAX_CONFIRM = 10

_KUBERNETES_ADDRESS = re.compile(r"(?:tcp|udp|sctp)://\S+:\d+")

_ADVICE = {
    errno.EMFILE: "; allow more open files with ulimit -n, or use fewer --workers",
    errno.ENFILE: "; this machine has no free file descriptor: close other programs",
    errno.EAGAIN: "; this machine allows no more processes: use fewer --workers, or raise the limit (ulimit -u, pids)",
    errno.ENOMEM: "; use fewer --workers, or smaller data",
}

_UNITS_S = {"s": 1, "m": 60, "h": 3600}


class Duration(click.ParamType[float]):
    """Duration in seconds, minutes or hours: 90s, 30m, 2h."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the duration in seconds."""
        if isinstance(value, int | float):
            return float(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", value)
        if match is None or float(match[1]) == 0:
            self.fail(f"{value!r} is not a valid duration; use 90s, 30m or 2h", param, ctx)
        return float(match[1]) * _UNITS_S[match[2]]


class ByteSize(click.ParamType[int]):
    """Size in bytes: 500M, 2G."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the size in bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG])(i?)B?", value, re.IGNORECASE)
        if match is None or float(match[1]) == 0:
            self.fail(f"{value!r} is not a valid size; use 500M or 2G", param, ctx)
        base = 1024 if match[3] else 1000
        return int(float(match[1]) * base ** (1 + "KMG".index(match[2].upper())))


class GpuList(click.ParamType[str]):
    """GPUs: auto, none, or a list such as 0,1."""

    name = "gpus"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the value without spaces around it."""
        try:
            return parse_gpus(str(value).strip())
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Integer(click.IntRange):
    """Integer in a range."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the integer."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            allowed = f"of at least {self.min}" if self.max is None else f"from {self.min} to {self.max}"
            self.fail(f"an integer {allowed} is allowed, not {value!r}", param, ctx)


class EnvironmentOption(click.Option):
    """Option that refuses an empty value, and whose errors name the environment variable that the value came from."""

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """Return the converted value."""
        if value == "" or (isinstance(value, tuple | list) and "" in value):
            raise click.BadParameter("the value is empty; give a value, or leave out the option", ctx, self)
        return super().type_cast_value(ctx, value)

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """Return the value of the environment variable, None if Kubernetes has set it.

        Kubernetes sets HPO_PORT=tcp://10.0.0.5:8080 in every pod next to a Service that is named hpo.
        """
        value = super().resolve_envvar_value(ctx)
        return None if value is not None and _KUBERNETES_ADDRESS.fullmatch(value) else value

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """Return the name of the option, and of the environment variable if it is the source of the value."""
        hint = super().get_error_hint(ctx)
        if ctx is not None and self.name and ctx.get_parameter_source(self.name) is ParameterSource.ENVIRONMENT:
            hint += f" (environment variable {ctx.auto_envvar_prefix}_{self.name.upper()})"
        return hint


# Every flag has an environment variable HPO_*, shown in its help. The flag has precedence.
option = functools.partial(click.option, show_envvar=True, cls=EnvironmentOption)


def command(prog: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Return a decorator for a command that is run as ``prog``."""
    settings = {"auto_envvar_prefix": "HPO", "show_default": True, "max_content_width": 100}
    return click.command(prog, context_settings=settings)


study_argument = click.argument("study", default=DEFAULT_STUDY, envvar="HPO_STUDY")
storage_option = option(
    "--storage", default=DEFAULT_URL, metavar="URL", help="Database of the study: a SQLite file or PostgreSQL."
)
storage_timeout_option = option(
    "--storage-timeout", type=Duration(), default="5m", help="Longest outage of the database to wait for."
)
workers_option = option(
    "--workers", type=Integer(1), help="Number of trials trained in parallel.  [default: the number of cores]"
)
confirm_option = option(
    "--confirm",
    type=Integer(0, MAX_CONFIRM),
    default=3,
    help="Number of best trials to repeat; three times as many complete.",
)
enqueue_option = option(
    "--enqueue",
    type=click.Path(path_type=Path),
    multiple=True,
    help="JSON file of parameters to try first; may be repeated.",
)
allow_import_option = option(
    "--allow-import", multiple=True, metavar="PACKAGE", help="Package of an estimator to import; may be repeated."
)
host_option = option(
    "--host", default=DEFAULT_HOST, help="Address of the dashboard, which is not protected by a password."
)
port_option = option("--port", type=Integer(1, 65535), default=DEFAULT_PORT, help="Port of the dashboard.")
allow_host_option = option(
    "--allow-host", multiple=True, metavar="NAME", help="Name of the dashboard, such as a proxy's; may be repeated."
)
quiet_option = option("--quiet", is_flag=True, help="Show no progress.")
verbose_option = option("--verbose", is_flag=True, help="Show tracebacks, also of workers.")


def is_given(name: str) -> bool:
    """Return whether the user has given an option or argument of the running command."""
    source = click.get_current_context().get_parameter_source(name)
    return source not in (None, ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)


def print_error(message: str) -> None:
    """Print a line on stderr."""
    click.echo(printable(message), err=True)


def print_data(text: str) -> None:
    """Print data on stdout, in UTF-8.

    Raises:
        OutputError: if stdout cannot be written.
    """
    click.echo(text.encode(), nl=False)


def print_copy(text: str, path: Path) -> None:
    """Print the content of a file on stdout. If nobody reads stdout any more, the file is enough.

    Raises:
        OutputError: if only a part of the text may be written, for example to a file on a full disk.
    """
    try:
        print_data(text)
    except ReaderGoneError:
        pass
    except OutputError as error:
        raise OutputError(f"{error}; the result is in {path}") from None


def main(command: click.Command) -> NoReturn:
    """Run a command and exit with its exit code.

    The code is 0 when done, 1 after an error, 2 after wrong usage, 130 after an interrupt.
    """
    protect_streams()
    try:
        code = _exit_code(command)
    except KeyboardInterrupt:
        # A stop signal can arrive while an error is reported.
        code = EXIT_INTERRUPTED
    sys.exit(code)


def _exit_code(command: click.Command) -> int:
    verbose = False
    received: list[int] = []

    def interrupt(number: int, _: FrameType | None) -> None:
        received.append(number)
        raise _Interrupt

    try:
        handle_stop_signals(interrupt)
        _check_working_folder()
        with command.make_context(command.name, sys.argv[1:]) as context:
            verbose = context.params["verbose"]
            code = command.invoke(context) or 0
    except click.exceptions.Exit as exit_:
        code = exit_.exit_code
    except click.UsageError as error:
        _show_usage(error)
        code = EXIT_USAGE
    except (KeyboardInterrupt, click.Abort):
        code = EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001  # the border of the process: an unexpected error is one line, too
        # An import that a stop signal interrupts can raise any error.
        code = EXIT_INTERRUPTED if received else _report(_describe(error), verbose)
    return code


def _describe(error: Exception) -> str:
    if isinstance(error, HpoError):
        return str(error)
    if isinstance(error, OSError | MemoryError):
        return f"{_machine_error(error)}; show the traceback with --verbose"
    return f"a bug in hpo: {type(error).__name__}: {error}; show the traceback with --verbose"


def _report(message: str, verbose: bool) -> int:
    if verbose:
        print_error(hide_passwords(traceback.format_exc().rstrip()))
    print_error(f"hpo: {hide_passwords(' '.join(hide_passwords(message).split()))}")
    return EXIT_ERROR


def _show_usage(error: click.UsageError) -> None:
    text = io.StringIO()
    error.show(text)
    print_error(hide_passwords(text.getvalue().rstrip()))


def _check_working_folder() -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise OutputError(f"the working folder cannot be used: {error.strerror}; change to another folder") from None


def _machine_error(error: OSError | MemoryError) -> str:
    """Describe an error of the machine that no part of hpo expects."""
    if isinstance(error, OSError) and error.strerror:
        place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        advice = _ADVICE.get(error.errno or 0, "")
        return f"{place}{error.strerror} ({type(error).__name__}){advice}"
    return f"{type(error).__name__}: {error}"


class _Interrupt(KeyboardInterrupt):
    """Stop signal.

    If KeyboardInterrupt itself is raised in code compiled from text, as dataclasses and SQLAlchemy do, CPython ends
    with SIGINT regardless of the exit code.
    """
