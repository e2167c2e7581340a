"""What people see while a study runs, and at its end."""

import io
from datetime import datetime
from types import SimpleNamespace

import pytest
from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from hpo.config.study import StudyConfig
from hpo.storage.leases import Progress
from hpo.storage.trial_cache import TrialView
from hpo.ui import display
from hpo.ui.display import (
    LINE_SECONDS,
    MAX_ROWS,
    Lines,
    Pace,
    Running,
    Screen,
    Silent,
    Snapshot,
    clock,
    display_for,
    summary,
    take_snapshot,
)

SPEC = StudyConfig.model_validate(
    {
        "study": {"name": "s"},
        "data": {"dataset": "digits"},
        "train": {"learning_rate": 0.1, "regularization": 0.0, "hidden_size": 4},
        "space": {"epochs": {"low": 1, "high": 500}},
    }
)
NAME = "[red]mine"  # not a colour


def trial(number, state=TrialState.RUNNING, value=None, epochs=100, reported=()):
    now = datetime(2026, 1, 1)
    return FrozenTrial(
        number=number,
        state=state,
        value=value,
        datetime_start=now,
        datetime_complete=now if state.is_finished() else None,
        params={"epochs": epochs},
        distributions={"epochs": IntDistribution(1, 500)},
        user_attrs={},
        system_attrs={},
        intermediate_values=dict(reported),
        trial_id=number,
    )


def complete(number, value):
    return trial(number, TrialState.COMPLETE, value)


def owned(number, epoch=0, promoted=False):
    return Progress(number, epoch, attempt=1, owned=True, promoted=promoted)


def known(*trials, paused=()):
    return TrialView(list(trials), dict.fromkeys(paused, 1))


def snapshot(finished=0, budget=9, best=None, running=(), **counts):
    counts = {"complete": finished, "pruned": 0, "failed": 0, "paused": 0, "promoted": 0} | counts
    return Snapshot(budget=budget, best=best, running=list(running), **counts)


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    """The same terminal wherever the tests run."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture
def now(monkeypatch):
    """The display's clock, which stands still until it is moved."""
    time = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(display, "time", SimpleNamespace(monotonic=lambda: time.seconds))
    return time


def make_console(width=100, terminal=False):
    return Console(file=io.StringIO(), width=width, height=60, force_terminal=terminal, color_system=None)


def written(console):
    return console.file.getvalue()


def flow(text):
    """What was written, without line breaks."""
    return " ".join(text.split())


# The snapshot


def test_every_state_is_counted():
    trials = [
        complete(0, 0.5),
        trial(1, TrialState.PRUNED, 0.1),
        trial(2, TrialState.FAIL),
        trial(3),
        complete(4, 0.6),
        trial(5, TrialState.WAITING),
        trial(6, TrialState.PRUNED),
        trial(7, TrialState.PRUNED),
    ]
    shot = take_snapshot(SPEC, 20, known(*trials), [])
    assert (shot.complete, shot.pruned, shot.failed, shot.finished, shot.budget) == (2, 3, 1, 6, 20)


def test_a_budget_below_the_trials_that_are_there_is_the_trials():
    assert take_snapshot(SPEC, 1, known(complete(0, 0.5), complete(1, 0.5)), []).budget == 2


def test_before_any_trial_there_is_nothing():
    assert take_snapshot(SPEC, 3, known(), []) == snapshot(budget=3)


@pytest.mark.parametrize(
    ("values", "best"), [([0.5, 0.7, 0.6], 1), ([0.5, 0.7, 0.7], 1), ([0.7, 0.7, 0.7], 0), ([0.0], 0)]
)
def test_the_best_is_the_highest_and_of_several_the_first(values, best):
    trials = [complete(number, value) for number, value in enumerate(values)]
    assert take_snapshot(SPEC, 9, known(*trials), []).best.number == best
    assert take_snapshot(SPEC, 9, known(*trials[::-1]), []).best.number == best


def test_only_complete_trials_can_be_the_best():
    trials = [trial(0, TrialState.PRUNED, 0.9), trial(1, TrialState.FAIL), trial(2, reported=[(1, 0.9)])]
    assert take_snapshot(SPEC, 9, known(*trials), []).best is None
    assert take_snapshot(SPEC, 9, known(*trials, complete(3, 0.1)), []).best.number == 3


