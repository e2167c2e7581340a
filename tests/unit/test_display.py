"""Display of a study's progress and of its result."""

import io
import logging
import re
from dataclasses import replace

import pytest
from fakes import FakeClock
from optuna.trial import TrialState, create_trial
from rich.console import Console

from hpo.fleet.status import Leader, RunningTrial, StudyStatus
from hpo.ui.display import (
    LINE_INTERVAL_S,
    MAX_ROWS,
    LiveDisplay,
    LogDisplay,
    Pace,
    QuietDisplay,
    display_for,
    summary,
)
from hpo.ui.logs import configure_logging
from hpo.utils.text import format_duration

# The name of a study that looks like a color.
NAME = "[red]mine"


def complete(number, value):
    trial = create_trial(state=TrialState.COMPLETE, value=value)
    trial.number = number
    trial.params = {"epochs": 100}
    return trial


def make_status(finished=0, budget=9, best=None, running=(), **counts):
    counts = {"complete": finished, "pruned": 0, "failed": 0, "paused": 0, "promoted": 0} | counts
    return StudyStatus(budget=budget, best=best, running=list(running), **counts)


@pytest.fixture(autouse=True)
def _same_terminal_everywhere(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture
def clock():
    return FakeClock()


def make_console(width=100, terminal=False):
    return Console(file=io.StringIO(), width=width, height=60, force_terminal=terminal, color_system=None)


def make_log_console(width=100, terminal=False):
    """Return a console that receives the log."""
    console = make_console(width, terminal)
    configure_logging(console)
    return console


def written(console):
    return console.file.getvalue()


def joined(text):
    """Return the text without line breaks."""
    return " ".join(text.split())


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
def test_duration_is_formatted(seconds, shown):
    assert format_duration(seconds) == shown


def test_pace_counts_paused_trials_once(clock):
    pace = Pace(clock)
    assert pace.per_minute(make_status(0, budget=100, paused=40)) == 0.0
    clock.advance(120)
    assert pace.per_minute(make_status(3, budget=100, paused=45, promoted=2)) == 5.0
    assert pace.remaining(make_status(3, budget=100, paused=45, promoted=2)) == "10:00"


def test_remaining_time_of_promoted_trials_is_unknown(clock):
    pace = Pace(clock)
    pace.per_minute(make_status(0, paused=1))
    clock.advance(120)
    assert pace.remaining(make_status(1, budget=9, paused=7, promoted=1)) == "-:--"
    assert pace.remaining(make_status(9, budget=9)) == "0:00"


def test_pace_counts_trials_since_launch(clock):
    pace = Pace(clock)
    assert pace.per_minute(make_status(40, budget=100)) == 0.0
    clock.advance(120)
    assert pace.per_minute(make_status(50, budget=100)) == 5.0
    assert pace.remaining(make_status(50, budget=100)) == "10:00"


def test_remaining_time_without_pace_is_unknown(clock):
    pace = Pace(clock)
    clock.advance(60)
    assert pace.remaining(make_status(3)) == "-:--"


def test_remaining_time_falls_between_trials(clock):
    pace = Pace(clock)
    pace.per_minute(make_status(0, budget=10))
    clock.advance(60)
    assert pace.remaining(make_status(2, budget=10)) == "4:00"
    clock.advance(90)
    assert pace.remaining(make_status(2, budget=10)) == "2:30"
    clock.advance(160)
    assert pace.remaining(make_status(2, budget=10)) == "-:--"
    assert pace.remaining(make_status(5, budget=10)) == "5:10"


@pytest.mark.parametrize("state", ["running", "paused", "pruned"])
def test_best_report_is_shown_before_a_trial_is_complete(log_display, console, state):
    status = replace(make_status(0, paused=1), leader=Leader(3, 33, 0.98, state))
    assert f"best 0.9800 so far (trial 3 after epoch 33, {state}), " in show(log_display, console, status)


def show(display, console, status):
    """Return the text that one more status adds."""
    before = len(written(console))
    display.show(status)
    return written(console)[before:]


@pytest.fixture
def console():
    return make_log_console()


@pytest.fixture
def log_display(console, clock):
    return LogDisplay("mine", clock=clock)


def test_line_has_counts_and_best(log_display, console):
    running = [RunningTrial(4, 1, 9, None)]
    status = make_status(best=complete(3, 0.98765), running=running, complete=4, pruned=2, failed=1)
    line = show(log_display, console, status)
    assert line.count("\n") == 1
    assert " INFO mine: 7/9 trials finished: 4 complete, 2 pruned, 1 failed, 1 running, best 0.9877 (trial 3), " in line
    assert "trials/min" in line


def test_line_counts_paused_trials(log_display, console):
    status = make_status(5, budget=100, paused=36, promoted=1, running=[RunningTrial(4, 1, 9, None)])
    assert "mine: 5/100 trials finished: 5 complete, 36 paused, " in show(log_display, console, status)


def test_line_is_logged_while_all_trials_are_paused(log_display, console):
    line = show(log_display, console, make_status(0, paused=2))
    assert "0/9 trials finished: 0 complete, 2 paused, 0 running" in line


def test_paused_trials_are_not_the_end(log_display, console):
    assert "1/9 trials finished: 1 complete, 8 paused" in show(log_display, console, make_status(1, paused=8))
    assert show(log_display, console, make_status(1, paused=8)) == ""
    assert "9 complete" in show(log_display, console, make_status(9))


def test_line_omits_counts_of_zero(log_display, console):
    line = show(log_display, console, make_status(2))
    assert not any(word in line for word in ("failed", "paused", "pruned"))
    assert "best -," in line


def test_next_line_is_logged_after_interval(log_display, console, clock):
    assert "1/9" in show(log_display, console, make_status(1))
    assert show(log_display, console, make_status(1)) == ""
    clock.advance(LINE_INTERVAL_S - 0.1)
    assert show(log_display, console, make_status(2)) == ""
    clock.advance(0.2)
    assert "3/9" in show(log_display, console, make_status(3))
    assert show(log_display, console, make_status(4)) == ""


def test_no_line_is_logged_before_first_trial(log_display, console):
    assert show(log_display, console, make_status(0)) == ""
    assert "0/9" in show(log_display, console, make_status(0, running=[RunningTrial(0, 0, 9, None)]))


def test_last_line_is_logged_at_once_and_once(log_display, console, clock):
    show(log_display, console, make_status(8))
    assert "9/9 trials finished" in show(log_display, console, make_status(9))
    clock.advance(LINE_INTERVAL_S / 2)
    assert show(log_display, console, make_status(9)) == ""


def test_long_line_is_not_broken(clock):
    console = make_log_console(width=20)
    assert show(LogDisplay("mine", clock=clock), console, make_status(2)).count("\n") == 1


BUSY = make_status(
    best=complete(3, 0.98765),
    running=[RunningTrial(4, 30, 200, 0.25), RunningTrial(5, 0, 300, None)],
    budget=50,
    complete=4,
    pruned=2,
    failed=1,
)


def draw(status, width=100, name="mine"):
    console = make_console(width, terminal=True)
    with LiveDisplay(console, name) as display:
        display.show(status)
        return written(console)


def test_live_view_shows_running_trials():
    text = joined(draw(BUSY))
    for part in ("mine", "7/50 trials finished: 4 complete, 2 pruned, 1 failed", "0.9877 (trial 3)", "epochs 100"):
        assert part in text
    assert "30/200 0.2500" in text
    assert "0/300 -" in text


@pytest.mark.parametrize("status", [BUSY, make_status(), make_status(9), make_status(0, budget=0)])
@pytest.mark.parametrize("width", [100, 40])
def test_live_view_fits_any_width(status, width):
    text = draw(status, width)
    assert "mine" in text
    assert f"/{status.budget}" in joined(text)


def test_narrow_live_view_keeps_counts_and_best():
    text = joined(draw(BUSY, width=40))
    assert "7/50" in text
    assert "0.9877" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_running_and_best_trials_have_their_names(terminal, clock):
    status = replace(BUSY, names={3: "12 seed 1/3", 4: "12 seed 2/3"})
    if terminal:
        text = joined(draw(status))
        assert re.search(r"12 seed 2/3 ━+ 30/200", text)
        # The number of a trial without a name is its own.
        assert re.search(r" 5 (━+ )?0/300", text)
    else:
        text = show(LogDisplay("mine", clock=clock), make_log_console(), status)
    assert "0.9877 (trial 12 seed 1/3)" in text


def test_live_view_limits_running_trials():
    running = [RunningTrial(number, 1, 9, None) for number in range(MAX_ROWS + 3)]
    text = draw(make_status(running=running, budget=99))
    assert "and 3 more" in text
    assert text.count("1/9") == MAX_ROWS


def test_live_view_disappears_and_notes_stay():
    console = make_log_console(terminal=True)
    with LiveDisplay(console, "mine") as display:
        display.show(BUSY)
        display.note("worker 7 died")
    *_, after_the_last_erasure = written(console).split("\x1b[2K")
    assert "worker 7 died" in written(console)
    assert "7/50" in written(console)
    assert "7/50" not in after_the_last_erasure


@pytest.mark.parametrize("make", [QuietDisplay, LogDisplay])
@pytest.mark.parametrize("message", ["worker 7 died in trial 3", "postgresql://[::1]/hpo", "[red]stopped[/red]", "[/]"])
def test_note_on_terminal_is_plain_message(make, message):
    console = make_log_console(width=20, terminal=True)
    with make("mine") as display:
        display.note(message)
    assert written(console) == f"{message}\n"


def test_note_has_level_and_context():
    console = make_log_console()
    QuietDisplay("mine").note("worker 7 died", level=logging.WARNING, trial="3", worker=7)
    assert written(console).endswith(" WARNING mine trial 3 worker 7: worker 7 died\n")


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_display_shows_only_notes(terminal):
    console = make_log_console(terminal=terminal)
    with QuietDisplay("mine") as display:
        display.show(BUSY)
        assert written(console) == ""
        display.note("note")
    assert written(console).endswith("note\n")


def test_name_is_not_markup_in_lines(clock):
    console = make_log_console()
    assert f" {NAME}: 7/50 trials" in show(LogDisplay(NAME, clock=clock), console, BUSY)


def test_name_is_not_markup_in_live_view():
    assert NAME in draw(BUSY, name=NAME)


@pytest.mark.parametrize(
    ("terminal", "quiet", "kind"),
    [(True, False, LiveDisplay), (False, False, LogDisplay), (True, True, QuietDisplay), (False, True, QuietDisplay)],
)
def test_display_fits_console(terminal, quiet, kind):
    assert type(display_for(make_console(terminal=terminal), "mine", quiet)) is kind


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
        "validation": {"rows": None, "sampling_error": None, "folds": None},
    }


