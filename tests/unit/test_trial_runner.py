"""The runner of one trial: each result or exception of an objective is one state transition."""

import threading
from types import SimpleNamespace

import pytest
from factories import make_outage
from fakes import FakeClock
from optuna.trial import TrialState

from hpo.runner.heartbeat import HeartbeatTimings
from hpo.runner.limits import MEMORY, TIMEOUT, Limits
from hpo.runner.objective import TrialPruned
from hpo.runner.trial_runner import SharedProgress, TrialRunner, WorkerContext, WorkerTimings
from hpo.storage.tables.leases import Lease, LeaseLostError
from hpo.storage.tables.optuna_tables import NO_DETAILS
from hpo.storage.trial_cache import TrialView
from hpo.storage.trial_store import TrialOutcome

HEARTBEAT = HeartbeatTimings(retry_interval_s=0.001, decision_timeout_s=0.05)
NEW = Lease(0, 7, attempt=1, owner="worker_a")
PARAMS = {"x": 1.5, "n": 3, "kind": "a"}
N_STEPS = 4


class FakeStore:
    """Trial store that records the transitions of one trial.

    Attributes:
        transitions: The names and the arguments of all writes except reports.
        reports: The reported steps and values.
        errors: Errors of the next calls, by the name of the method.
    """

    def __init__(self) -> None:
        self.transitions = []
        self.reports = {}
        self.errors = {}

    @property
    def trials(self):
        return [
            SimpleNamespace(params=PARAMS, intermediate_values=self.reports, last_step=max(self.reports, default=None))
        ]

    def refresh(self):
        return TrialView(self.trials, {})

    def report(self, lease, reports, checkpoint=None, details=NO_DETAILS):
        self._fail("report")
        self.reports |= dict(reports)

    def finish(self, lease, outcome, reports, artifact, details=NO_DETAILS):
        self._record("finish", reports, outcome, artifact)

    def pause(self, lease, reports, checkpoint, details=NO_DETAILS):
        self._record("pause", reports, checkpoint.step, checkpoint.state)

    def release(self, lease, reports, checkpoint, details=NO_DETAILS):
        self._record("release", reports, None if checkpoint is None else checkpoint.step)

    def add_epochs_lost(self, lease, epochs):
        self._record("add_epochs_lost", (), epochs)

    def close_ended(self):
        self._record("close_ended", ())

    def _record(self, name, reports, *arguments):
        self._fail(name)
        self.reports |= dict(reports)
        self.transitions.append((name, *arguments))

    def _fail(self, name):
        if errors := self.errors.get(name):
            raise errors.pop(0)


class FakePruner:
    """Pruner that stops each trial at some steps."""

    def __init__(self, stop_at=(), pauses=False):
        self.pauses = pauses
        self._stop_at = frozenset(stop_at)

    def decision_steps(self):
        return self._stop_at

    def should_continue(self, trials, number):
        return trials[number].last_step not in self._stop_at


class Steps:
    """Objective of four steps; ``at`` maps steps to functions that are called with the trial before the report."""

    ticks = True

    def __init__(self, at=None):
        self._at = at or {}

    def n_steps(self, params):
        return N_STEPS

    def __call__(self, trial):
        start = int(trial.load_checkpoint() or 0)
        for step in range(start + 1, N_STEPS + 1):
            trial.tick()
            if step in self._at:
                self._at[step](trial)
            trial.report(step / 10, step)
            if step < N_STEPS:
                trial.save_checkpoint(str(step).encode, step)
        return N_STEPS / 10

    def artifact(self):
        return b"weights"


class Runner:
    """A trial runner on a fake store."""

    def __init__(self, lease=NEW, objective=None, pruner=None, stop=None, **limits):
        self.store = FakeStore()
        self.stop = stop or threading.Event()
        self.progress = SharedProgress()
        self.clock = FakeClock()
        self._lease = lease
        timings = WorkerTimings(restart_delay_s=0.001, max_retry_wait_s=0.001, heartbeat=HEARTBEAT, clock=self.clock)
        limits = Limits(**({"storage_timeout": 30.0} | limits))
        self._context = WorkerContext(
            objective or Steps(), pruner or FakePruner(), limits, timings, self.stop, self.progress
        )

    def run(self, params=PARAMS):
        study = SimpleNamespace(name="s", store=self.store)
        TrialRunner(study, self._context, self._lease).run(params)
        return self.store.transitions


def fail(error):
    def raise_error(_):
        raise error

    return raise_error


def test_completed_trial_is_finished_with_artifact():
    runner = Runner()
    assert runner.run() == [("finish", TrialOutcome(TrialState.COMPLETE, 0.4), b"weights")]
    assert runner.store.reports == {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}
    assert not runner.progress.in_trial_code


def test_pruned_trial_is_finished_at_its_report():
    runner = Runner(pruner=FakePruner({2}))
    assert runner.run() == [("finish", TrialOutcome.pruned(2, 0.2), None)]
    assert runner.store.reports == {1: 0.1, 2: 0.2}


