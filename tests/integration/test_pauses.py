"""Trials that wait at their rungs, and go on from there."""

import threading

import numpy as np
import pytest
from optuna.trial import TrialState
from workers import StopAfter, expire_all, ledger, make_config

from hpo.models.predictor import unpack_layers
from hpo.models.trainer import Trainer
from hpo.runner import trial_runner as attempt
from hpo.runner import worker_loop as worker
from hpo.runner.reporter import TrialReporter
from hpo.search.pruners import SuccessiveHalving, report_epochs
from hpo.search.samplers import propose
from hpo.storage import trial_store as trials
from hpo.storage.leases import Checkpoint, InterruptionStats, LeaseLostError, Leases, Progress

EPOCHS = 18
LONG = {"epochs": {"choices": [EPOCHS]}}
RUNGS = [2, 6]
REPORTS = [(1, 0.1), (2, 0.2)]
TWO = Checkpoint(2, 1.5, b"two")


@pytest.fixture
def spec():
    return make_config(pruner="asha")


@pytest.fixture
def study(bench, spec):
    return bench.join(spec)


def create(study, spec, number=0, owner="worker_a"):
    return trials.create(study, spec, propose(spec, []), number, owner)


def paused(study, spec, number=0):
    """The lease of a trial that was paused in epoch 2."""
    lease = create(study, spec, number)
    trials.write(study, lease, REPORTS[:1])
    trials.pause(study, lease, REPORTS[1:], TWO)
    return lease


@pytest.fixture
def judged(monkeypatch):
    """Every study compares its trials at the same rungs, whatever its longest trial."""
    monkeypatch.setattr(attempt, "decision_epochs", lambda spec: frozenset(RUNGS) & report_epochs(spec.max_epochs))

    def at_rungs(study):
        study.pruner = SuccessiveHalving(RUNGS)
        return study

    return at_rungs


# Leases


def test_a_paused_trial_has_its_reports_and_its_checkpoint_and_runs_for_optuna(study, spec):
    lease = paused(study, spec)
    known = study.look()
    assert known.paused == {0: lease.attempt}
    assert known.trials[0].state == TrialState.RUNNING
    assert known.trials[0].intermediate_values == dict(REPORTS)
    assert study.leases.unfinished() == [Progress(0, 2, 1, owned=False)]
    promoted = study.leases.promote("worker_b", 0, lease.attempt)
    assert (promoted.attempt, promoted.owner, promoted.epoch, promoted.seconds) == (2, "worker_b", 2, 1.5)
    assert promoted.checkpoint == b"two"
    assert (promoted.failures, promoted.deaths) == (0, 0)
    assert study.look().paused == {}
    assert study.leases.unfinished() == [Progress(0, 2, 2, owned=True, promoted=True)]


def test_a_paused_trial_is_nobodys_to_claim(study, spec):
    paused(study, spec)
    expire_all(study)
    assert study.leases.claim("worker_a") is None
    assert study.leases.claim("worker_b") is None
    assert study.leases.record_death("worker_a", "killed", 2) == []
    assert study.leases.retire("worker_a") == []


def test_of_two_who_promote_a_trial_one_gets_it(study, spec):
    lease = paused(study, spec)
    assert study.leases.promote("worker_b", 0, lease.attempt) is not None
    assert study.leases.promote("carl", 0, lease.attempt) is None
    assert study.leases.claim("carl") is None


@pytest.mark.parametrize("attempts_ago", [1, -1])
def test_who_saw_another_pause_does_not_promote(study, spec, attempts_ago):
    first = paused(study, spec)
    second = study.leases.promote("worker_b", 0, first.attempt)
    trials.pause(study, second, [(6, 0.6)], Checkpoint(6, 2.0, b"six"))
    assert study.leases.promote("carl", 0, second.attempt - attempts_ago) is None
    assert study.leases.promote("carl", 0, second.attempt).checkpoint == b"six"


