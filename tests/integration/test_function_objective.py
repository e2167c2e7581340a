"""A user's function as the objective of a worker, on real databases."""

import asyncio
import json
import threading
import warnings
from contextlib import suppress
from dataclasses import replace

import optuna
import pytest
from factories import HOUR_S, execute, expire_leases
from fakes import FakeClock
from optuna.distributions import FloatDistribution
from optuna.samplers import RandomSampler
from optuna.study import StudyDirection
from optuna.trial import TrialState
from script_studies import CONFIG, open_script_study
from workers import DECISION_TIMEOUT_S

import hpo
from hpo.runner.function_objective import PAUSE_ADVICE, FunctionCall, FunctionObjective, Hooks
from hpo.runner.heartbeat import HeartbeatTimings
from hpo.runner.limits import TIMEOUT, Limits
from hpo.runner.trial_runner import SharedProgress, WorkerTimings
from hpo.runner.worker_loop import WorkerConfig, WorkerLoop
from hpo.search.pruning.asha_pruner import AshaPruner, hpo_pruner
from hpo.search.sampling.reseeding import ReseededSampler
from hpo.storage.trial_store import CAUGHT, TRACEBACK

pytestmark = pytest.mark.postgresql_is_slow

MINIMIZE, MAXIMIZE = StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE
RUNNING, COMPLETE, PRUNED, FAIL = TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
HEARTBEAT = HeartbeatTimings(
    first_checkpoint_s=0.0,
    checkpoint_interval_s=0.0,
    write_delay_s=0.0,
    retry_interval_s=0.001,
    decision_timeout_s=DECISION_TIMEOUT_S,
)


class Script:
    """A script whose workers run in this process.

    Attributes:
        study: The study.
        optuna_study: The script's object of the study in the newest worker.
        stop: Set when the newest worker has to stop.
        notes: The messages for the user.
        stops: The calls of ``study.stop``.
    """

    def __init__(self, database, *directions, pruner=None):
        self.database = database
        self.study = open_script_study(database, *directions)
        self.clock, self.stop, self.notes, self.stops = FakeClock(), threading.Event(), [], []
        self._pruner = pruner or optuna.pruners.NopPruner()
        self._n_workers = 0
        self.worker(lambda _: 0.0)

    def worker(
        self,
        function,
        trials=1,
        *,
        callbacks=(),
        catch=(),
        max_failures=None,
        sampler=None,
        heartbeat=HEARTBEAT,
        **limits,
    ):
        """Return a worker of a function."""
        self.stop = threading.Event()
        self._n_workers += 1
        storage = self.study.leased_storage()
        self.optuna_study = optuna.load_study(study_name=self.study.name, storage=storage, pruner=self._pruner)
        objective = FunctionObjective(
            self.optuna_study,
            storage,
            FunctionCall(function, catch, callbacks),
            sampler or ReseededSampler(RandomSampler(seed=0), 0),
            hooks=Hooks(self.notes.append, self._close),
        )
        timings = WorkerTimings(poll_interval_s=0.001, restart_delay_s=0.0, clock=self.clock, heartbeat=heartbeat)
        config = WorkerConfig(
            self.database,
            CONFIG,
            objective,
            trials,
            Limits(**({"storage_timeout": 30.0} | limits)),
            verbose=False,
            timings=timings,
            pruner=hpo_pruner(self._pruner, self.optuna_study.directions),
            max_failures=max_failures,
            on_end=objective.after_trial,
        )
        return WorkerLoop(self.study, config, f"worker {self._n_workers}", self.stop, SharedProgress())

    def run(self, function, trials=1, **options):
        """Run a function until the study has this number of trials; return the trials."""
        self.worker(function, trials, **options).run()
        return self.trials

    @property
    def trials(self):
        return self.optuna_study.trials

    def _close(self):
        self.stops.append(self.study.store.close_budget())

    def reasons(self):
        return [trial.user_attrs.get("reason") for trial in self.trials]


@pytest.fixture
def script(database):
    script = Script(database)
    yield script
    script.study.close()