def test_running_trials_have_their_length_and_last_accuracy():
    trials = [
        complete(0, 0.5),
        trial(1, epochs=200, reported=[(1, 0.2), (9, 0.4)]),
        trial(2, epochs=300),
    ]
    shot = take_snapshot(SPEC, 9, known(*trials), [owned(1, epoch=12), owned(2, epoch=3)])
    assert shot.running == [Running(1, 12, 200, 0.4), Running(2, 3, 300, None)]


def test_a_report_that_is_newer_than_the_checkpoint_tells_the_epoch():
    shot = take_snapshot(SPEC, 9, known(trial(0, reported=[(27, 0.4)])), [owned(0, epoch=12)])
    assert shot.running == [Running(0, 27, 100, 0.4)]


def test_what_nobody_trains_is_not_running():
    abandoned = Progress(0, 5, attempt=1, owned=False)
    assert take_snapshot(SPEC, 9, known(trial(0)), [abandoned]).running == []


def test_a_trial_that_was_created_since_is_left_for_the_next_look():
    assert take_snapshot(SPEC, 9, known(trial(0)), [owned(0), owned(1)]).running == [Running(0, 0, 100, None)]


def test_those_that_wait_at_a_rung_are_paused_and_those_that_went_on_are_promoted():
    trials = [complete(0, 0.5), trial(1), trial(2), trial(3), trial(4), trial(5)]
    waiting = [Progress(number, 9, attempt=1, owned=False, promoted=number == 2) for number in (1, 2)]
    left = Progress(5, 9, attempt=3, owned=False, promoted=True)
    shot = take_snapshot(
        SPEC, 20, known(*trials, paused={1, 2}), [*waiting, owned(3), owned(4, 9, promoted=True), left]
    )
    assert (shot.complete, shot.paused, shot.promoted, shot.finished, shot.tried) == (1, 2, 2, 1, 5)
    assert [running.number for running in shot.running] == [3, 4]


def test_a_trial_that_was_promoted_since_is_still_paused():
    shot = take_snapshot(SPEC, 9, known(trial(0), paused={0}), [owned(0, 9, promoted=True)])
    assert (shot.paused, shot.promoted, shot.tried, shot.running) == (1, 0, 1, [])


# Clock and pace


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0:00"),
        (0.4, "0:00"),
        (59.6, "1:00"),
        (61, "1:01"),
        (600, "10:00"),
        (3599.6, "1:00:00"),
        (3661, "1:01:01"),
        (360_000, "100:00:00"),
    ],
)
def test_the_clock(seconds, shown):
    assert clock(seconds) == shown


def test_the_pace_counts_those_that_wait_and_none_twice(now):
    pace = Pace(started=now.seconds)
    assert pace.per_minute(snapshot(0, budget=100, paused=40)) == 0.0
    now.seconds += 120
    assert pace.per_minute(snapshot(3, budget=100, paused=45, promoted=2)) == 5.0
    assert pace.left(snapshot(3, budget=100, paused=45, promoted=2)) == "10:00"


def test_nobody_knows_how_long_those_that_were_promoted_take(now):
    pace = Pace(started=now.seconds)
    pace.per_minute(snapshot(0, paused=1))
    now.seconds += 120
    assert pace.left(snapshot(1, budget=9, paused=7, promoted=1)) == "-:--"
    assert pace.left(snapshot(9, budget=9)) == "0:00"


def test_the_pace_counts_what_ended_since_the_launch(now):
    pace = Pace(started=now.seconds)
    assert pace.per_minute(snapshot(40, budget=100)) == 0.0
    now.seconds += 120
    assert pace.per_minute(snapshot(50, budget=100)) == 5.0
    assert pace.left(snapshot(50, budget=100)) == "10:00"


def test_without_a_pace_nobody_knows_what_is_left(now):
    pace = Pace(started=now.seconds)
    now.seconds += 60
    assert pace.left(snapshot(3)) == "-:--"


# Lines


def show(lines, console, shot):
    """What one more snapshot adds."""
    before = len(written(console))
    lines.show(shot)
    return written(console)[before:]


def test_a_line_tells_how_the_study_stands(now):
    console = make_console()
    shot = snapshot(best=complete(3, 0.98765), running=[Running(4, 1, 9, None)], complete=4, pruned=2, failed=1)
    line = show(Lines(console, "mine"), console, shot)
    assert line.count("\n") == 1
    assert line.startswith("mine: 7/9 trials: 4 complete, 2 pruned, 1 failed, 1 running, best 0.9877 (trial 3), ")
    assert "trials/min" in line