def test_many_at_once_promote_each_trial_once(bench, spec, study):
    for number in range(3):
        paused(study, spec, number)
    got, own = [], [bench.join(spec) for _ in range(4)]

    def work(owner):
        leases = [own[owner].leases.promote(f"worker {owner}", number, 1) for number in range(3)]
        got.extend(lease.number for lease in leases if lease is not None)

    threads = [threading.Thread(target=work, args=(owner,)) for owner in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [0, 1, 2]


def test_a_trial_that_nobody_paused_is_not_promoted(study, spec):
    lease = create(study, spec)
    assert study.leases.promote("worker_b", 0, lease.attempt) is None
    trials.give_back(study, lease, [], TWO)
    assert study.leases.promote("worker_b", 0, lease.attempt) is None


@pytest.mark.parametrize("promoted", [False, True])
def test_who_was_frozen_when_the_trial_was_paused_writes_nothing_more(study, spec, promoted):
    late = paused(study, spec)
    if promoted:
        study.leases.promote("worker_b", 0, late.attempt)
    before = ledger(study), study.look().paused, study.leases.unfinished()
    nine = Checkpoint(9, 9.0, b"nine")
    for write in (
        lambda: trials.write(study, late, [(9, 0.9)], nine),
        lambda: trials.write(study, late, []),
        lambda: trials.pause(study, late, [(9, 0.9)], nine),
        lambda: trials.give_back(study, late, [(9, 0.9)], nine),
        lambda: trials.end(study, late, TrialState.COMPLETE, 0.9, b"w"),
    ):
        with pytest.raises(LeaseLostError):
            write()
    assert (ledger(study), study.look().paused, study.leases.unfinished()) == before


def test_who_lost_the_lease_pauses_nothing(study, spec):
    late = create(study, spec)
    expire_all(study)
    assert study.leases.claim("worker_b") is not None
    with pytest.raises(LeaseLostError):
        trials.pause(study, late, REPORTS, TWO)
    assert study.look().paused == {}
    assert study.trials[0].intermediate_values == {}


def test_promotions_are_no_interruptions(study, spec):
    lease = paused(study, spec)
    assert study.leases.interruption_stats() == InterruptionStats(0, 0)
    lease = study.leases.promote("worker_b", 0, lease.attempt)
    assert study.leases.interruption_stats() == InterruptionStats(0, 0)
    trials.pause(study, lease, [(6, 0.6)], Checkpoint(6, 2.0, b"six"))
    study.leases.promote("worker_b", 0, lease.attempt)
    study.leases.record_death("worker_b", "killed", 7)
    study.leases.claim("worker_b")
    assert study.leases.interruption_stats() == InterruptionStats(1, 1)


def test_those_that_stay_paused_end_as_pruned_where_they_stand(study, spec):
    lease, finished = paused(study, spec), create(study, spec, 1)
    trials.end(study, finished, TrialState.COMPLETE, 0.5)
    trials.prune_paused(study, study.look())
    trial = study.trials[0]
    assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.PRUNED, 0.2, dict(REPORTS))
    assert trial.user_attrs == {trials.REASON: "pruned at epoch 2"}
    assert study.look().paused == {}
    assert study.leases.unfinished() == []
    assert study.leases.promote("worker_b", 0, lease.attempt) is None
    with study.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT COUNT(*) FROM hpo_checkpoints").scalar_one() == 0


def test_what_was_promoted_meanwhile_is_not_pruned(study, spec):
    for number in range(3):
        paused(study, spec, number)
    known = study.look()
    promoted = study.leases.promote("worker_b", 1, 1)
    again = study.leases.promote("carl", 2, 1)
    trials.pause(study, again, [(6, 0.6)], Checkpoint(6, 2.0, b"six"))
    trials.prune_paused(study, known)
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED, TrialState.RUNNING, TrialState.RUNNING]
    trials.write(study, promoted, [(3, 0.3)], Checkpoint(3, 2.0, b"three"))
    assert study.look().paused == {2: 2}
    trials.prune_paused(study, known)
    assert [trial.state for trial in study.trials][1:] == [TrialState.RUNNING] * 2


def test_what_is_not_paused_is_not_closed(study, spec):
    lease = create(study, spec)

    def close():
        with study.engine.begin() as connection:
            return study.leases.close_paused(connection, 0, lease.attempt)

    assert not close()
    trials.give_back(study, lease, [], TWO)
    assert not close()
    assert study.leases.claim("worker_b").checkpoint == b"two"


# Workers


@pytest.fixture
def trained(monkeypatch):
    epochs, trained = Trainer.epochs, []

    def counted(training, after_step):
        for epoch in epochs(training, after_step):
            trained.append(epoch.number)
            yield epoch

    monkeypatch.setattr(Trainer, "epochs", counted)
    return trained


def whole_and_paused(bench, judged):
    """A study whose only trial nobody pauses, and one whose only trial waits at each rung, and both after the end."""
    undisturbed, disturbed = make_config("undisturbed", LONG, trials=1), make_config("d", LONG, trials=1, pruner="asha")
    whole, study = bench.join(undisturbed), judged(bench.join(disturbed))
    bench.worker(whole, undisturbed).run()
    return whole, study, disturbed


