"""Workers during outages of the database: the study ends as without outages."""

import random
import threading
from collections.abc import Callable
from enum import Enum, auto

import pytest
from factories import HOUR_S, expire_leases, make_outage
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError
from workers import EpochLog, WorkerFactory, create_proposed, heartbeat_timings, ledger, make_config, make_objective

from hpo.config.study import StudyConfig
from hpo.errors import StorageError
from hpo.storage.study import Study
from hpo.storage.tables.leases import InterruptionStats
from hpo.storage.trial_store import REASON, TrialStore

EPOCHS = 20
LONG = {"epochs": {"choices": [EPOCHS]}}
TIMINGS = {"decision_timeout_s": 0.05, "renewal_delay_s": 0.02}
# Trials of studies without outages, by the arguments of their configs.
UNDISTURBED: dict[str, list[tuple[object, ...]]] = {}
CALLS = ["claim", "allocate", "refresh", "report", "resume", "pause", "prune_paused", "finish", "release"]
# For tests that are the same for each database.
on_sqlite = pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)


class Fault(Enum):
    """Fault of a call of the trial store."""

    NONE = auto()
    UNAVAILABLE = auto()
    REPLY_LOST = auto()


class FaultyStore:
    """Faults of all calls of trial stores.

    Attributes:
        fault: Returns the fault of a call, from its name and the number of calls of this name.
        calls: The names of all calls.
    """

    def __init__(self) -> None:
        self.repair()
        self.calls: list[str] = []

    def repair(self) -> None:
        self.fault: Callable[[str, int], Fault] = lambda name, count: Fault.NONE

    def wrap(self, name: str, method: Callable) -> Callable:
        def call(*arguments, **keywords):
            self.calls.append(name)
            assert len(self.calls) < 10_000, "no progress"
            fault = self.fault(name, self.calls.count(name))
            if fault == Fault.UNAVAILABLE:
                raise make_outage()
            result = method(*arguments, **keywords)
            if fault == Fault.REPLY_LOST:
                raise make_outage()
            return result

        return call


@pytest.fixture
def bench(storage_url, tmp_path):
    bench = WorkerFactory(storage_url, tmp_path, lease_s=HOUR_S)
    yield bench
    bench.close()


@pytest.fixture
def faults(monkeypatch):
    faults = FaultyStore()
    for name in CALLS:
        monkeypatch.setattr(TrialStore, name, faults.wrap(name, getattr(TrialStore, name)))
    return faults


@pytest.fixture
def log():
    return EpochLog()


@pytest.fixture
def run(bench, faults, log):
    """Return a function that runs a worker, and then ends the faults."""

    def run_worker(study, config, owner="worker_a", stop=None, pruner=None, storage_timeout=30, **timings) -> None:
        objective = log.watch(make_objective(config))
        timings = heartbeat_timings(**(TIMINGS | timings))
        worker = bench.worker(
            study, config, owner, stop, objective=objective, timings=timings, storage_timeout=storage_timeout
        )
        if pruner is not None:
            worker._pruner.should_continue = pruner
        try:
            worker.run()
        finally:
            faults.repair()

    return run_worker


@pytest.fixture
def undisturbed(bench):
    """Return a function that returns the trials of a study without outages, on any database."""

    def run(**arguments):
        if (key := repr(arguments)) not in UNDISTURBED:
            config = make_decided_config("undisturbed", **arguments)
            study = bench.join(config)
            bench.worker(study, config).run()
            UNDISTURBED[key] = ledger(study)
        return UNDISTURBED[key]

    return run


def make_decided_config(name: str = "s", **arguments) -> StudyConfig:
    """Return a config whose pruner decides about most reports, but prunes none of so few trials."""
    return make_config(name, **{"pruner": "median"} | arguments)


def release_one(study: Study, config: StudyConfig) -> None:
    """Create a trial and release it."""
    study.store.release(create_proposed(study, config, owner="worker_b"), [])


