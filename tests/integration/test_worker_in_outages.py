"""A worker whose database is away for a while: what it leaves behind is what an undisturbed one does."""

import random
import threading
from collections.abc import Callable
from enum import Enum, auto

import pytest
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError
from workers import expire_all, ledger, make_config

from hpo.config.study import StudyConfig
from hpo.errors import StorageError
from hpo.models.trainer import Trainer
from hpo.runner import reporter as keeper_module
from hpo.runner import trial_runner as attempt
from hpo.runner import worker_loop as worker
from hpo.runner.reporter import TrialReporter
from hpo.search.samplers import propose
from hpo.storage import database as storage
from hpo.storage import leases
from hpo.storage import trial_store as trials
from hpo.storage.leases import InterruptionStats, Leases
from hpo.storage.study import Study

EPOCHS = 20
LONG = {"epochs": {"choices": [EPOCHS]}}
UNDISTURBED: dict[str, list[tuple[object, ...]]] = {}
CALLS = {
    "claim": (Leases, "claim"),
    "create": (trials, "create"),
    "read": (trials, "read"),
    "write": (trials, "write"),
    "promote": (Leases, "promote"),
    "pause": (trials, "pause"),
    "prune": (trials, "prune_paused"),
    "end": (trials, "end"),
    "give back": (trials, "give_back"),
}
# Where it makes no difference.
on_sqlite = pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)


class FaultSchedule(Enum):
    """What becomes of a call."""

    DONE = auto()
    AWAY = auto()
    LOST = auto()  # done, and the answer never came


class MLP:
    """Between workers and their database; ``fate`` is told a call's name and how many of that name there were."""

    def __init__(self) -> None:
        self.fate: Callable[[str, int], FaultSchedule] = lambda name, count: FaultSchedule.DONE
        self.said: list[str] = []

    def through(self, name: str, function: Callable) -> Callable:
        def call(*arguments, **keywords):
            self.said.append(name)
            assert len(self.said) < 10_000, "it gets nowhere"
            fate = self.fate(name, self.said.count(name))
            if fate == FaultSchedule.AWAY:
                raise outage()
            answer = function(*arguments, **keywords)
            if fate == FaultSchedule.LOST:
                raise outage()
            return answer

        return call


def make_judged(name: str = "s", **arguments) -> StudyConfig:
    """A study whose trials wait for an answer to nearly every report, of which none ends one: there are too few."""
    return make_config(name, **{"pruner": "median"} | arguments)


def leave_one(study: Study, spec: StudyConfig) -> None:
    """Bert begins a trial and gives it back."""
    trials.give_back(study, trials.create(study, spec, propose(spec, []), 0, "worker_b"), [], None)


