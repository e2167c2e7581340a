"""Progress of a study: a live view on a terminal, a log line every few seconds elsewhere."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape as escape_markup
from rich.progress_bar import ProgressBar
from rich.table import Table

from hpo.fleet.status import ProgressListener, StudyStatus
from hpo.utils.text import format_duration, printable

LINE_INTERVAL_S = 5.0

# Running trials shown on a terminal.
MAX_ROWS = 16

_LOGGER = logging.getLogger(__name__)


class Pace:
    """Trials per minute since the start of this launch, and the remaining time at that pace."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started_at = clock()
        self._tried_before: int | None = None
        self._tried = -1
        self._ends_at: float | None = None

    def per_minute(self, status: StudyStatus) -> float:
        """Return the number of trials per minute that finished or reached their first rung."""
        if self._tried_before is None:
            self._tried_before = status.tried
        elapsed_s = self._clock() - self._started_at
        return 60 * (status.tried - self._tried_before) / elapsed_s if elapsed_s > 0 else 0.0

    def remaining(self, status: StudyStatus) -> str:
        """Return the time for the remaining budget, or -:-- if it is unknown.

        The estimate is made when a trial is tried, and falls until the next one. It is unknown once it has passed.
        """
        rate, remaining = self.per_minute(status), status.budget - status.tried
        if status.tried != self._tried:
            self._tried = status.tried
            self._ends_at = self._clock() + 60 * remaining / rate if rate else None
        if self._ends_at is None or status.is_unlimited or (not remaining and status.finished < status.budget):
            return "-:--"
        left_s = self._ends_at - self._clock()
        return format_duration(max(0.0, left_s)) if left_s > 0 or not remaining else "-:--"


class QuietDisplay:
    """Display of messages only."""

    def __init__(self, study: str) -> None:
        self._study = study

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, status: StudyStatus) -> None:
        """Show nothing."""

    def note(
        self, message: str, *, level: int = logging.INFO, trial: str | None = None, worker: int | None = None
    ) -> None:
        """Log a message with the study, trial and worker that it is about."""
        _LOGGER.log(level, "%s", message, extra={"study": self._study, "trial": trial, "worker": worker})