def test_pausing_pruner_pauses_trial():
    runner = Runner(pruner=FakePruner({2}, pauses=True))
    assert runner.run() == [("pause", 2, b"2")]
    assert runner.store.reports == {1: 0.1, 2: 0.2}


@pytest.mark.parametrize("pauses", [False, True])
def test_pruner_cannot_stop_trial_at_last_step(pauses):
    runner = Runner(pruner=FakePruner({N_STEPS}, pauses))
    assert runner.run() == [("finish", TrialOutcome(TrialState.COMPLETE, 0.4), b"weights")]


def test_should_prune_follows_pruner():
    asked = []

    class Asking(Steps):
        def __call__(self, trial):
            for step in range(1, N_STEPS + 1):
                trial.report(step / 10, step)
                asked.append(trial.should_prune())
                if asked[-1]:
                    raise TrialPruned
            return 0.4

    assert Runner(objective=Asking(), pruner=FakePruner({2})).run() == [("finish", TrialOutcome.pruned(2, 0.2), None)]
    assert asked == [False, True]
    assert Runner(objective=Asking(), pruner=FakePruner({N_STEPS})).run()[0][1].state == TrialState.COMPLETE


@pytest.mark.parametrize(
    ("step", "error", "outcome"),
    [
        (3, TrialPruned("diverged: epoch 3"), TrialOutcome(TrialState.PRUNED, 0.2, "diverged: epoch 3")),
        (1, TrialPruned("diverged: epoch 1"), TrialOutcome(TrialState.PRUNED, None, "diverged: epoch 1")),
        (3, TrialPruned(), TrialOutcome.pruned(2, 0.2)),
        (1, TrialPruned(), TrialOutcome(TrialState.PRUNED, None, "pruned before its first report")),
        (3, MemoryError(), TrialOutcome(TrialState.PRUNED, 0.2, MEMORY)),
        (1, MemoryError(), TrialOutcome(TrialState.FAIL, None, MEMORY)),
    ],
)
def test_exception_of_objective_finishes_trial(step, error, outcome):
    assert Runner(objective=Steps({step: fail(error)}), memory=10**12).run() == [("finish", outcome, None)]


def test_timeout_finishes_trial_with_last_value():
    runner = Runner(trial_timeout=10.0)
    runner._context.objective._at[2] = lambda _: runner.clock.advance(11)
    assert runner.run() == [("finish", TrialOutcome(TrialState.PRUNED, 0.2, TIMEOUT), None)]


def test_time_of_former_attempts_counts():
    lease = Lease(0, 7, attempt=2, owner="worker_a", epoch=2, seconds=11.0, checkpoint=b"2")
    runner = Runner(lease, trial_timeout=10.0)
    runner.store.reports = {1: 0.1, 2: 0.2}
    assert runner.run(None) == [("finish", TrialOutcome(TrialState.PRUNED, 0.2, TIMEOUT), None)]