def printed(table):
    console = make_console()
    console.print(table)
    return written(console)


def test_summary_has_accuracies_and_parameters():
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


def rows_of(table):
    """Return the name and the value of each row of the summary's first two columns."""
    cells = [[cell.strip() for cell in line.split("│")] for line in printed(table).splitlines()]
    return {row[1]: row[2] for row in cells if len(row) > 2}


@pytest.mark.parametrize(
    ("errors", "shown"),
    [
        ((0.0157, 0.0158), ["validation", "± 0.0157", "test", "confirmed", "± 0.0158"]),
        ((0.0157, None), ["validation", "± 0.0157", "test", "confirmed"]),
        ((None, None), ["validation", "test", "confirmed"]),
    ],
)
def test_summary_has_standard_errors(errors, shown):
    confirmation = {"mean": 0.548, "values": [0.5] * 3, "standard_error": errors[1]}
    validation = {"rows": 1000, "sampling_error": errors[0]}
    table = summary(parameters() | {"confirmation": confirmation, "validation": validation})
    rows = [[cell.strip() for cell in line.split("│")] for line in printed(table).splitlines()]
    found = [row[2] if row[1] == "standard error" else row[1] for row in rows if len(row) > 2]
    assert found[1 : len(shown) + 1] == shown
    assert "confirmed" not in printed(summary(parameters()))