class LogDisplay(QuietDisplay):
    """Progress as a log line every few seconds, for a pipe or a log file."""

    def __init__(
        self, study: str, interval_s: float = LINE_INTERVAL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(study)
        self._interval_s = interval_s
        self._clock = clock
        self._pace = Pace(clock)
        self._next_line_at = clock()
        self._at_end = False

    def show(self, status: StudyStatus) -> None:
        """Log the status if a line is due, or at the end of the study.

        Nothing is logged before the first trial has started.
        """
        rate, remaining = self._pace.per_minute(status), self._pace.remaining(status)
        at_end = status.finished == status.budget
        started = bool(status.running or status.tried)
        if not started or (self._clock() < self._next_line_at and (not at_end or self._at_end)):
            return
        self._at_end = at_end
        self._next_line_at = self._clock() + self._interval_s
        self.note(
            f"{_counts(status)}, {len(status.running)} running, best {_best(status)}, "
            f"{rate:.1f} trials/min, {remaining} left"
        )


class LiveDisplay(QuietDisplay):
    """Live view on a terminal."""

    def __init__(self, console: Console, study: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(study)
        self._pace = Pace(clock)
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, status: StudyStatus) -> None:
        """Redraw the view."""
        self._live.update(self._draw(status), refresh=True)

    def _draw(self, status: StudyStatus) -> RenderableType:
        rate, remaining = self._pace.per_minute(status), self._pace.remaining(status)
        head = Table.grid(padding=(0, 2))
        head.add_row("[bold]" + _escape(self._study), _counts(status))
        bar = "" if status.is_unlimited else ProgressBar(status.budget, status.finished, width=24)
        head.add_row(bar, f"{rate:.1f} trials/min, {remaining} left")
        head.add_row("best", f"[green]{_best(status)}[/]")
        if status.best is not None:
            head.add_row("", _escape("  ".join(f"{key} {_short(value)}" for key, value in status.best.params.items())))
        return Group(head, _running_table(status)) if status.running else head


def _running_table(status: StudyStatus) -> Table:
    running = status.running
    table = Table.grid(padding=(0, 2))
    table.add_row("[dim]trial", "", f"[dim]{status.step_name}", f"[dim]{_escape(status.metric)}")
    for trial in running[:MAX_ROWS]:
        is_known = trial.n_steps is not None
        table.add_row(
            f"{status.name(trial.number):>5}",
            ProgressBar(trial.n_steps, trial.step, width=16) if is_known else "",
            f"{trial.step:4d}/{trial.n_steps}" if is_known else f"{trial.step:4d}",
            "-" if trial.value is None else f"{trial.value:.4f}",
        )
    if len(running) > MAX_ROWS:
        table.add_row("", f"and {len(running) - MAX_ROWS} more")
    return table


def display_for(console: Console, study: str, quiet: bool) -> ProgressListener:
    """Create the display that fits the console."""
    if quiet:
        return QuietDisplay(study)
    # A dumb terminal cannot move the cursor.
    is_live = console.is_terminal and not console.is_dumb_terminal
    return LiveDisplay(console, study) if is_live else LogDisplay(study)


@dataclass(frozen=True)
class _Cell:
    name: str = ""
    value: str = ""


def summary(parameters: dict[str, Any]) -> Table:
    """Create the table of the result from the exported parameters."""
    table = Table(
        title=f"{_escape(parameters['study'])}: trial {parameters['trial']} is the best", title_justify="left"
    )
    table.add_column(str(parameters.get("metric", "accuracy")))
    table.add_column("", justify="right")
    table.add_column("parameter")
    table.add_column("", justify="right")
    left = _result_cells(parameters)
    right = [_Cell(key, _short(value)) for key, value in parameters["params"].items()]
    rows = max(len(left), len(right))
    for a, b in zip(_padded(left, rows), _padded(right, rows), strict=True):
        table.add_row(*map(_escape, (a.name, a.value, b.name, b.value)))
    return table


def _result_cells(parameters: dict[str, Any]) -> list[_Cell]:
    metrics, metric = parameters["metrics"], parameters.get("metric", "accuracy")
    train, validation, test = (
        _Cell(part, _value(metrics[f"{part}_{metric}"])) for part in ("train", "validation", "test")
    )
    cells = [train, validation, *_error_cells(parameters["validation"]["sampling_error"]), test]
    if confirmation := parameters["confirmation"]:
        cells.append(_Cell("confirmed", _value(confirmation["mean"])))
        cells += _error_cells(confirmation["standard_error"])
    return cells + [_Cell(f"trials {state}", str(count)) for state, count in parameters["trials"].items()]


def _error_cells(error: float | None) -> list[_Cell]:
    return [] if error is None else [_Cell("  standard error", f"± {error:.4f}")]


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _padded(cells: list[_Cell], length: int) -> list[_Cell]:
    return cells + [_Cell()] * (length - len(cells))


def _counts(status: StudyStatus) -> str:
    counts = [f"{status.complete} complete"]
    for count, state in ((status.paused, "paused"), (status.pruned, "pruned"), (status.failed, "failed")):
        counts += [f"{count} {state}"] * (count > 0)
    total = "" if status.is_unlimited else f"/{status.budget}"
    return f"{status.finished}{total} trials finished: {', '.join(counts)}"


def _best(status: StudyStatus) -> str:
    if status.best is not None:
        return f"{status.best.value:.4f} (trial {status.name(status.best.number)})"
    if (leader := status.leader) is not None:
        return (
            f"{leader.value:.4f} so far (trial {status.name(leader.number)} after {status.step_name} {leader.step}, "
            f"{leader.state})"
        )
    return "-"


def _escape(text: str) -> str:
    """Return text without markup and without characters that control the terminal."""
    return escape_markup(printable(text))


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
