"""How trials end that take more time or memory than they may."""

import pytest
from optuna.trial import FrozenTrial, TrialState
from workers import StopAfter, ledger, make_config

from hpo.models.mlp import MLP
from hpo.models.trainer import Trainer
from hpo.runner import limits
from hpo.runner.limits import MEMORY, TIMEOUT
from hpo.search.pruners import report_epochs
from hpo.search.samplers import propose
from hpo.storage import trial_store as trials
from hpo.storage.leases import Checkpoint

STEPS = 7  # of an epoch: 400 examples in batches of 60
ENOUGH = 10**12


class Clock:
    """Stands in for the module ``time``: a second passes with each step of a training."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.steps = 0

    def monotonic(self) -> float:
        return self.now

    def tick(self) -> None:
        self.now += 1
        self.steps += 1


@pytest.fixture
def clock(monkeypatch):
    clock, step = Clock(), MLP.step

    def ticking(network, *arguments):
        clock.tick()
        return step(network, *arguments)

    monkeypatch.setattr(limits, "time", clock)
    monkeypatch.setattr(MLP, "step", ticking)
    return clock


@pytest.fixture
def starve(monkeypatch):
    """Let the larger nets run out of memory in the epoch after this one."""
    epochs = Trainer.epochs

    def starve_after(last: int) -> None:
        def starved(training, after_step):
            for epoch in epochs(training, after_step):
                if epoch.number > last and is_large(training):
                    raise MemoryError
                yield epoch

        monkeypatch.setattr(Trainer, "epochs", starved)

    return starve_after


def is_large(training: Trainer) -> bool:
    return training.weights()[0][1].size > 20


def end_of(trial: FrozenTrial) -> tuple[TrialState, float | None, str | None]:
    return trial.state, trial.value, trial.user_attrs.get(trials.REASON)


def reported_by(trial: FrozenTrial, epoch: int) -> dict[int, float]:
    """What a trial reports that is over in the epoch after this one."""
    return {step: value for step, value in trial.intermediate_values.items() if step <= epoch}


def test_a_trial_that_trains_for_too_long_is_pruned_with_its_last_value(bench, clock):
    spec, unlimited = make_config(), make_config("unlimited")
    study, reference = bench.join(spec), bench.join(unlimited)
    bench.worker(reference, unlimited).run()
    bench.worker(study, spec, trial_timeout=14 * STEPS).run()
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    for trial, whole in zip(study.trials, reference.trials, strict=True):
        if trial.params["epochs"] > 14:
            assert trial.intermediate_values == reported_by(whole, 14)
            assert end_of(trial) == (TrialState.PRUNED, list(trial.intermediate_values.values())[-1], TIMEOUT)
        else:
            assert trial.intermediate_values == whole.intermediate_values
            assert end_of(trial) == (TrialState.COMPLETE, whole.value, None)
    assert study.leases.unfinished() == []


def test_a_trial_that_has_no_value_by_then_fails(bench, clock):
    spec = make_config(space={"batch_size": {"choices": [10, 400]}})
    study = bench.join(spec)
    bench.worker(study, spec, trial_timeout=400 / 10 - 1).run()
    assert {trial.params["batch_size"] for trial in study.trials} == {10, 400}
    for trial in study.trials:
        if trial.params["batch_size"] == 10:
            assert end_of(trial) == (TrialState.FAIL, None, TIMEOUT)
            assert trial.intermediate_values == {}
        else:
            assert trial.state == TrialState.COMPLETE
    assert study.leases.unfinished() == []


def test_the_time_of_all_attempts_counts_and_that_between_them_does_not(bench, clock):
    space = {"epochs": {"choices": [20]}}
    undisturbed, disturbed = make_config("undisturbed", space, trials=1), make_config("disturbed", space, trials=1)
    study, stopped = bench.join(undisturbed), bench.join(disturbed)
    bench.worker(study, undisturbed, trial_timeout=14 * STEPS).run()
    assert clock.steps == 14 * STEPS + 1
    bench.worker(stopped, disturbed, stop=StopAfter(8), trial_timeout=14 * STEPS).run()
    assert stopped.leases.unfinished() != []
    clock.now += 1e6
    bench.worker(stopped, disturbed, "worker_b", trial_timeout=14 * STEPS).run()
    assert clock.steps == 2 * (14 * STEPS + 1)
    assert ledger(stopped) == ledger(study)
    assert end_of(stopped.trials[0]) == end_of(study.trials[0])


@pytest.mark.parametrize(("reported", "state"), [(0.5, TrialState.PRUNED), (None, TrialState.FAIL)])
def test_a_trial_that_has_had_its_time_before_ends_at_once(bench, clock, reported, state):
    spec = make_config(trials=1)
    study = bench.join(spec)
    lease = trials.create(study, spec, propose(spec, []), 0, "worker_a")
    reports = [] if reported is None else [(1, reported)]
    trials.give_back(study, lease, reports, Checkpoint(1, 100.0, b"in another format"))
    bench.worker(study, spec, "worker_b", trial_timeout=100).run()
    assert end_of(study.trials[0]) == (state, reported, TIMEOUT)
    assert clock.steps == 1


def test_a_database_that_is_away_takes_none_of_the_time(bench, clock, monkeypatch):
    spec = make_config(trials=1)
    study = bench.join(spec)
    trials.give_back(study, trials.create(study, spec, propose(spec, []), 0, "worker_b"), [], None)
    read = trials.read

    def read_late(*arguments):
        clock.now += 1e6
        return read(*arguments)

    monkeypatch.setattr(trials, "read", read_late)
    bench.worker(study, spec, trial_timeout=1000).run()
    assert study.trials[0].state == TrialState.COMPLETE


@pytest.mark.parametrize("last", [0, 3])
def test_a_trial_that_runs_out_of_memory_ends_alone(bench, starve, last):
    spec, unlimited = make_config(), make_config("unlimited")
    study, reference = bench.join(spec), bench.join(unlimited)
    bench.worker(reference, unlimited).run()
    starve(last)
    bench.worker(study, spec, memory=ENOUGH).run()
    ends = {trial.number: end_of(trial) for trial in study.trials}
    large = [trial.number for trial in study.trials if trial.params["hidden_size"] > 20]
    assert 0 < len(large) < 4
    for trial, whole in zip(study.trials, reference.trials, strict=True):
        if trial.number not in large:
            assert ends[trial.number] == (TrialState.COMPLETE, whole.value, None)
        elif last:
            assert last in report_epochs(spec.max_epochs)
            assert ends[trial.number] == (TrialState.PRUNED, whole.intermediate_values[last], MEMORY)
        else:
            assert ends[trial.number] == (TrialState.FAIL, None, MEMORY)
        if trial.number in large:
            assert trial.intermediate_values == reported_by(whole, last)
    assert study.leases.unfinished() == []


def test_without_a_limit_it_kills_the_worker(bench, starve):
    spec = make_config(trials=1, space={"hidden_size": {"choices": [21]}})
    study = bench.join(spec)
    starve(3)
    with pytest.raises(MemoryError):
        bench.worker(study, spec).run()
    assert study.trials[0].state == TrialState.RUNNING
    assert study.leases.record_death("worker_a", "crash", 3) == [0]


def test_the_thread_that_keeps_the_lease_may_run_out_of_memory_too(bench, monkeypatch):
    spec = make_config(trials=1, pruner="median")  # which waits for the answer to the fourth report
    study = bench.join(spec)
    write, errors = trials.write, [MemoryError()]

    def starved(study, lease, reports, checkpoint):
        if 4 in dict(reports) and errors:
            raise errors.pop()
        write(study, lease, reports, checkpoint)

    monkeypatch.setattr(trials, "write", starved)
    bench.worker(study, spec, memory=ENOUGH).run()
    trial = study.trials[0]
    assert list(trial.intermediate_values) == [1, 2, 3, 4]
    assert end_of(trial) == (TrialState.PRUNED, trial.intermediate_values[4], MEMORY)