class Trained:
    """The epochs that were trained, in order; ``then`` is called after each, before it is reported."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.then: Callable[[int], None] = lambda epoch: None

    @property
    def last(self) -> int:
        return self.epochs[-1] if self.epochs else 0


def outage() -> OperationalError:
    return OperationalError("UPDATE", {}, ConnectionError("gone"))


@pytest.fixture
def network(monkeypatch):
    network = MLP()
    for name, (owner, attribute) in CALLS.items():
        monkeypatch.setattr(owner, attribute, network.through(name, getattr(owner, attribute)))
    return network


@pytest.fixture
def trained(monkeypatch):
    trained, epochs = Trained(), Trainer.epochs

    def counted(training, after_step):
        for epoch in epochs(training, after_step):
            trained.epochs.append(epoch.number)
            trained.then(epoch.number)
            yield epoch

    monkeypatch.setattr(Trainer, "epochs", counted)
    return trained


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    monkeypatch.setattr(leases, "LEASE_SECONDS", 3600.0)
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(storage, "RETRY_WAIT_MAX", 0.001)
    monkeypatch.setattr(keeper_module, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(keeper_module, "RETRY_SECONDS", 0.001)
    monkeypatch.setattr(keeper_module, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(keeper_module, "RENEW_SECONDS", 0.02)
    monkeypatch.setattr(keeper_module, "FIRST_CHECKPOINT_SECONDS", 0.0)


@pytest.fixture
def undisturbed(bench):
    """What a worker leaves behind whom nobody disturbs, in whatever database."""

    def run(**arguments):
        if (key := repr(arguments)) not in UNDISTURBED:
            spec = make_judged("undisturbed", **arguments)
            study = bench.join(spec)
            bench.worker(study, spec).run()
            UNDISTURBED[key] = ledger(study)
        return UNDISTURBED[key]

    return run


@pytest.mark.parametrize("fate", [FaultSchedule.AWAY, FaultSchedule.LOST])
@pytest.mark.parametrize("name", ["claim", "create", "read", "write", "end"])
def test_a_call_that_fails_three_times_of_four_does_no_harm(bench, network, undisturbed, name, fate):
    wanted = undisturbed(trials=2)
    spec = make_judged(trials=2)
    study = bench.join(spec)
    leave_one(study, spec)
    network.said.clear()
    network.fate = lambda call, count: fate if call == name and count % 4 else FaultSchedule.DONE
    bench.worker(study, spec).run()
    assert network.said.count(name) >= 2
    assert ledger(study) == wanted
    assert study.leases.unfinished() == []
    best = max(study.trials, key=lambda trial: trial.value).number
    assert study.leases.weights(best) is not None


@pytest.mark.parametrize("fate", [FaultSchedule.AWAY, FaultSchedule.LOST])
@pytest.mark.parametrize("name", ["promote", "pause", "prune"])
def test_a_call_about_a_pause_that_fails_three_times_of_four_does_no_harm(bench, network, undisturbed, name, fate):
    wanted = undisturbed(trials=4, pruner="asha")
    spec = make_judged(trials=4, pruner="asha")
    study = bench.join(spec)
    network.said.clear()
    network.fate = lambda call, count: fate if call == name and count % 4 else FaultSchedule.DONE
    bench.worker(study, spec).run()
    assert network.said.count(name) >= 2
    assert ledger(study) == wanted
    assert study.leases.unfinished() == []
    assert study.leases.interruption_stats().epochs_lost == 0


@on_sqlite
def test_an_end_whose_answer_is_lost_costs_no_epochs(bench, network, trained, monkeypatch):
    monkeypatch.setattr(keeper_module, "CHECKPOINT_SECONDS", 3600.0)
    network.fate = lambda call, count: FaultSchedule.LOST if call == "end" else FaultSchedule.DONE
    spec = make_judged(space=LONG, trials=1)
    study = bench.join(spec)
    bench.worker(study, spec).run()
    assert trained.epochs == list(range(1, EPOCHS + 1))
    assert study.leases.interruption_stats() == InterruptionStats(resumed=0, epochs_lost=0)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_calls_fail(bench, network, undisturbed, seed):
    wanted = undisturbed(trials=3)
    draw = random.Random(seed)
    network.fate = lambda *_: draw.choice(
        [FaultSchedule.DONE, FaultSchedule.DONE, FaultSchedule.AWAY, FaultSchedule.LOST]
    )
    spec = make_judged(trials=3)
    study = bench.join(spec)
    bench.worker(study, spec).run()
    assert ledger(study) == wanted


@pytest.mark.parametrize("seed", range(3))
def test_whatever_calls_fail_trials_that_pause_stand_where_they_would_have_come_by(bench, network, undisturbed, seed):
    whole = undisturbed(trials=4, pruner="none")
    draw = random.Random(seed)
    network.fate = lambda *_: draw.choice(
        [FaultSchedule.DONE, FaultSchedule.DONE, FaultSchedule.AWAY, FaultSchedule.LOST]
    )
    spec = make_judged(trials=4, pruner="asha")
    study = bench.join(spec)
    bench.worker(study, spec).run()
    ended = {(number, state) for number, state, *_ in ledger(study)}
    assert len(ended) == 4
    assert {state for _, state in ended} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert study.leases.unfinished() == []
    for trial, (_, _, params, curve, value) in zip(study.trials, whole, strict=True):
        last = trial.last_step
        assert trial.params == params
        assert trial.intermediate_values == {epoch: accuracy for epoch, accuracy in curve.items() if epoch <= last}
        assert trial.value == (value if trial.state == TrialState.COMPLETE else curve[last])


@on_sqlite
def test_the_training_goes_on_while_reports_cannot_be_delivered(bench, network, undisturbed, trained):
    wanted = undisturbed(space=LONG, trials=1)
    trained.epochs.clear()
    arrived_after = []

    def fate(name: str, count: int) -> FaultSchedule:
        if name == "write" and trained.last < EPOCHS - 2 and count < 5000:
            return FaultSchedule.AWAY
        if name == "write":
            arrived_after.append(trained.last)
        return FaultSchedule.DONE

    network.fate = fate
    spec = make_judged(space=LONG, trials=1)
    study = bench.join(spec)
    bench.worker(study, spec).run()
    assert arrived_after[0] >= EPOCHS - 2
    assert ledger(study) == wanted


@pytest.mark.parametrize("answered_after", [5, 13, EPOCHS])
def test_an_answer_that_comes_late_ends_the_trial_at_the_epoch_that_it_is_about(
    bench, undisturbed, trained, monkeypatch, answered_after
):
    whole = undisturbed(space=LONG, trials=1)[0][3]
    trained.epochs.clear()
    keepers, there = [], threading.Event()

    class Watched(TrialReporter):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            keepers.append(self)

    def then(epoch: int) -> None:
        if epoch == answered_after:
            there.set()
            assert keepers[0].settle(30, threading.Event()) == (4, whole[4])

    def answer_late(_, trials, number):
        if trials[number].last_step == 4:
            assert there.wait(30)
        return trials[number].last_step != 4

    trained.then = then
    monkeypatch.setattr(attempt, "TrialReporter", Watched)
    monkeypatch.setattr(attempt, "should_continue", answer_late)
    spec = make_judged(space=LONG, trials=1)
    study = bench.join(spec)
    bench.worker(study, spec).run()
    trial = study.trials[0]
    assert (trial.state, trial.value) == (TrialState.PRUNED, whole[4])
    assert trial.user_attrs[trials.REASON] == "pruned at epoch 4"
    assert trial.intermediate_values == {epoch: value for epoch, value in whole.items() if epoch <= 4}
    assert trained.last == answered_after
    assert study.leases.interruption_stats().epochs_lost == 0


@pytest.mark.parametrize("stopped_after", [8, EPOCHS])
@pytest.mark.parametrize("delivered", [0, 1])
def test_who_stops_in_an_outage_leaves_no_checkpoint_that_is_ahead_of_the_reports(
    bench, network, undisturbed, trained, monkeypatch, stopped_after, delivered
):
    wanted = undisturbed(space=LONG, trials=1)
    trained.epochs.clear()
    monkeypatch.setattr(keeper_module, "RENEW_SECONDS", 0.0)
    stop, delivered_late = threading.Event(), []

    def fate(name: str, _: int) -> FaultSchedule:
        if name != "write" or trained.last < 4:
            return FaultSchedule.DONE
        if trained.last >= 6 and len(delivered_late) < delivered:
            delivered_late.append(name)
            return FaultSchedule.DONE
        if trained.last >= stopped_after:
            stop.set()
        return FaultSchedule.AWAY

    network.fate = fate
    spec = make_judged(space=LONG, trials=1)
    study = bench.join(spec)
    bench.worker(study, spec, stop=stop).run()
    assert trained.last >= stopped_after
    assert [progress.owned for progress in study.leases.unfinished()] == [False]
    assert study.leases.unfinished()[0].epoch <= max(study.trials[0].intermediate_values, default=0) < stopped_after
    network.fate = lambda *_: FaultSchedule.DONE
    bench.worker(study, spec, "worker_b").run()
    assert ledger(study) == wanted


@on_sqlite
@pytest.mark.parametrize("name", ["claim", "create", "read", "end"])
def test_who_is_stopped_while_he_waits_for_the_database_waits_no_longer(bench, network, undisturbed, name):
    wanted = undisturbed(trials=1)
    stop = threading.Event()

    def fate(call: str, _: int) -> FaultSchedule:
        if call == name:
            stop.set()
            return FaultSchedule.AWAY
        return FaultSchedule.DONE

    spec = make_judged(trials=1)
    study = bench.join(spec)
    if name == "read":
        leave_one(study, spec)
    network.fate = fate
    with pytest.raises(OperationalError):
        bench.worker(study, spec, stop=stop).run()
    network.fate = lambda *_: FaultSchedule.DONE
    expire_all(study)
    bench.worker(study, spec, "worker_b").run()
    assert ledger(study) == wanted


def test_a_lease_that_cannot_be_given_back_runs_out(bench, network, undisturbed, trained):
    wanted = undisturbed(space=LONG, trials=1)
    stop = threading.Event()
    trained.then = lambda epoch: stop.set() if epoch == 5 else None
    network.fate = lambda name, _: FaultSchedule.AWAY if name == "give back" else FaultSchedule.DONE
    spec = make_judged(space=LONG, trials=1)
    study = bench.join(spec)
    bench.worker(study, spec, stop=stop).run()
    assert [progress.owned for progress in study.leases.unfinished()] == [True]
    expire_all(study)
    bench.worker(study, spec, "worker_b").run()
    assert ledger(study) == wanted


@on_sqlite
@pytest.mark.parametrize("name", ["claim", "create", "read", "write", "end"])
def test_a_database_that_stays_away_is_given_up(bench, network, name):
    spec = make_judged(trials=1)
    study = bench.join(spec)
    if name == "read":
        leave_one(study, spec)
    network.fate = lambda call, _: FaultSchedule.AWAY if call == name else FaultSchedule.DONE
    with pytest.raises((OperationalError, StorageError)):
        bench.worker(study, spec, storage_timeout=0.05).run()
