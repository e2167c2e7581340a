"""Workers that run an objective without data, with successive halving."""

import threading
from collections.abc import Iterator

import pytest
from optuna.trial import TrialState
from quadratic import N_STEPS, Quadratic, make_quadratic_config
from workers import EpochLog, StopAfter, WorkerFactory, ledger

from hpo.search.pruning.asha import rungs
from hpo.storage.tables.leases import InterruptionStats

BUDGET = 12
(RUNG,) = rungs(N_STEPS)


@pytest.fixture
def bench(tmp_path) -> Iterator[WorkerFactory]:
    bench = WorkerFactory(f"sqlite:///{tmp_path}/hpo.db", tmp_path)
    yield bench
    bench.close()


def start(bench, config, owner="worker_a", stop=None, objective=None):
    """Join the study, and return it with a worker."""
    study = bench.join(config, fingerprint="")
    return study, bench.worker(study, config, owner, stop, objective=objective or Quadratic())


def test_trials_are_paused_and_promoted(bench):
    log = EpochLog()
    study, worker = start(bench, make_quadratic_config(), objective=log.watch(Quadratic()))
    worker.run()
    trials = study.trials
    assert [trial.number for trial in trials] == list(range(BUDGET))
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    assert (len(complete), len(complete) + len(pruned)) == (BUDGET // 3, BUDGET)
    assert all(trial.last_step == N_STEPS and trial.value == trial.intermediate_values[N_STEPS] for trial in complete)
    assert all(trial.last_step == RUNG and trial.value == trial.intermediate_values[RUNG] for trial in pruned)
    assert min(t.intermediate_values[RUNG] for t in complete) > max(t.intermediate_values[RUNG] for t in pruned)
    # No step was repeated.
    assert len(log.epochs) == N_STEPS * len(complete) + RUNG * len(pruned)
    assert study.store.active_trials() == []
    assert study.store.interruption_stats() == InterruptionStats(0, 0)
    assert study.store.weights(complete[0].number) == b"quadratic"


@pytest.mark.parametrize("calls", [3, 10, 25, 40])
def test_stopped_study_resumes_to_same_trials(bench, calls):
    study, worker = start(bench, make_quadratic_config("undisturbed"))
    worker.run()
    config = make_quadratic_config("stopped")
    stopped, worker = start(bench, config, stop=StopAfter(calls))
    worker.run()
    assert stopped.store.active_trials() != []
    _, worker = start(bench, config, "worker_b")
    worker.run()
    assert ledger(stopped) == ledger(study)


def test_parallel_workers_finish_budget_exactly(bench):
    config = make_quadratic_config(trials=20)
    started = [start(bench, config, f"worker_{i}") for i in range(3)]
    threads = [threading.Thread(target=worker.run) for _, worker in started]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    study = started[0][0]
    assert [trial.number for trial in study.trials] == list(range(20))
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert study.store.active_trials() == []