def test_a_line_tells_how_many_are_paused(now):
    console = make_console()
    shot = snapshot(5, budget=100, paused=36, promoted=1, running=[Running(4, 1, 9, None)])
    line = show(Lines(console, "mine"), console, shot)
    assert line.startswith("mine: 42/100 trials: 5 complete, 36 paused, 1 running, best -, ")


def test_a_line_is_told_where_all_wait(now):
    console = make_console()
    assert "2/9 trials: 0 complete, 2 paused, 0 running" in show(Lines(console, "mine"), console, snapshot(0, paused=2))


def test_where_all_wait_the_end_has_not_come(now):
    console = make_console()
    lines = Lines(console, "mine")
    assert "9/9" in show(lines, console, snapshot(1, paused=8))
    assert show(lines, console, snapshot(1, paused=8)) == ""
    assert "9 complete" in show(lines, console, snapshot(9))


def test_nothing_is_said_of_failures_that_there_are_not(now):
    console = make_console()
    line = show(Lines(console, "mine"), console, snapshot(2))
    assert not any(word in line for word in ("failed", "paused", "pruned"))
    assert "best -," in line


def test_a_line_is_followed_by_the_next_after_some_seconds(now):
    console = make_console()
    lines = Lines(console, "mine")
    assert "1/9" in show(lines, console, snapshot(1))
    assert show(lines, console, snapshot(1)) == ""
    now.seconds += LINE_SECONDS - 0.1
    assert show(lines, console, snapshot(2)) == ""
    now.seconds += 0.2
    assert "3/9" in show(lines, console, snapshot(3))
    assert show(lines, console, snapshot(4)) == ""


def test_nothing_is_told_before_a_trial_has_started(now):
    console = make_console()
    lines = Lines(console, "mine")
    assert show(lines, console, snapshot(0)) == ""
    assert "0/9" in show(lines, console, snapshot(0, running=[Running(0, 0, 9, None)]))


def test_the_last_line_is_told_at_once_and_once(now):
    console = make_console()
    lines = Lines(console, "mine")
    show(lines, console, snapshot(8))
    assert "9/9" in show(lines, console, snapshot(9))
    now.seconds += LINE_SECONDS / 2
    assert show(lines, console, snapshot(9)) == ""


def test_a_long_line_is_not_broken(now):
    console = make_console(width=20)
    assert show(Lines(console, "mine"), console, snapshot(2)).count("\n") == 1


# Screen


BUSY = snapshot(
    best=complete(3, 0.98765),
    running=[Running(4, 30, 200, 0.25), Running(5, 0, 300, None)],
    budget=50,
    complete=4,
    pruned=2,
    failed=1,
)


def drawn(shot, width=100, name="mine"):
    console = make_console(width, terminal=True)
    with Screen(console, name) as screen:
        screen.show(shot)
        return written(console)


def test_the_screen_shows_the_study_and_its_running_trials():
    text = flow(drawn(BUSY))
    for part in ("mine", "7/50 trials: 4 complete, 2 pruned, 1 failed", "0.9877 (trial 3)", "epochs 100"):
        assert part in text
    assert "30/200 0.2500" in text
    assert "0/300 -" in text


@pytest.mark.parametrize("shot", [BUSY, snapshot(), snapshot(9), snapshot(0, budget=0)])
@pytest.mark.parametrize("width", [100, 40])
def test_the_screen_draws_at_any_width(shot, width):
    text = drawn(shot, width)
    assert "mine" in text
    assert f"/{shot.budget}" in flow(text)


def test_a_narrow_screen_keeps_the_counts_and_the_best():
    text = flow(drawn(BUSY, width=40))
    assert "7/50" in text
    assert "0.9877" in text


def test_many_running_trials_are_cut_short():
    running = [Running(number, 1, 9, None) for number in range(MAX_ROWS + 3)]
    text = drawn(snapshot(running=running, budget=99))
    assert "and 3 more" in text
    assert text.count("1/9") == MAX_ROWS


