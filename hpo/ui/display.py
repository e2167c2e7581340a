"""What people see while a study runs: a live view on a terminal, a line every few seconds elsewhere."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from hpo.config.study import StudyConfig
from hpo.storage.leases import Progress
from hpo.storage.study import best_of
from hpo.storage.trial_cache import TrialView

LINE_SECONDS = 5.0
MAX_ROWS = 16  # running trials on a terminal


@dataclass(frozen=True)
class Running:
    """A trial that somebody trains; ``accuracy`` is its last reported one."""

    number: int
    epoch: int
    epochs: int
    accuracy: float | None


@dataclass(frozen=True)
class Snapshot:
    """A study at one moment."""

    budget: int
    complete: int
    pruned: int
    failed: int
    paused: int
    promoted: int  # that have not ended, and are not paused again
    best: FrozenTrial | None
    running: list[Running]

    @property
    def finished(self) -> int:
        """How many trials have ended."""
        return self.complete + self.pruned + self.failed

    @property
    def tried(self) -> int:
        """How many have ended or come to a rung: to go on from there is for few."""
        return self.finished + self.paused + self.promoted


def take_snapshot(spec: StudyConfig, budget: int, known: TrialView, unfinished: Sequence[Progress]) -> Snapshot:
    """Put together what the database says."""
    trials, paused = known
    others = [progress for progress in unfinished if progress.number not in paused]
    states = [trial.state for trial in trials]
    return Snapshot(
        budget=max(budget, len(trials)),
        complete=states.count(TrialState.COMPLETE),
        pruned=states.count(TrialState.PRUNED),
        failed=states.count(TrialState.FAIL),
        paused=len(paused),
        promoted=sum(progress.promoted for progress in others),
        best=best_of(trials),
        running=[
            _running(spec, trials[progress.number], progress.epoch)
            for progress in others
            if progress.owned and progress.number < len(trials)
        ],
    )


def _running(spec: StudyConfig, trial: FrozenTrial, epoch: int) -> Running:
    reported = max(trial.intermediate_values, default=0)
    return Running(
        number=trial.number,
        epoch=max(epoch, reported),
        epochs=spec.hyperparameters(trial.params).epochs,
        accuracy=trial.intermediate_values.get(reported),
    )


@dataclass
class Pace:
    """Trials per minute and the time left, over what this launch has seen."""

    started: float = field(default_factory=time.monotonic)
    tried_before: int | None = None

    def per_minute(self, snapshot: Snapshot) -> float:
        """Trials that ended or came to their first rung, a minute."""
        if self.tried_before is None:
            self.tried_before = snapshot.tried
        elapsed = time.monotonic() - self.started
        return 60 * (snapshot.tried - self.tried_before) / elapsed if elapsed > 0 else 0.0

    def left(self, snapshot: Snapshot) -> str:
        """The time that the rest of the budget takes at this pace."""
        rate, left = self.per_minute(snapshot), snapshot.budget - snapshot.tried
        if not rate or (not left and snapshot.finished < snapshot.budget):
            return "-:--"
        return clock(60 * left / rate)


class Display(Protocol):
    """Somewhere to show snapshots and notes."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, snapshot: Snapshot) -> None:
        """Show how the study stands."""

    def note(self, message: str) -> None:
        """Tell something that is worth a line of its own."""


class Silent:
    """No progress; notes are still told."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, snapshot: Snapshot) -> None:
        """Nothing."""

    def note(self, message: str) -> None:
        """One line."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)


class Lines(Silent):
    """One line every few seconds, for a pipe or a log file."""

    def __init__(self, console: Console, name: str) -> None:
        super().__init__(console)
        self._name = name
        self._pace = Pace()
        self._next = 0.0
        self._ended = False

    def show(self, snapshot: Snapshot) -> None:
        """A line, if trials have started and it is time for one, or the study is at its end."""
        rate, left = self._pace.per_minute(snapshot), self._pace.left(snapshot)
        at_end = snapshot.finished == snapshot.budget
        started = bool(snapshot.running or snapshot.tried)
        if not started or (time.monotonic() < self._next and (not at_end or self._ended)):
            return
        self._ended = at_end
        self._next = time.monotonic() + LINE_SECONDS
        self.note(
            f"{self._name}: {_counts(snapshot)}, {len(snapshot.running)} running, best {_best(snapshot)}, "
            f"{rate:.1f} trials/min, {left} left"
        )