def test_a_trial_that_was_paused_twice_ends_with_the_same_bits(bench, judged, trained):
    whole, study, spec = whole_and_paused(bench, judged)
    trained.clear()
    bench.worker(study, spec).run()
    assert study.leases.interruption_stats() == InterruptionStats(0, 0)
    with study.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT promotions FROM hpo_leases WHERE attempt = 3").scalars().all() == [2]
    assert trained == list(range(1, EPOCHS + 1))
    assert ledger(study) == ledger(whole)
    for one, other in zip(unpack_layers(whole.leases.weights(0)), unpack_layers(study.leases.weights(0)), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_worker_is_at_work_when_it_trains_but_not_when_it_tells_of_it(bench, judged, monkeypatch):
    """It can wait there for the database: three who are killed in it have not died of the trial."""
    _, study, spec = whole_and_paused(bench, judged)
    worker_a, seen = bench.worker(study, spec), []

    def watched(name, function):
        def call(*arguments, **keywords):
            seen.append((name, bool(worker_a._place.in_trial_code)))
            return function(*arguments, **keywords)

        return call

    monkeypatch.setattr(attempt, "run_trial", watched("train", attempt.run_trial))
    monkeypatch.setattr(Trainer, "accuracy", watched("measure", Trainer.accuracy))
    for name in ("report", "settle"):
        monkeypatch.setattr(TrialReporter, name, watched(name, getattr(TrialReporter, name)))
    for name in ("pause", "end"):
        monkeypatch.setattr(trials, name, watched(name, getattr(trials, name)))
    worker_a.run()
    assert dict(seen) == {
        "train": True,
        "measure": True,
        "report": False,
        "pause": False,
        "settle": False,
        "end": False,
    }
    assert len(set(seen)) == 6  # each of them the same each time


@pytest.mark.parametrize("death", ["right after the promotion", "before the pause"])
def test_who_dies_at_a_rung_costs_the_trial_nothing(bench, judged, monkeypatch, death):
    whole, study, spec = whole_and_paused(bench, judged)

    def die(*_, **__):
        raise KeyboardInterrupt

    def promote_and_die(*arguments):
        promote(*arguments)
        die()

    promote = Leases.promote
    with monkeypatch.context() as patch:
        if death == "before the pause":
            patch.setattr(trials, "pause", die)
        else:
            patch.setattr(Leases, "promote", promote_and_die)
        with pytest.raises(KeyboardInterrupt):
            bench.worker(study, spec).run()
    expire_all(study)
    bench.worker(study, spec, "worker_b").run()
    assert ledger(study) == ledger(whole)
    assert study.leases.interruption_stats().resumed == 1


def test_a_checkpoint_of_another_version_starts_a_promoted_trial_over_to_the_same_end(bench, judged, trained):
    whole, study, spec = whole_and_paused(bench, judged)
    trained.clear()
    lease = trials.create(study, spec, propose(spec, []), 0, "worker_a")
    curve = whole.trials[0].intermediate_values
    reported = [(epoch, value) for epoch, value in curve.items() if epoch <= RUNGS[-1]]
    trials.pause(study, lease, reported, Checkpoint(RUNGS[-1], 1.0, b"in another format"))
    bench.worker(study, spec, "worker_b").run()
    assert ledger(study) == ledger(whole)
    assert trained == list(range(1, EPOCHS + 1))


@pytest.mark.parametrize("answered_after", [3, 7, EPOCHS])
def test_an_answer_that_comes_late_pauses_the_trial_where_it_stands(
    bench, judged, trained, monkeypatch, answered_after
):
    whole, study, spec = whole_and_paused(bench, judged)
    trained.clear()
    keepers, there, paused_at = [], threading.Event(), []

    class Watched(TrialReporter):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            keepers.append(self)

    def answer_late(_, known, number):
        assert there.wait(30)
        return known[number].last_step != RUNGS[0]

    def look():
        if len(trained) == answered_after and not there.is_set():
            there.set()
            assert keepers[0].settle(30, threading.Event())[0] == RUNGS[0]

    pause = trials.pause

    def watched(study, lease, reports, checkpoint):
        pause(study, lease, reports, checkpoint)
        paused_at.append((checkpoint.epoch, dict(study.trials[0].intermediate_values)))

    epochs = Trainer.epochs

    def looking(training, after_step):
        for epoch in epochs(training, after_step):
            look()
            yield epoch

    monkeypatch.setattr(Trainer, "epochs", looking)
    monkeypatch.setattr(attempt, "TrialReporter", Watched)
    monkeypatch.setattr(attempt, "should_continue", answer_late)
    monkeypatch.setattr(trials, "pause", watched)
    monkeypatch.setattr("hpo.runner.reporter.ANSWER_SECONDS", 0.01)
    bench.worker(study, spec).run()
    curve = whole.trials[0].intermediate_values
    if answered_after == EPOCHS:
        assert paused_at == []  # there was nothing left to save
    else:
        assert paused_at == [
            (answered_after, {epoch: value for epoch, value in curve.items() if epoch <= answered_after})
        ]
    assert trained == list(range(1, EPOCHS + 1))
    assert ledger(study) == ledger(whole)


def test_who_is_stopped_when_the_answer_comes_leaves_the_trial_before_its_rung(bench, judged, trained, monkeypatch):
    whole, study, spec = whole_and_paused(bench, judged)
    trained.clear()
    there, stop, checks = threading.Event(), threading.Event(), []

    class Watched(TrialReporter):
        def check(self):
            answer = super().check()
            checks.extend([answer] * (len(trained) == 4))
            if len(checks) == 2:  # the first is the report's
                there.set()
                assert self.settle(30, threading.Event()) is not None
                stop.set()
            return answer

    monkeypatch.setattr(attempt, "TrialReporter", Watched)
    monkeypatch.setattr(attempt, "should_continue", lambda *_: not there.wait(30))
    monkeypatch.setattr("hpo.runner.reporter.ANSWER_SECONDS", 0.01)
    bench.worker(study, spec, stop=stop).run()
    assert checks == [None, None]
    (left,) = study.leases.unfinished()
    assert left.epoch < RUNGS[0]
    assert study.look().paused == {}
    monkeypatch.undo()
    judged(study)
    bench.worker(study, spec, "worker_b").run()
    assert ledger(study) == ledger(whole)


@pytest.mark.parametrize("pruner", ["asha", "hyperband"])
def test_workers_side_by_side_end_the_budget_exactly(bench, pruner, monkeypatch):
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.01)
    spec = make_config(trials=10, pruner=pruner)
    own = [bench.join(spec) for _ in range(3)]
    threads = [
        threading.Thread(target=bench.worker(study, spec, owner=f"worker {i}").run) for i, study in enumerate(own)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check_ended(own[0], 10)
    more = make_config(trials=13, pruner=pruner)
    before = ledger(own[0])
    bench.worker(own[1], more, "worker_b").run()
    check_ended(own[0], 13)
    assert ledger(own[0])[:10] == before


def check_ended(study, budget):
    assert [trial.number for trial in study.trials] == list(range(budget))
    states = [trial.state for trial in study.trials]
    assert set(states) == {TrialState.COMPLETE, TrialState.PRUNED}
    assert study.leases.unfinished() == []
    assert study.leases.interruption_stats() == InterruptionStats(0, 0)
    assert study.look().paused == {}


def test_the_next_trial_is_proposed_by_what_those_that_wait_have_reached(bench, monkeypatch):
    told = []

    def proposing(spec, known):
        told.append([trial.last_step is not None for trial in known])
        return propose(spec, known)

    monkeypatch.setattr(worker, "propose", proposing)
    spec = make_config(pruner="asha", trials=3)
    bench.worker(bench.join(spec), spec).run()
    assert told == [[True] * number for number in range(3)]


@pytest.mark.parametrize("questions", [6, 12, 18])
def test_who_stops_while_others_wait_at_their_rungs_loses_nothing(bench, questions):
    undisturbed, disturbed = make_config("u", pruner="asha", trials=6), make_config("d", pruner="asha", trials=6)
    study, stopped = bench.join(undisturbed), bench.join(disturbed)
    bench.worker(study, undisturbed).run()
    bench.worker(stopped, disturbed, stop=StopAfter(questions)).run()
    assert stopped.look().paused
    bench.worker(stopped, disturbed, "worker_b").run()
    assert ledger(stopped) == ledger(study)


def test_a_lower_budget_ends_what_is_there(bench, judged):
    spec, less = make_config(trials=5, pruner="asha"), make_config(trials=1, pruner="asha")
    study = judged(bench.join(spec))
    for number in range(3):
        paused(study, spec, number)
    bench.worker(study, less).run()
    check_ended(study, 3)