def test_the_screen_is_gone_at_the_end_and_notes_stay():
    console = make_console(terminal=True)
    with Screen(console, "mine") as screen:
        screen.show(BUSY)
        screen.note("worker 7 died")
    *_, after_the_last_erasure = written(console).split("\x1b[2K")
    assert "worker 7 died" in written(console)
    assert "7/50" in written(console)
    assert "7/50" not in after_the_last_erasure


# All of them


@pytest.mark.parametrize("make", [Silent, lambda console: Lines(console, "mine")])
@pytest.mark.parametrize("message", ["worker 7 died in trial 3", "postgresql://[::1]/hpo", "[red]stopped[/red]", "[/]"])
def test_a_note_is_told_as_it_is(make, message):
    console = make_console(width=20)
    with make(console) as shown:
        shown.note(message)
    assert written(console) == f"{message}\n"


def test_silent_says_nothing_but_notes():
    console = make_console(terminal=True)
    with Silent(console) as silent:
        silent.show(BUSY)
        assert written(console) == ""
        silent.note("note")
    assert written(console) == "note\n"


def test_a_name_is_no_markup_in_lines(now):
    console = make_console()
    assert show(Lines(console, NAME), console, BUSY).startswith(f"{NAME}: ")


def test_a_name_is_no_markup_on_the_screen():
    assert NAME in drawn(BUSY, name=NAME)


@pytest.mark.parametrize(
    ("terminal", "quiet", "kind"), [(True, False, Screen), (False, False, Lines), (True, True, Silent)]
)
def test_the_display_fits_where_it_goes(terminal, quiet, kind):
    assert type(display_for(make_console(terminal=terminal), "mine", quiet)) is kind


# The summary


def parameters(study="mine"):
    return {
        "study": study,
        "trial": 17,
        "params": {"learning_rate": 0.0022390342, "hidden_size": 330, "epochs": 412, "momentum": 0.0},
        "metrics": {
            "train_accuracy": 0.62718,
            "validation_accuracy": 0.551,
            "test_accuracy": 0.5523,
            "train_loss": 1.5,
        },
        "confirmation": None,
        "trials": {"complete": 40, "pruned": 59, "failed": 1},
    }


def printed(table):
    console = make_console()
    console.print(table)
    return written(console)


def test_the_summary_has_the_best_trial_its_accuracies_and_its_parameters():
    text = printed(summary(parameters()))
    assert "mine: trial 17 is the best" in text
    rows = [[cell for cell in line.replace("│", " ").split("  ") if cell] for line in text.splitlines()]
    cells = [cell.strip() for row in rows for cell in row]
    for name, value in [
        ("train", "0.6272"),
        ("validation", "0.5510"),
        ("test", "0.5523"),
        ("trials complete", "40"),
        ("trials pruned", "59"),
        ("trials failed", "1"),
        ("learning_rate", "0.002239"),
        ("hidden_size", "330"),
        ("epochs", "412"),
        ("momentum", "0"),
    ]:
        assert cells[cells.index(name) + 1] == value


@pytest.mark.parametrize(("error", "shown"), [(0.00213, "0.5480 ± 0.0021"), (None, "0.5480")])
def test_the_summary_has_what_confirmed_it(error, shown):
    text = printed(summary(parameters() | {"confirmation": {"mean": 0.548, "standard_error": error}}))
    (row,) = [line for line in text.splitlines() if "confirmed" in line]
    assert [cell.strip() for cell in row.split("│")][2] == shown
    assert "confirmed" not in printed(summary(parameters()))


def test_the_summary_has_sizes_that_are_listed():
    best = parameters()
    best["params"] = {"hidden_size": None, "hidden_layers": [200, 150]}
    rows = [[cell.strip() for cell in line.split("│")] for line in printed(summary(best)).splitlines()]
    assert {row[3]: row[4] for row in rows if len(row) > 4 and row[3]} == {
        "hidden_size": "-",
        "hidden_layers": "[200, 150]",
    }


@pytest.mark.parametrize("extra", [0, 1, 9])
def test_the_summary_has_every_parameter_however_many(extra):
    best = parameters()
    best["params"] = {f"parameter_{number}": number for number in range(extra)}
    text = printed(summary(best))
    assert all(f"parameter_{number}" in text for number in range(extra))
    assert "trials failed" in text


def test_a_name_is_no_markup_in_the_summary():
    assert f"{NAME}: trial 17" in printed(summary(parameters(NAME)))