def open_script(request, database, *directions, **options):
    script = Script(database, *directions, **options)
    request.addfinalizer(script.study.close)
    return script


def writes(database):
    """Return the rows that a worker writes about trials."""
    tables = ("trial_params", "trial_intermediate_values", "trial_user_attributes", "trial_system_attributes")
    return [execute(database, f"SELECT * FROM {table}") for table in (*tables, "trial_values")]


# The trial in the database


def test_mark_of_sampler_is_in_the_database_before_the_function_runs(script):
    seen = []

    def function(_):
        seen.append(execute(script.database, "SELECT COUNT(*) FROM trial_system_attributes WHERE \"key\" = 'grid_id'"))
        return 0.5

    # Without the mark, another worker would take the same point.
    script.run(
        function,
        sampler=optuna.samplers.GridSampler({"x": [1, 2]}, seed=0),
        heartbeat=replace(HEARTBEAT, write_delay_s=HOUR_S, first_checkpoint_s=HOUR_S),
    )
    assert seen == [[(1,)]]


def test_everything_that_the_function_writes_is_in_the_database(script):
    def function(trial):
        x = trial.suggest_float("x", 0, 1)
        for layer in range(trial.suggest_int("layers", 2, 2)):
            trial.suggest_categorical(f"kind_{layer}", ["a", None, 3, True])
        trial.set_user_attr("text", {"list": [1, None], "ü": "\ud800"})
        trial.storage.set_trial_system_attr(trial._trial_id, "system", [1.5])
        trial.set_user_attr("text", {"list": [2]})
        for step in range(3):
            trial.report(x + step, step)
        trial.report(float("nan"), 3)
        trial.report(float("inf"), 4)
        return x

    (trial,) = script.run(function)
    assert (trial.state, script.reasons()) == (COMPLETE, [None])
    assert trial.value == trial.params["x"]
    assert list(trial.params) == ["x", "layers", "kind_0", "kind_1"]
    assert trial.distributions["x"] == FloatDistribution(0, 1)
    assert trial.user_attrs == {"text": {"list": [2]}}
    assert trial.system_attrs["system"] == [1.5]
    assert [trial.intermediate_values[step] for step in range(3)] == [trial.value + step for step in range(3)]
    assert str(trial.intermediate_values[3]) == "nan"
    assert trial.intermediate_values[4] == float("inf")
    assert trial.datetime_start <= trial.datetime_complete


def test_function_sees_its_own_trial_as_it_is(script):
    seen = []

    def function(trial):
        x = trial.suggest_float("x", 0, 1)
        assert trial.suggest_float("x", 0, 1) == x
        trial.report(x, 0)
        trial.set_user_attr("a", 1)
        (own,) = [other for other in trial.study.trials if other.number == trial.number]
        assert (own.state, own.params, own.user_attrs) == (RUNNING, {"x": x}, {"a": 1})
        assert own.intermediate_values == {0: x}
        assert trial.params == {"x": x}
        seen.append([other.state for other in trial.study.trials])
        return x

    script.run(function, 3)
    assert seen == [[COMPLETE] * number + [RUNNING] for number in range(3)]


def test_trials_are_those_of_plain_optuna(script):
    def function(trial):
        return trial.suggest_float("x", -1, 1) + trial.suggest_int("n", 1, 5, log=True)

    trials = script.run(function, 3)
    assert [trial.value for trial in trials] == [trial.params["x"] + trial.params["n"] for trial in trials]
    assert script.optuna_study.best_value == min(trial.value for trial in trials)
    assert script.study.store.best_trained() == script.optuna_study.best_trial.number


def test_best_trial_of_maximizing_study_is_highest(request, database):
    script = open_script(request, database, MAXIMIZE)
    trials = script.run(lambda trial: trial.suggest_float("x", 0, 1), 4)
    best = max(trials, key=lambda trial: trial.value).number
    assert script.study.store.best_trained() == script.optuna_study.best_trial.number == best