def test_summary_has_listed_sizes():
    best = parameters()
    best["params"] = {"hidden_size": None, "hidden_layers": [200, 150]}
    rows = [[cell.strip() for cell in line.split("│")] for line in printed(summary(best)).splitlines()]
    assert {row[3]: row[4] for row in rows if len(row) > 4 and row[3]} == {
        "hidden_size": "-",
        "hidden_layers": "[200, 150]",
    }


@pytest.mark.parametrize("extra", [0, 1, 9])
def test_summary_has_every_parameter(extra):
    best = parameters()
    best["params"] = {f"parameter_{number}": number for number in range(extra)}
    text = printed(summary(best))
    assert all(f"parameter_{number}" in text for number in range(extra))
    assert "trials failed" in text


def test_name_is_not_markup_in_summary():
    assert f"{NAME}: trial 17" in printed(summary(parameters(NAME)))


def test_summary_and_live_view_have_no_control_character():
    found = parameters("\x1b[2Jmine")
    found["params"] = {"\x1b[31mepochs": "[red]\x07"}
    best = complete(3, 0.5)
    best.params = found["params"]
    for text in (printed(summary(found)), draw(make_status(best=best), name="\x1b[2Jmine")):
        # The live view itself moves the cursor.
        assert not re.search(r"\x1b\[2J|\x1b\[31m|\x07", text)
        assert r"\x1b[2Jmine" in text
        assert r"\x1b[31mepochs" in text
        assert r"[red]\x07" in text
