"""One worker in this process, on real databases."""

import threading
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from factories import HOUR_S, execute, expire_leases, make_database
from fakes import FakeClock
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.exc import ProgrammingError
from workers import (
    TIMINGS,
    EpochLog,
    StopAfter,
    WorkerFactory,
    WrappedObjective,
    WrappedTrial,
    create_proposed,
    ledger,
    make_config,
    make_objective,
)

from hpo.config.study import StudyConfig
from hpo.models.fitted import unpack_model
from hpo.runner import worker_loop
from hpo.runner.limits import Limits
from hpo.runner.trial_runner import SharedProgress
from hpo.runner.worker_loop import WorkerConfig, run_worker
from hpo.storage.tables.leases import MAX_CRASHES_AT_SAME_STEP, ActiveTrial, Checkpoint
from hpo.storage.trial_store import REASON, TrialOutcome


def test_worker_finishes_budget_exactly(bench):
    config = make_config()
    study = bench.join(config)
    bench.worker(study, config).run()
    assert [t.number for t in study.trials] == [0, 1, 2, 3]
    assert {t.state for t in study.trials} == {TrialState.COMPLETE}
    assert study.store.active_trials() == []
    bench.worker(study, config).run()
    assert len(study.trials) == 4


def test_parallel_workers_equal_one_worker(bench):
    alone, together = make_config("alone"), make_config("together")
    study = bench.join(alone)
    bench.worker(study, alone).run()
    shared = [bench.join(together) for _ in range(3)]
    threads = [
        threading.Thread(target=bench.worker(study, together, owner=f"worker {i}").run)
        for i, study in enumerate(shared)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger(shared[0]) == ledger(study)


@pytest.mark.parametrize(
    ("calls", "backend"),
    [
        *((calls, "numpy") for calls in (3, 8, 20, 31)),
        pytest.param(
            20,
            "torch",
            marks=pytest.mark.skipif(find_spec("torch") is None, reason="no PyTorch: pip install 'hpo[torch]'"),
        ),
    ],
)
def test_stopped_trial_resumes_to_same_bits(bench, calls, backend):
    undisturbed, disturbed = (make_config(name, train={"backend": backend}) for name in ("undisturbed", "disturbed"))
    study, stopped = bench.join(undisturbed), bench.join(disturbed)
    bench.worker(study, undisturbed).run()
    bench.worker(stopped, disturbed, stop=StopAfter(calls)).run()
    assert [trial.owned for trial in stopped.store.active_trials()] == [False]
    bench.worker(stopped, disturbed, owner="worker_b").run()
    assert ledger(stopped) == ledger(study)
    best = max(study.trials, key=lambda t: (t.value, -t.number)).number
    for one, other in zip(
        unpack_model(study.store.weights(best)).weights, unpack_model(stopped.store.weights(best)).weights, strict=True
    ):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_setup_comes_before_limit_and_trials(bench, monkeypatch):
    calls = []

    class SetupObjective(WrappedObjective):
        def setup(self):
            calls.append("setup")

    monkeypatch.setattr(worker_loop, "limit_memory", lambda limit: calls.append(("limit", limit)))
    monkeypatch.setattr(worker_loop.WorkerLoop, "run", lambda self: calls.append("run"))
    config = make_config()
    bench.join(config)
    objective = SetupObjective(make_objective(config), WrappedTrial)
    limits = Limits(30, memory=10**9)
    worker_config = WorkerConfig(bench.database, config, objective, 4, limits, verbose=False)
    run_worker(worker_config, "worker_a", threading.Event(), SharedProgress())
    assert calls == ["setup", ("limit", 10**9), "run"]


def test_resumed_trial_repeats_no_epoch(bench):
    log, config = EpochLog(), make_config(trials=1)
    study, objective = bench.join(config), log.watch(make_objective(config))
    bench.worker(study, config, stop=StopAfter(8), objective=objective).run()
    assert log.last < study.trials[0].params["epochs"]
    bench.worker(study, config, "worker_b", objective=objective).run()
    assert log.epochs == list(range(1, study.trials[0].params["epochs"] + 1))


def test_trial_that_crashes_workers_fails_with_reason(bench):
    config = make_config()
    study = bench.join(config)
    create_proposed(study, config)
    for _ in range(MAX_CRASHES_AT_SAME_STEP - 1):
        study.store.record_death("worker_a", "killed by SIGSEGV", epoch=4)
        assert study.store.claim("worker_a") is not None
    study.store.record_death("worker_a", "killed by SIGSEGV", epoch=4)
    bench.worker(study, config, owner="worker_b").run()
    assert [t.state for t in study.trials] == [TrialState.FAIL] + [TrialState.COMPLETE] * 3
    assert study.trials[0].user_attrs[REASON] == "crashed 3 times: killed by SIGSEGV"


@pytest.mark.parametrize(("epoch", "step"), [(0, 0), (0, 1), (3, 0), (3, 2), (5, 0)])
def test_trial_that_crashed_at_start_restarts_after_delay(bench, epoch, step):
    class Stop(threading.Event):
        def wait(self, timeout=None):
            waits.append((timeout, progress.in_trial_code))
            return super().wait(0)

    waits, progress = [], SharedProgress()
    config = make_config(trials=1)
    study = bench.join(config)
    study.store.release(create_proposed(study, config, owner="worker_b"), [], Checkpoint(3, 0.0, b"of old"))
    assert study.store.claim("worker_b") is not None
    study.store.record_death("worker_b", "killed by SIGKILL", epoch, step)
    bench.worker(study, config, stop=Stop(), progress=progress).run()
    assert waits == ([(TIMINGS.restart_delay_s, False)] if (epoch, step) == (3, 0) else [])
    assert study.trials[0].state == TrialState.COMPLETE


def test_stop_during_restart_delay_releases_trial(bench):
    stop = threading.Event()
    stop.wait = lambda timeout: stop.set() or True
    config = make_config(trials=1)
    study = bench.join(config)
    create_proposed(study, config, owner="worker_b")
    study.store.record_death("worker_b", "killed by SIGKILL", epoch=0)
    bench.worker(study, config, stop=stop).run()
    assert study.store.active_trials() == [ActiveTrial(0, 0, 2, owned=False)]


def test_lost_lease_changes_nothing_and_worker_continues(bench, monkeypatch):
    config = make_config()
    study = bench.join(config)
    finish = study.store.finish
    successor = []

    def finish_late(lease, *arguments):
        if not successor:
            expire_leases(bench.database)
            successor.append(study.store.claim("worker_b"))
            finish(successor[0], TrialOutcome(TrialState.COMPLETE, 0.125), (), b"of worker_b")
        finish(lease, *arguments)

    monkeypatch.setattr(study.store, "finish", finish_late)
    bench.worker(study, config).run()
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 4
    assert study.trials[0].value == 0.125
    assert study.store.interruption_stats().resumed == 1


def test_unknown_checkpoint_starts_trial_over(bench):
    undisturbed, disturbed = make_config("undisturbed"), make_config("disturbed")
    study, other = bench.join(undisturbed), bench.join(disturbed)
    bench.worker(study, undisturbed).run()
    other.store.release(create_proposed(other, disturbed), [], Checkpoint(5, 1.0, b"in another format"))
    bench.worker(other, disturbed, owner="worker_b").run()
    assert ledger(other) == ledger(study)


def test_trials_start_from_different_weights(bench):
    fixed = {"learning_rate": 0.01, "regularization": 1e-4, "hidden_size": 8, "epochs": 5}
    config = StudyConfig.model_validate(make_config(trials=2).model_dump() | {"train": fixed, "space": {}})
    study = bench.join(config)
    bench.worker(study, config).run()
    first, second = study.trials
    assert first.params == second.params == {}
    assert first.intermediate_values != second.intermediate_values


def test_divergence_prunes_trial_with_reason(bench):
    config = make_config(space={"learning_rate": {"low": 1e5, "high": 1e6, "log": True}}, trials=1)
    study = bench.join(config)
    bench.worker(study, config).run()
    assert study.trials[0].state == TrialState.PRUNED
    assert study.trials[0].user_attrs[REASON].startswith("diverged: epoch 1")


def test_worker_logs_trials_with_context(bench, caplog):
    config = make_config(trials=1)
    study = bench.join(config)
    with caplog.at_level("DEBUG", logger="hpo.runner"):
        bench.worker(study, config).run()
    assert [record.getMessage() for record in caplog.records] == ["trial 0 starts", "trial 0 ends as COMPLETE"]
    assert {(record.study, record.trial, record.worker) for record in caplog.records} == {("s", 0, "worker_a")}


def test_parallel_workers_cause_no_error_in_server_log(postgres, tmp_path):
    url = postgres.new_database()
    bench = WorkerFactory(url, tmp_path)
    config = make_config(trials=12, pruner="asha", space={"epochs": {"choices": [9]}}, train={"epochs": None})
    # The second launch finds the study, and the workers race for each number.
    studies = [bench.join(config) for _ in range(4)]
    owners = [f"worker {number}" for number in range(4)]
    threads = [
        threading.Thread(target=bench.worker(study, config, owner).run)
        for study, owner in zip(studies, owners, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(studies[0].trials) == 12
    bench.close()
    assert postgres.errors(url) == []


def test_concurrent_allocations_are_all_accepted(postgres, tmp_path):
    url = postgres.new_database()
    bench = WorkerFactory(url, tmp_path)
    config = make_config(trials=40, pruner="none")
    studies = [bench.join(config) for _ in range(4)]
    studies[0].store.raise_budget(40)
    start = threading.Barrier(4)
    allocated = []

    def create(study) -> None:
        start.wait()
        while (lease := study.store.allocate("worker")) is not None:
            allocated.append(lease.number)

    threads = [threading.Thread(target=create, args=(study,)) for study in studies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(allocated) == list(range(40))
    assert [trial.number for trial in studies[0].trials] == list(range(40))
    bench.close()
    assert postgres.errors(url) == []


def test_server_log_shows_errors(postgres):
    url = postgres.new_database()
    with pytest.raises(ProgrammingError, match="missing_table"):
        execute(make_database(url), "SELECT * FROM missing_table")
    (error,) = postgres.errors(url)
    assert "missing_table" in error


class AdvancingStop(threading.Event):
    """Event that advances a clock instead of waiting, and is set at a time."""

    def __init__(self, clock: FakeClock, end: float) -> None:
        super().__init__()
        self._clock, self._end = clock, end
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout)
        self._clock.advance(timeout)
        if self._clock.now >= self._end:
            self.set()
        return self.is_set()


def test_idle_worker_sends_few_statements(storage_url, tmp_path):
    bench = WorkerFactory(storage_url, tmp_path, lease_s=HOUR_S)
    config = make_config(trials=1)
    study, clock, statements = bench.join(config), FakeClock(), []
    create_proposed(study, config, owner="worker_b")
    event.listen(study.store._engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    stop = AdvancingStop(clock, end=clock.now + 600)
    timings = replace(TIMINGS, poll_interval_s=0.5, clock=clock)
    bench.worker(study, config, stop=stop, timings=timings).run()
    bench.close()
    # A claim, the three queries of a refresh, and the active trials.
    assert len(statements) <= 5 * (600 / timings.max_poll_interval_s + 15)


@pytest.mark.parametrize("expires_in_s", [HOUR_S, HOUR_S / 4])
def test_idle_worker_polls_when_lease_expires(storage_url, tmp_path, expires_in_s):
    bench = WorkerFactory(storage_url, tmp_path, lease_s=HOUR_S)
    config = make_config(trials=1)
    study, clock = bench.join(config), FakeClock()
    create_proposed(study, config, owner="worker_b")
    execute(make_database(storage_url), f"UPDATE hpo_leases SET expires = expires - {HOUR_S - expires_in_s}")
    stop = AdvancingStop(clock, end=clock.now + 40 * HOUR_S)
    # The clock of the database does not advance.
    bench.worker(study, config, stop=stop, timings=replace(TIMINGS, max_poll_interval_s=1e9, clock=clock)).run()
    bench.close()
    assert expires_in_s / 2 < max(stop.waits) <= expires_in_s + 0.1
