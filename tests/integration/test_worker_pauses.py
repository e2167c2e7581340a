"""Workers whose trials are paused at rungs and promoted from there."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from factories import execute, expire_leases
from optuna.trial import TrialState
from workers import (
    EpochLog,
    StopAfter,
    WrappedObjective,
    create_proposed,
    ledger,
    make_config,
    make_objective,
)

from hpo.models.fitted import unpack_model
from hpo.models.trainer import Trainer
from hpo.runner.heartbeat import HeartbeatTimings, TrialReporter
from hpo.runner.trial_runner import SharedProgress, WorkerTimings
from hpo.search.pruning.asha import SuccessiveHalving
from hpo.search.pruning.pruners import PRUNERS
from hpo.search.sampling.samplers import RandomSampler
from hpo.storage.tables.leases import Checkpoint, InterruptionStats

pytestmark = pytest.mark.postgresql_is_slow

EPOCHS = 18
LONG = {"epochs": {"choices": [EPOCHS]}}
RUNGS = [2, 6]
# The decisions of the pruner come late.
LATE = WorkerTimings(poll_interval_s=0.01, heartbeat=HeartbeatTimings(decision_timeout_s=0.01))


@pytest.fixture(autouse=True)
def _pruner_with_two_rungs(monkeypatch):
    monkeypatch.setitem(PRUNERS, "two rungs", lambda max_steps, minimizes: SuccessiveHalving(RUNGS))


@pytest.fixture
def log():
    return EpochLog()


@pytest.fixture
def whole_and_paused(bench):
    """Return a study whose only trial ran without a pause, a study for a trial with two pauses, and its config."""
    undisturbed = make_config("undisturbed", LONG, trials=1)
    disturbed = make_config("disturbed", LONG, trials=1, pruner="two rungs")
    whole, study = bench.join(undisturbed), bench.join(disturbed)
    bench.worker(whole, undisturbed).run()
    return whole, study, disturbed


def run_in_threads(workers):
    threads = [threading.Thread(target=worker.run) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def check_finished(study, budget):
    assert [trial.number for trial in study.trials] == list(range(budget))
    states = [trial.state for trial in study.trials]
    assert set(states) == {TrialState.COMPLETE, TrialState.PRUNED}
    assert study.store.active_trials() == []
    assert study.store.interruption_stats() == InterruptionStats(0, 0)
    assert study.store.refresh().paused == {}


def test_trial_with_two_pauses_ends_with_same_bits(bench, whole_and_paused, log):
    whole, study, config = whole_and_paused
    bench.worker(study, config, objective=log.watch(make_objective(config))).run()
    assert study.store.interruption_stats() == InterruptionStats(0, 0)
    assert execute(bench.database, "SELECT promotions FROM hpo_leases WHERE attempt = 3") == [(2,)]
    assert log.epochs == list(range(1, EPOCHS + 1))
    assert ledger(study) == ledger(whole)
    for one, other in zip(*(unpack_model(each.store.weights(0)).weights for each in (whole, study)), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_first_trial_completes_near_end_of_time(bench, log):
    config = make_config("closing", LONG, trials=2, pruner="two rungs")
    study = bench.join(config)
    bench.closing_at_s = 0.0
    bench.worker(study, config, objective=log.watch(make_objective(config))).run()
    assert log.epochs[:EPOCHS] == list(range(1, EPOCHS + 1))
    check_finished(study, 2)


def test_progress_is_outside_trial_during_database_calls(bench, whole_and_paused, monkeypatch):
    """The worker can wait there for the database, and kills during the wait do not count against the trial."""
    _, study, config = whole_and_paused
    progress, seen = SharedProgress(), []

    def watch(owner, name):
        method = getattr(owner, name)

        def call(*arguments, **keywords):
            seen.append((name, bool(progress.in_trial_code)))
            return method(*arguments, **keywords)

        monkeypatch.setattr(owner, name, call)

    watch(WrappedObjective, "__call__")
    watch(Trainer, "kept_scores")
    for name in ("report", "flush"):
        watch(TrialReporter, name)
    for name in ("pause", "finish"):
        watch(study.store, name)
    objective = WrappedObjective(make_objective(config), lambda trial: trial)
    bench.worker(study, config, objective=objective, progress=progress).run()
    assert dict(seen) == {
        "__call__": True,
        "kept_scores": True,
        "report": False,
        "pause": False,
        "flush": False,
        "finish": False,
    }
    # Each of them has the same value in all calls.
    assert len(set(seen)) == 6


@pytest.mark.parametrize("death", ["after promotion", "before pause"])
def test_death_at_rung_costs_nothing(bench, whole_and_paused, monkeypatch, death):
    whole, study, config = whole_and_paused

    def die(*_):
        raise KeyboardInterrupt

    def promote_and_die(*arguments):
        promote(*arguments)
        die()

    promote = study.store.resume
    with monkeypatch.context() as patch:
        if death == "before pause":
            patch.setattr(study.store, "pause", die)
        else:
            patch.setattr(study.store, "resume", promote_and_die)
        with pytest.raises(KeyboardInterrupt):
            bench.worker(study, config).run()
    expire_leases(bench.database)
    bench.worker(study, config, "worker_b").run()
    assert ledger(study) == ledger(whole)
    assert study.store.interruption_stats().resumed == 1


def test_unknown_checkpoint_starts_promoted_trial_over(bench, whole_and_paused, log):
    whole, study, config = whole_and_paused
    lease = create_proposed(study, config)
    curve = whole.trials[0].intermediate_values
    reported = [(step, value) for step, value in curve.items() if step <= RUNGS[-1]]
    study.store.pause(lease, reported, Checkpoint(RUNGS[-1], 1.0, b"in another format"))
    bench.worker(study, config, "worker_b", objective=log.watch(make_objective(config))).run()
    assert ledger(study) == ledger(whole)
    assert log.epochs == list(range(1, EPOCHS + 1))


@pytest.mark.parametrize("decided_after", [3, 7, EPOCHS])
def test_late_decision_pauses_trial_at_last_step(bench, whole_and_paused, log, monkeypatch, decided_after):
    whole, study, config = whole_and_paused
    decides, paused_at = threading.Event(), []

    def on_epoch(epoch):
        if epoch == decided_after and not decides.is_set():
            decides.set()
            reporter = log.trials[0].reporter
            reporter.flush(30, threading.Event())
            assert reporter.stop_report[0] == RUNGS[0]

    def decide_late(trials, number):
        assert decides.wait()
        return trials[number].last_step != RUNGS[0]

    pause = study.store.pause

    def watched_pause(lease, reports, checkpoint, details):
        pause(lease, reports, checkpoint, details)
        paused_at.append((checkpoint.step, dict(study.trials[0].intermediate_values)))

    log.on_epoch = on_epoch
    monkeypatch.setattr(study.store, "pause", watched_pause)
    worker = bench.worker(study, config, objective=log.watch(make_objective(config)), timings=LATE)
    monkeypatch.setattr(worker._pruner, "should_continue", decide_late)
    worker.run()
    curve = whole.trials[0].intermediate_values
    # A trial at its last step is complete, so that a pause would save nothing.
    expected = [(decided_after, {step: value for step, value in curve.items() if step <= decided_after})]
    assert paused_at == ([] if decided_after == EPOCHS else expected)
    assert log.epochs == list(range(1, EPOCHS + 1))
    assert ledger(study) == ledger(whole)


def test_stop_at_late_decision_releases_trial_before_rung(bench, whole_and_paused, log, monkeypatch):
    whole, study, config = whole_and_paused
    decides = threading.Event()

    class Stop(threading.Event):
        """Event that is set after the check for a decision in step 4, while the decision arrives."""

        def is_set(self):
            if log.last == 4 and not decides.is_set():
                reporter = log.trials[0].reporter
                assert reporter.stop_report is None
                decides.set()
                reporter.flush(30, threading.Event())
                assert reporter.stop_report is not None
                self.set()
            return super().is_set()

    objective = log.watch(make_objective(config))
    worker = bench.worker(study, config, stop=Stop(), objective=objective, timings=LATE)
    monkeypatch.setattr(worker._pruner, "should_continue", lambda *_: not decides.wait())
    worker.run()
    assert log.last == 4
    (active,) = study.store.active_trials()
    assert active.epoch < RUNGS[0]
    assert study.store.refresh().paused == {}
    bench.worker(study, config, "worker_b").run()
    assert ledger(study) == ledger(whole)


@pytest.mark.parametrize("pruner", ["asha", "hyperband"])
def test_parallel_workers_finish_budget_exactly(bench, pruner):
    config = make_config(trials=10, pruner=pruner)
    studies = [bench.join(config) for _ in range(3)]
    run_in_threads([bench.worker(study, config, owner=f"worker {i}") for i, study in enumerate(studies)])
    check_finished(studies[0], 10)
    more = make_config(trials=13, pruner=pruner)
    before = ledger(studies[0])
    bench.worker(studies[1], more, "worker_b").run()
    check_finished(studies[0], 13)
    assert ledger(studies[0])[:10] == before


def test_proposal_uses_reports_of_paused_trials(bench):
    seen = []

    class WatchedSampler(RandomSampler):
        def propose(self, space, trials, seed):
            seen.append([trial.last_step is not None for trial in trials])
            return super().propose(space, trials, seed)

    config = make_config(pruner="asha", trials=3)
    worker = bench.worker(bench.join(config), config)
    worker._proposer = replace(worker._proposer, sampler=WatchedSampler())
    worker.run()
    assert seen == [[True] * number for number in range(3)]


@pytest.mark.parametrize("calls", [6, 12, 18])
def test_stop_while_trials_are_paused_loses_nothing(bench, calls):
    undisturbed = make_config("undisturbed", pruner="asha", trials=6)
    disturbed = make_config("disturbed", pruner="asha", trials=6)
    study, stopped = bench.join(undisturbed), bench.join(disturbed)
    bench.worker(study, undisturbed).run()
    bench.worker(stopped, disturbed, stop=StopAfter(calls)).run()
    assert stopped.store.refresh().paused
    bench.worker(stopped, disturbed, "worker_b").run()
    assert ledger(stopped) == ledger(study)


def test_lower_budget_ends_existing_trials(bench):
    config, less = make_config(trials=5, pruner="two rungs"), make_config(trials=1, pruner="two rungs")
    study = bench.join(config)
    for number in range(3):
        lease = create_proposed(study, config, number)
        study.store.pause(lease, [(1, 0.1), (2, 0.2)], Checkpoint(2, 1.5, b"two"))
    bench.worker(study, less).run()
    check_finished(study, 3)