@pytest.mark.parametrize("error", [KeyError("bug"), MemoryError()])
def test_unexpected_error_leaves_trial_running(error):
    runner = Runner(objective=Steps({3: fail(error)}))
    with pytest.raises(type(error)):
        runner.run()
    assert runner.store.transitions == []
    assert (runner.progress.epoch, runner.progress.step) == (2, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_value_that_is_not_finite_is_error(value):
    runner = Runner(objective=Steps({2: lambda trial: trial.report(value, 2)}))
    with pytest.raises(ValueError, match="finite number"):
        runner.run()


def test_stopped_trial_is_released_with_checkpoint():
    runner = Runner()
    runner._context.objective._at[2] = lambda _: runner.stop.set()
    assert runner.run() == [("release", 2)]
    assert runner.store.reports == {1: 0.1, 2: 0.2}


def test_stop_during_undecided_report_drops_checkpoint():
    runner = Runner(pruner=FakePruner({2}))
    runner.store.errors["report"] = [make_outage()] * 10_000
    runner._context.objective._at[3] = lambda _: runner.stop.set()
    assert runner.run() == [("release", None)]
    assert runner.store.reports == {}


def test_late_decision_ends_trial_at_its_report():
    runner = Runner(pruner=FakePruner({2}))
    late = threading.Event()
    decide = runner._context.pruner.should_continue

    def decide_late(trials, number):
        assert late.wait()
        return decide(trials, number)

    runner._context.pruner.should_continue = decide_late
    runner._context.objective._at[4] = lambda _: late.set()
    assert [transition[:2] for transition in runner.run()] == [("finish", TrialOutcome.pruned(2, 0.2))]
    assert runner.store.reports == {1: 0.1, 2: 0.2}


def test_resumed_trial_continues_at_checkpoint():
    lease = Lease(0, 7, attempt=2, owner="worker_a", epoch=2, checkpoint=b"2")
    runner = Runner(lease)
    runner.store.reports = {1: -1.0}
    assert runner.run(None)[0][1] == TrialOutcome(TrialState.COMPLETE, 0.4)
    assert runner.store.reports == {1: -1.0, 3: 0.3, 4: 0.4}


def test_resumed_trial_without_new_report_keeps_value():
    lease = Lease(0, 7, attempt=2, owner="worker_a", epoch=2, checkpoint=b"2")
    runner = Runner(lease, Steps({3: fail(TrialPruned("diverged"))}))
    runner.store.reports = {1: 0.1, 2: 0.2}
    assert runner.run(None) == [("finish", TrialOutcome(TrialState.PRUNED, 0.2, "diverged"), None)]


def test_lost_lease_counts_lost_steps():
    runner = Runner(pruner=FakePruner({3}))
    runner.store.errors["report"] = [LeaseLostError(0)]
    assert runner.run() == [("add_epochs_lost", 2), ("close_ended",)]


def test_lost_lease_at_finish_counts_lost_steps():
    runner = Runner()
    runner.store.errors["finish"] = [LeaseLostError(0)]
    assert runner.run() == [("add_epochs_lost", 3), ("close_ended",)]


@pytest.mark.parametrize(
    ("lease", "reason"),
    [
        (
            Lease(0, 7, 4, "worker_a", crashes_at_same_step=3, error="killed by SIGSEGV"),
            "crashed 3 times: killed by SIGSEGV",
        ),
        (
            Lease(0, 7, 26, "worker_a", crashes_since_progress=25),
            "died 25 times before it made progress: its worker vanished",
        ),
    ],
)
def test_trial_with_repeated_crashes_fails(lease, reason):
    (transition,) = Runner(lease).run()
    assert transition[1].state == TrialState.FAIL
    assert transition[1].reason.endswith(reason)


def test_trial_that_crashed_at_start_waits():
    waits = []

    class Stop(threading.Event):
        def wait(self, timeout=None):
            waits.append((timeout, runner.progress.in_trial_code))
            return super().wait(0)

    crashed = Lease(0, 7, 2, "worker_a", crash_epoch=0, crash_step=0)
    runner = Runner(crashed, stop=Stop())
    assert runner.run(None)[0][1].state == TrialState.COMPLETE
    assert waits == [(0.001, False)]


def test_stop_before_restart_releases_trial():
    runner = Runner(Lease(0, 7, 2, "worker_a", crash_epoch=0, crash_step=0))
    runner.stop.set()
    assert runner.run() == [("release", None)]


@pytest.mark.parametrize("pauses", [True, False])
def test_progress_counts_finished_and_paused_trials(pauses):
    runner = Runner(pruner=FakePruner({2}, pauses))
    runner.run()
    assert runner.progress.done == 1


def test_progress_counts_no_trial_with_error():
    runner = Runner(objective=Steps({2: fail(KeyError("x"))}))
    with pytest.raises(KeyError):
        runner.run()
    assert runner.progress.done == 0


def test_progress_has_number_of_trial():
    numbers = []
    objective = Steps({2: lambda _: numbers.append(runner.progress.number)})
    runner = Runner(Lease(5, 7, attempt=1, owner="worker_a"), objective)
    runner.run()
    assert numbers == [5]


def test_progress_marks_code_of_trial():
    seen = {}

    def watch(name, function):
        def call(*arguments):
            seen.setdefault(name, set()).add(bool(runner.progress.in_trial_code))
            return function(*arguments)

        return call

    runner = Runner(pruner=FakePruner({3}), objective=Steps({2: watch("objective", lambda _: None)}))
    for name in ("report", "finish"):
        setattr(runner.store, name, watch(name, getattr(runner.store, name)))
    runner.run()
    assert seen == {"objective": {True}, "report": {False}, "finish": {False}}


@pytest.mark.parametrize(
    ("suggest", "message"),
    [
        (lambda trial: trial.suggest_float("y", 0, 1), "y: not a parameter of this study, which has x, n, kind"),
        (lambda trial: trial.suggest_float("x", 2, 3), "x = 1.5: the objective allows 2 to 3"),
        (lambda trial: trial.suggest_int("n", 4, 5), "n = 3: the objective allows 4 to 5"),
        (lambda trial: trial.suggest_categorical("kind", ["b", "c"]), "kind = 'a': the objective allows 'b', 'c'"),
    ],
)
def test_suggest_refuses_other_parameter(suggest, message):
    with pytest.raises(ValueError, match=message):
        Runner(objective=Steps({1: suggest})).run()


def test_suggest_returns_proposed_value():
    values = []

    def suggest(trial):
        values.extend(
            [
                trial.suggest_float("x", 0, 2),
                trial.suggest_int("n", 1, 5),
                trial.suggest_categorical("kind", ["a", "b"]),
            ]
        )

    Runner(objective=Steps({1: suggest})).run()
    assert values == [1.5, 3, "a"]