def test_study_of_several_objectives_has_all_values(request, database):
    script = open_script(request, database, MINIMIZE, MAXIMIZE)
    trials = script.run(lambda trial: (trial.suggest_float("x", 0, 1), trial.number), 3)
    assert [trial.values for trial in trials] == [[trial.params["x"], trial.number] for trial in trials]
    assert script.study.store.best_trained() is None
    assert 2 in {trial.number for trial in script.optuna_study.best_trials}
    trials = script.run(lambda trial: 0.5, 4)
    assert trials[3].state == FAIL
    assert "number of the values 1 did not match" in script.reasons()[3]


# Results that are no number


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "The value nan is not acceptable"),
        (None, "The value None could not be cast to float."),
        ("a", "The value 'a' could not be cast to float"),
        ((1.0, 2.0), "The number of the values 2 did not match the number of the objectives 1"),
        ([], "The number of the values 0 did not match the number of the objectives 1"),
    ],
)
def test_other_result_fails_trial(script, value, reason):
    trials = script.run(lambda trial: value if trial.number == 0 else 0.5, 2)
    assert [trial.state for trial in trials] == [FAIL, COMPLETE]
    assert script.reasons()[0].startswith(reason)
    assert TRACEBACK not in trials[0].user_attrs


@pytest.mark.parametrize("value", [True, float("inf"), float("-inf"), [2]])
def test_result_is_converted_as_in_optuna(script, value):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = optuna.create_study()
        expected.optimize(lambda _: value, n_trials=1)
    (trial,) = script.run(lambda _: value)
    assert (trial.state, trial.values) == (COMPLETE, expected.trials[0].values)


def raising(error):
    def function(trial):
        trial.suggest_float("x", 0, 1)
        if trial.number == 0:
            raise type(error)(*error.args)
        return 0.5

    return function


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("bad"), "ValueError: bad"),
        (ValueError(), "ValueError"),
        (ValueError("first\nlast line"), "last line"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (asyncio.CancelledError(), "asyncio.exceptions.CancelledError"),
        (BaseExceptionGroup("several", [SystemExit(3)]), "BaseExceptionGroup: several (1 sub-exception)"),
        (MemoryError("too much"), "MemoryError: too much"),
        (ExceptionGroup("several", [ValueError("bad")]), "ExceptionGroup: several (1 sub-exception)"),
        (optuna.exceptions.OptunaError("of optuna"), "optuna.exceptions.OptunaError: of optuna"),
    ],
)
def test_exception_fails_trial_with_reason_and_traceback(script, error, reason):
    trials = script.run(raising(error), 2)
    assert [trial.state for trial in trials] == [FAIL, COMPLETE]
    assert script.reasons() == [reason, None]
    traceback = trials[0].user_attrs[TRACEBACK]
    assert "raise type(error)" in traceback
    assert "hpo/runner" not in traceback
    assert "x" in trials[0].params


def test_exception_that_script_catches_is_no_crash(script):
    trials = script.run(raising(ValueError("bad")), 2, catch=(ArithmeticError, ValueError))
    assert [trial.state for trial in trials] == [FAIL, COMPLETE]
    assert script.reasons()[0] == f"{CAUGHT}ValueError: bad"


def always_failing(trial):
    raise LookupError(f"trial {trial.number}")


def test_failures_before_first_success_end_the_study(script):
    trials = script.run(always_failing, 10, max_failures=3)
    assert [trial.state for trial in trials] == [FAIL] * 3
    # Another launch allows as many again.
    assert len(script.run(always_failing, 10, max_failures=6)) == 6


def test_failures_after_a_success_or_of_expected_exceptions_do_not(script):
    assert len(script.run(always_failing, 5, max_failures=3, catch=(LookupError,))) == 5
    script.run(lambda _: 0.5, 6)
    assert len(script.run(always_failing, 10, max_failures=3)) == 10


def test_pruned_trial_has_its_last_value(script):
    def function(trial):
        for step in range(trial.number):
            trial.report(0.5 + step, step)
        raise optuna.TrialPruned

    trials = script.run(function, 3)
    assert [(trial.state, trial.value) for trial in trials] == [(PRUNED, None), (PRUNED, 0.5), (PRUNED, 1.5)]
    assert script.reasons() == ["pruned before its first report", "pruned at step 0", "pruned at step 1"]