@pytest.mark.parametrize("fault", [Fault.UNAVAILABLE, Fault.REPLY_LOST])
@pytest.mark.parametrize("name", ["claim", "allocate", "refresh", "report", "finish"])
def test_repeated_faults_change_nothing(bench, faults, run, undisturbed, name, fault):
    expected = undisturbed(trials=2)
    config = make_decided_config(trials=2)
    study = bench.join(config)
    release_one(study, config)
    faults.calls.clear()
    faults.fault = lambda call, count: fault if call == name and count % 4 else Fault.NONE
    run(study, config)
    assert faults.calls.count(name) >= 2
    assert ledger(study) == expected
    assert study.store.active_trials() == []
    best = max(study.trials, key=lambda trial: trial.value).number
    assert study.store.weights(best) is not None


@pytest.mark.parametrize("fault", [Fault.UNAVAILABLE, Fault.REPLY_LOST])
@pytest.mark.parametrize("name", ["resume", "pause", "prune_paused"])
def test_repeated_faults_of_pauses_change_nothing(bench, faults, run, undisturbed, name, fault):
    expected = undisturbed(trials=4, pruner="asha")
    config = make_decided_config(trials=4, pruner="asha")
    study = bench.join(config)
    faults.calls.clear()
    faults.fault = lambda call, count: fault if call == name and count % 4 else Fault.NONE
    # These faults are not those of reports, so that each decision arrives.
    run(study, config, decision_timeout_s=HOUR_S)
    assert faults.calls.count(name) >= 2
    assert ledger(study) == expected
    assert study.store.active_trials() == []
    assert study.store.interruption_stats().epochs_lost == 0


@on_sqlite
def test_lost_reply_of_finish_costs_no_epochs(bench, faults, run, log):
    faults.fault = lambda call, count: Fault.REPLY_LOST if call == "finish" else Fault.NONE
    config = make_decided_config(space=LONG, trials=1)
    study = bench.join(config)
    run(study, config, checkpoint_interval_s=HOUR_S)
    assert log.epochs == list(range(1, EPOCHS + 1))
    assert study.store.interruption_stats() == InterruptionStats(resumed=0, epochs_lost=0)


def draw_faults(seed: int) -> Callable[[str, int], Fault]:
    draw = random.Random(seed)
    return lambda *_: draw.choice([Fault.NONE, Fault.NONE, Fault.UNAVAILABLE, Fault.REPLY_LOST])


@pytest.mark.parametrize("seed", range(3))
def test_random_faults_change_nothing(bench, faults, run, undisturbed, seed):
    expected = undisturbed(trials=3)
    config = make_decided_config(trials=3)
    study = bench.join(config)
    faults.fault = draw_faults(seed)
    run(study, config)
    assert ledger(study) == expected


@pytest.mark.parametrize("seed", range(3))
def test_random_faults_keep_curves_of_paused_trials(bench, faults, run, undisturbed, seed):
    whole = undisturbed(trials=4, pruner="none")
    config = make_decided_config(trials=4, pruner="asha")
    study = bench.join(config)
    faults.fault = draw_faults(seed)
    run(study, config)
    ended = {(number, state) for number, state, *_ in ledger(study)}
    assert len(ended) == 4
    # A decision that arrives after the last step leaves a trial complete, so that all four can be.
    states = {state for _, state in ended}
    assert states <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert TrialState.COMPLETE in states
    assert study.store.active_trials() == []
    for trial, (_, _, params, curve, value) in zip(study.trials, whole, strict=True):
        last = trial.last_step
        assert trial.params == params
        assert trial.intermediate_values == {step: reported for step, reported in curve.items() if step <= last}
        assert trial.value == (value if trial.state == TrialState.COMPLETE else curve[last])


@on_sqlite
def test_training_continues_during_outage(bench, faults, run, undisturbed, log):
    expected = undisturbed(space=LONG, trials=1)
    written_after = []

    def fault(name: str, count: int) -> Fault:
        if name == "report" and log.last < EPOCHS - 2 and count < 5000:
            return Fault.UNAVAILABLE
        if name == "report":
            written_after.append(log.last)
        return Fault.NONE

    faults.fault = fault
    config = make_decided_config(space=LONG, trials=1)
    study = bench.join(config)
    run(study, config)
    assert written_after[0] >= EPOCHS - 2
    assert ledger(study) == expected


