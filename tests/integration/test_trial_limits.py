"""Trials that exceed their timeout or their memory."""

from dataclasses import replace

import pytest
from fakes import FakeClock
from optuna.trial import FrozenTrial, TrialState
from workers import (
    TIMINGS,
    StopAfter,
    WrappedObjective,
    WrappedTrial,
    create_proposed,
    ledger,
    make_config,
    make_objective,
)

from hpo.runner.limits import MEMORY, TIMEOUT
from hpo.search.pruning.pruners import report_steps
from hpo.storage.tables.leases import Checkpoint
from hpo.storage.trial_store import REASON

pytestmark = pytest.mark.postgresql_is_slow

# Of an epoch: 400 examples in batches of 60.
TICKS = 7
ENOUGH = 10**12


class TickingClock(FakeClock):
    """Clock that advances by one second with each tick of a trial."""

    def __init__(self) -> None:
        super().__init__()
        self.ticks = 0

    def wrap(self, trial):
        clock = self

        class TickingTrial(WrappedTrial):
            def tick(self) -> None:
                clock.advance(1)
                clock.ticks += 1
                self._trial.tick()

        return TickingTrial(trial)


class StarvingTrial(WrappedTrial):
    """Trial of a large net that runs out of memory in the epoch after the last one."""

    last = 0
    ticks = 0

    def tick(self) -> None:
        self.ticks += 1
        if self.ticks > self.last * TICKS and self.params["hidden_size"] > 20:
            raise MemoryError
        self._trial.tick()


@pytest.fixture
def clock():
    return TickingClock()


@pytest.fixture
def timed(bench, clock):
    """Return a factory of workers whose clock advances with the trials."""

    def worker(study, config, *arguments, **limits):
        objective = WrappedObjective(make_objective(config), clock.wrap)
        return bench.worker(
            study, config, *arguments, objective=objective, timings=replace(TIMINGS, clock=clock), **limits
        )

    return worker


@pytest.fixture
def starved(bench):
    """Return a factory of workers whose large nets run out of memory."""

    def worker(study, config, last, **limits):
        wrap = type("StarvingTrial", (StarvingTrial,), {"last": last})
        return bench.worker(study, config, objective=WrappedObjective(make_objective(config), wrap), **limits)

    return worker


def end_of(trial: FrozenTrial) -> tuple[TrialState, float | None, str | None]:
    return trial.state, trial.value, trial.user_attrs.get(REASON)


def reports_up_to(trial: FrozenTrial, last: int) -> dict[int, float]:
    return {step: value for step, value in trial.intermediate_values.items() if step <= last}


def test_timeout_prunes_trial_with_last_value(bench, timed):
    config, unlimited = make_config(), make_config("unlimited")
    study, reference = bench.join(config), bench.join(unlimited)
    bench.worker(reference, unlimited).run()
    timed(study, config, trial_timeout=14 * TICKS).run()
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    for trial, whole in zip(study.trials, reference.trials, strict=True):
        if trial.params["epochs"] > 14:
            assert trial.intermediate_values == reports_up_to(whole, 14)
            assert end_of(trial) == (TrialState.PRUNED, list(trial.intermediate_values.values())[-1], TIMEOUT)
        else:
            assert trial.intermediate_values == whole.intermediate_values
            assert end_of(trial) == (TrialState.COMPLETE, whole.value, None)
    assert study.store.active_trials() == []


def test_timeout_without_value_fails_trial(bench, timed):
    config = make_config(space={"batch_size": {"choices": [10, 400]}})
    study = bench.join(config)
    timed(study, config, trial_timeout=400 / 10 - 1).run()
    assert {trial.params["batch_size"] for trial in study.trials} == {10, 400}
    for trial in study.trials:
        if trial.params["batch_size"] == 10:
            assert end_of(trial) == (TrialState.FAIL, None, TIMEOUT)
            assert trial.intermediate_values == {}
        else:
            assert trial.state == TrialState.COMPLETE
    assert study.store.active_trials() == []