def test_pruner_of_script_decides(request, database):
    script = open_script(request, database, pruner=optuna.pruners.ThresholdPruner(upper=1.0))

    def function(trial):
        for step in range(4):
            trial.report(step, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return 0.5

    (trial,) = script.run(function)
    assert (trial.state, trial.value, trial.last_step) == (PRUNED, 2.0, 2)


def test_function_that_ends_its_trial_by_tell_fails(script):
    (trial,) = script.run(lambda trial: trial.study.tell(trial.number, 0.5))
    assert trial.state == FAIL
    assert script.reasons() == [
        "hpo.errors.HpoError: trial 0 ends when its objective returns; remove the call of study.tell"
    ]


# Callbacks and stops


def test_callbacks_get_study_and_ended_trial(script):
    calls = []

    def callback(study, trial):
        calls.append((study is script.optuna_study, trial.number, trial.state, trial.value, len(study.trials)))

    script.run(lambda trial: trial.suggest_float("x", 0, 1) if trial.number else None, 2, callbacks=[callback] * 2)
    value = script.trials[1].value
    assert calls == [(True, 0, FAIL, None, 1)] * 2 + [(True, 1, COMPLETE, value, 2)] * 2


def test_stop_in_callback_or_objective_ends_study(script):
    def stop(study, trial):
        if trial.number == 1:
            study.stop()

    assert len(script.run(lambda _: 0.5, 10, callbacks=[stop])) == 2
    assert script.stops[-1] == 2

    def function(trial):
        if trial.number == 4:
            trial.study.stop()
        return 0.5

    assert len(script.run(function, 10)) == 5
    assert {trial.state for trial in script.trials} == {COMPLETE}


def test_enqueued_trials_run_first(script):
    script.optuna_study.enqueue_trial({"x": 0.25}, user_attrs={"tag": [1]})
    script.optuna_study.enqueue_trial({"x": 0.75, "unused": 3})
    trials = script.run(lambda trial: trial.suggest_float("x", 0, 1), 3)
    assert [trial.value for trial in trials[:2]] == [0.25, 0.75]
    assert trials[0].user_attrs == {"tag": [1]}
    assert [trial.state for trial in trials] == [COMPLETE] * 3


# Resume


def test_trial_of_lost_worker_has_its_parameters_and_reports(script):
    attempts = []

    def function(trial):
        x = trial.suggest_float("x", 0, 1)
        kind = trial.suggest_categorical("kind", ["a", "b", "c"])
        attempts.append((trial.number, x, kind, dict(trial.user_attrs)))
        trial.set_user_attr("attempt", len(attempts))
        trial.report(float(len(attempts)), 0)
        trial.report(0.5, len(attempts))
        if len(attempts) == 1:
            # Everything is written before the worker stops.
            script.stop.set()
            trial.report(0.0, 9)
        trial.suggest_int("later", 1, 5)
        return x

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert script.run(function)[0].state == RUNNING
        (trial,) = script.run(function)
    (_, x, kind, before), (number, *again, attributes) = attempts
    assert (number, before, attributes) == (0, {}, {"attempt": 1})
    assert again == [x, kind]
    assert (trial.state, trial.value, trial.user_attrs) == (COMPLETE, x, {"attempt": 2})
    assert trial.params == {"x": x, "kind": kind, "later": trial.params["later"]}
    # The first report of a step stays.
    assert trial.intermediate_values.items() >= {2: 0.5}.items()
    assert 9 not in trial.intermediate_values


def test_stopped_trial_continues_from_its_checkpoint(script):
    steps = []

    def function(trial):
        done = int(hpo.load_checkpoint(trial) or 0)
        for step in range(done + 1, 6):
            steps.append(step)
            trial.report(step, step)
            if step == 3 and len(steps) == 3:
                script.stop.set()
            hpo.save_checkpoint(trial, str(step).encode(), step)
        return steps[-1]

    assert script.run(function)[0].state == RUNNING
    (trial,) = script.run(function)
    assert (trial.state, trial.value, steps) == (COMPLETE, 5.0, [1, 2, 3, 4, 5])
    assert trial.intermediate_values == {step: float(step) for step in range(1, 6)}


CATCHES = {"Exception": Exception, "BaseException": BaseException}


@pytest.mark.parametrize("caught", CATCHES.values(), ids=CATCHES)
def test_stopping_worker_releases_trial_of_function_that_catches(script, caught):
    def function(trial):
        trial.suggest_float("x", 0, 1)
        script.stop.set()
        with suppress(caught):
            trial.report(0.5, 1)
        return 0.5

    (trial,) = script.run(function)
    assert (trial.state, trial.values, trial.intermediate_values) == (RUNNING, None, {})
    assert [active.owned for active in script.study.store.active_trials()] == [False]
    assert [trial.state for trial in script.run(lambda _: 1.0)] == [COMPLETE]


@pytest.mark.parametrize("caught", CATCHES.values(), ids=CATCHES)
def test_worker_without_lease_writes_nothing(database, script, caught):
    before = []

    def function(trial):
        trial.suggest_float("x", 0, 1)
        expire_leases(database)
        while script.study.store.claim("other worker") is None:
            # The heartbeat has renewed the lease meanwhile.
            expire_leases(database)
        before.extend(writes(database))
        try:
            with suppress(caught):
                trial.report(0.5, 1)
            while not trial.own._leased.reporter.has_failed:
                # The heartbeat learns of the loss at its next write.
                threading.Event().wait(0.001)
            with suppress(caught):
                trial.set_user_attr("a", 1)
            with suppress(caught):
                trial.suggest_float("y", 0, 1)
            return 0.5
        finally:
            # Otherwise the worker would wait for the end of the other lease.
            script.stop.set()

    (trial,) = script.run(function)
    assert trial.state == RUNNING
    assert writes(database) == before
    assert [active.owned for active in script.study.store.active_trials()] == [True]


@pytest.mark.parametrize("caught", CATCHES.values(), ids=CATCHES)
def test_timeout_ends_trial_with_its_last_value(script, caught):
    def function(trial):
        trial.report(0.75, 1)
        script.clock.advance(11)
        with suppress(caught):
            trial.report(0.5, 2)
        return 0.25

    (trial,) = script.run(function, trial_timeout=10.0)
    assert (trial.state, trial.intermediate_values) == (PRUNED, {1: 0.75})
    assert script.reasons() == [TIMEOUT]
    assert trial.value == 0.75


# Pause and promotion


def promotable(trial):
    """Report a loss, with checkpoints."""
    loss = abs(trial.number * 7 % 9 - 4)
    state = json.loads(hpo.load_checkpoint(trial) or b'{"step": 0}')
    for step in range(state["step"] + 1, 10):
        trial.report(loss + 1 / step, step)
        hpo.save_checkpoint(trial, json.dumps({"step": step}).encode(), step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return loss


def test_pruned_trial_with_checkpoint_is_paused_and_promoted(request, database):
    script = open_script(request, database, pruner=AshaPruner())
    trials = script.run(promotable, 9)
    assert [trial.number for trial in trials] == list(range(9))
    assert {trial.state for trial in trials} == {COMPLETE, PRUNED}
    promotions = execute(database, "SELECT promotions FROM hpo_leases ORDER BY number")
    assert sum(count for (count,) in promotions) > 0
    assert script.study.store.refresh().paused == {}
    for trial in trials:
        # No step was repeated and none is missing.
        assert sorted(trial.intermediate_values) == list(range(1, trial.last_step + 1))
    assert script.optuna_study.best_trial.state == COMPLETE
    assert script.notes == []


def test_pruned_trial_without_checkpoint_is_pruned_with_note(request, database):
    script = open_script(request, database, pruner=AshaPruner())

    def function(trial):
        for step in range(1, 4):
            trial.report(trial.number, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return trial.number

    trials = script.run(function, 4)
    assert [trial.state for trial in trials] == [COMPLETE, PRUNED, PRUNED, PRUNED]
    assert set(script.notes) == {PAUSE_ADVICE}