class Screen(Silent):
    """A live view on a terminal."""

    def __init__(self, console: Console, name: str) -> None:
        super().__init__(console)
        self._name = name
        self._pace = Pace()
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, snapshot: Snapshot) -> None:
        """Draw the study anew."""
        self._live.update(self._draw(snapshot), refresh=True)

    def _draw(self, snapshot: Snapshot) -> RenderableType:
        rate, left = self._pace.per_minute(snapshot), self._pace.left(snapshot)
        head = Table.grid(padding=(0, 2))
        head.add_row("[bold]" + escape(self._name), _counts(snapshot))
        head.add_row(ProgressBar(snapshot.budget, snapshot.tried, width=24), f"{rate:.1f} trials/min, {left} left")
        head.add_row("best", f"[green]{_best(snapshot)}[/]")
        if snapshot.best is not None:
            head.add_row("", "  ".join(f"{key} {_short(value)}" for key, value in snapshot.best.params.items()))
        return Group(head, self._draw_running(snapshot.running)) if snapshot.running else head

    def _draw_running(self, running: list[Running]) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_row("[dim]trial", "", "[dim]epoch", "[dim]accuracy")
        for trial in running[:MAX_ROWS]:
            table.add_row(
                f"{trial.number:5d}",
                ProgressBar(trial.epochs, trial.epoch, width=16),
                f"{trial.epoch:4d}/{trial.epochs}",
                "-" if trial.accuracy is None else f"{trial.accuracy:.4f}",
            )
        if len(running) > MAX_ROWS:
            table.add_row("", f"and {len(running) - MAX_ROWS} more")
        return table


def display_for(console: Console, name: str, quiet: bool) -> Display:
    """The view that fits where stderr goes."""
    if quiet:
        return Silent(console)
    return Screen(console, name) if console.is_terminal else Lines(console, name)


def summary(parameters: dict[str, Any]) -> Table:
    """The short table at the end, from the exported parameters."""
    metrics, trials = parameters["metrics"], parameters["trials"]
    table = Table(title=f"{escape(parameters['study'])}: trial {parameters['trial']} is the best", title_justify="left")
    table.add_column("accuracy")
    table.add_column("", justify="right")
    table.add_column("parameter")
    table.add_column("", justify="right")
    left = [(part, f"{metrics[f'{part}_accuracy']:.4f}") for part in ("train", "validation", "test")]
    if confirmation := parameters["confirmation"]:
        error = confirmation["standard_error"]
        left.append(("confirmed", f"{confirmation['mean']:.4f}" + (f" ± {error:.4f}" if error is not None else "")))
    left += [(f"trials {state}", str(count)) for state, count in trials.items()]
    right = [(key, _short(value)) for key, value in parameters["params"].items()]
    for row in range(max(len(left), len(right))):
        table.add_row(*(left[row] if row < len(left) else ("", "")), *(right[row] if row < len(right) else ("", "")))
    return table


def clock(seconds: float) -> str:
    """Hours, minutes and seconds as a clock shows them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def count_of(number: int, what: str) -> str:
    """1 trial, 2 trials."""
    return f"{number} {what}" + ("" if number == 1 else "s")


def _counts(snapshot: Snapshot) -> str:
    counts = [f"{snapshot.complete} complete"]
    for count, state in ((snapshot.paused, "paused"), (snapshot.pruned, "pruned"), (snapshot.failed, "failed")):
        counts += [f"{count} {state}"] * (count > 0)
    return f"{snapshot.tried}/{snapshot.budget} trials: {', '.join(counts)}"


def _best(snapshot: Snapshot) -> str:
    return "-" if snapshot.best is None else f"{snapshot.best.value:.4f} (trial {snapshot.best.number})"


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