@pytest.mark.parametrize("decided_after", [5, 13, EPOCHS])
def test_late_decision_prunes_at_its_report(bench, run, undisturbed, log, decided_after):
    whole = undisturbed(space=LONG, trials=1)[0][3]
    decides = threading.Event()

    def on_epoch(epoch: int) -> None:
        if epoch == decided_after:
            decides.set()
            reporter = log.trials[0].reporter
            reporter.flush(30, threading.Event())
            assert reporter.stop_report == (4, whole[4])

    def decide_late(trials, number):
        if trials[number].last_step == 4:
            assert decides.wait()
        return trials[number].last_step != 4

    log.on_epoch = on_epoch
    config = make_decided_config(space=LONG, trials=1)
    study = bench.join(config)
    run(study, config, pruner=decide_late)
    trial = study.trials[0]
    assert (trial.state, trial.value) == (TrialState.PRUNED, whole[4])
    assert trial.user_attrs[REASON] == "pruned at epoch 4"
    assert trial.intermediate_values == {step: value for step, value in whole.items() if step <= 4}
    assert log.last == decided_after
    assert study.store.interruption_stats().epochs_lost == 0


@pytest.mark.parametrize("stopped_after", [8, EPOCHS])
@pytest.mark.parametrize("delivered", [0, 1])
def test_stop_during_outage_keeps_no_checkpoint_after_reports(
    bench, faults, run, undisturbed, log, stopped_after, delivered
):
    expected = undisturbed(space=LONG, trials=1)
    stop, delivered_late = threading.Event(), []

    def fault(name: str, _: int) -> Fault:
        if name != "report" or log.last < 4:
            return Fault.NONE
        if log.last >= 6 and len(delivered_late) < delivered:
            delivered_late.append(name)
            return Fault.NONE
        if log.last >= stopped_after:
            stop.set()
        return Fault.UNAVAILABLE

    faults.fault = fault
    config = make_decided_config(space=LONG, trials=1)
    study = bench.join(config)
    run(study, config, stop=stop, renewal_delay_s=0.0)
    assert log.last >= stopped_after
    (active,) = study.store.active_trials()
    assert not active.owned
    assert active.epoch <= max(study.trials[0].intermediate_values, default=0) < stopped_after
    run(study, config, "worker_b")
    assert ledger(study) == expected


@on_sqlite
@pytest.mark.parametrize("name", ["claim", "allocate", "refresh", "finish"])
def test_stop_interrupts_database_wait(bench, faults, run, undisturbed, name):
    expected = undisturbed(trials=1)
    stop = threading.Event()

    def fault(call: str, _: int) -> Fault:
        if call == name:
            stop.set()
            return Fault.UNAVAILABLE
        return Fault.NONE

    config = make_decided_config(trials=1)
    study = bench.join(config)
    if name == "refresh":
        release_one(study, config)
    faults.fault = fault
    with pytest.raises(OperationalError):
        run(study, config, stop=stop)
    expire_leases(bench.database)
    run(study, config, "worker_b")
    assert ledger(study) == expected


def test_lease_that_cannot_be_released_expires(bench, faults, run, undisturbed, log):
    expected = undisturbed(space=LONG, trials=1)
    stop = threading.Event()
    log.on_epoch = lambda epoch: stop.set() if epoch == 5 else None
    faults.fault = lambda name, _: Fault.UNAVAILABLE if name == "release" else Fault.NONE
    config = make_decided_config(space=LONG, trials=1)
    study = bench.join(config)
    run(study, config, stop=stop)
    assert [active.owned for active in study.store.active_trials()] == [True]
    expire_leases(bench.database)
    run(study, config, "worker_b")
    assert ledger(study) == expected


@on_sqlite
@pytest.mark.parametrize("name", ["claim", "allocate", "refresh", "report", "finish"])
def test_long_outage_ends_worker(bench, faults, run, name):
    config = make_decided_config(trials=1)
    study = bench.join(config)
    if name == "refresh":
        release_one(study, config)
    faults.fault = lambda call, _: Fault.UNAVAILABLE if call == name else Fault.NONE
    with pytest.raises((OperationalError, StorageError)):
        run(study, config, storage_timeout=0.05)