def test_timeout_counts_all_attempts_without_gaps(bench, clock, timed):
    space = {"epochs": {"choices": [20]}}
    undisturbed, disturbed = make_config("undisturbed", space, trials=1), make_config("disturbed", space, trials=1)
    study, stopped = bench.join(undisturbed), bench.join(disturbed)
    timed(study, undisturbed, trial_timeout=14 * TICKS).run()
    assert clock.ticks == 14 * TICKS + 1
    timed(stopped, disturbed, "worker_a", StopAfter(8), trial_timeout=14 * TICKS).run()
    assert stopped.store.active_trials() != []
    clock.advance(1e6)
    timed(stopped, disturbed, "worker_b", trial_timeout=14 * TICKS).run()
    assert clock.ticks == 2 * (14 * TICKS + 1)
    assert ledger(stopped) == ledger(study)
    assert end_of(stopped.trials[0]) == end_of(study.trials[0])


@pytest.mark.parametrize(("reported", "state"), [(0.5, TrialState.PRUNED), (None, TrialState.FAIL)])
def test_trial_over_timeout_ends_at_once(bench, clock, timed, reported, state):
    config = make_config(trials=1)
    study = bench.join(config)
    lease = create_proposed(study, config)
    reports = [] if reported is None else [(1, reported)]
    study.store.release(lease, reports, Checkpoint(1, 100.0, b"in another format"))
    timed(study, config, "worker_b", trial_timeout=100).run()
    assert end_of(study.trials[0]) == (state, reported, TIMEOUT)
    assert clock.ticks == 1


def test_outage_does_not_count_against_timeout(bench, clock, timed, monkeypatch):
    config = make_config(trials=1)
    study = bench.join(config)
    study.store.release(create_proposed(study, config, owner="worker_b"), [])
    refresh = study.store.refresh

    def refresh_late():
        clock.advance(1e6)
        return refresh()

    monkeypatch.setattr(study.store, "refresh", refresh_late)
    timed(study, config, trial_timeout=1000).run()
    assert study.trials[0].state == TrialState.COMPLETE


@pytest.mark.parametrize("last", [0, 3])
def test_trial_without_memory_ends_alone(bench, starved, last):
    config, unlimited = make_config(), make_config("unlimited")
    study, reference = bench.join(config), bench.join(unlimited)
    bench.worker(reference, unlimited).run()
    starved(study, config, last, memory=ENOUGH).run()
    ends = {trial.number: end_of(trial) for trial in study.trials}
    large = [trial.number for trial in study.trials if trial.params["hidden_size"] > 20]
    assert 0 < len(large) < 4
    for trial, whole in zip(study.trials, reference.trials, strict=True):
        if trial.number not in large:
            assert ends[trial.number] == (TrialState.COMPLETE, whole.value, None)
        elif last:
            assert last in report_steps(20)
            assert ends[trial.number] == (TrialState.PRUNED, whole.intermediate_values[last], MEMORY)
        else:
            assert ends[trial.number] == (TrialState.FAIL, None, MEMORY)
        if trial.number in large:
            assert trial.intermediate_values == reports_up_to(whole, last)
    assert study.store.active_trials() == []


def test_memory_error_without_limit_crashes_worker(bench, starved):
    config = make_config(trials=1, space={"hidden_size": {"choices": [21]}})
    study = bench.join(config)
    with pytest.raises(MemoryError):
        starved(study, config, 3).run()
    assert study.trials[0].state == TrialState.RUNNING
    assert study.store.record_death("worker_a", "crash", 3) == [0]


def test_memory_error_in_heartbeat_ends_trial(bench, monkeypatch):
    # This pruner decides about the fourth report.
    config = make_config(trials=1, pruner="median")
    study = bench.join(config)
    report, errors = study.store.report, [MemoryError()]

    def starved(lease, reports, checkpoint, details):
        if 4 in dict(reports) and errors:
            raise errors.pop()
        report(lease, reports, checkpoint, details)

    monkeypatch.setattr(study.store, "report", starved)
    bench.worker(study, config, memory=ENOUGH).run()
    trial = study.trials[0]
    assert list(trial.intermediate_values) == [1, 2, 3, 4]
    assert end_of(trial) == (TrialState.PRUNED, trial.intermediate_values[4], MEMORY)
