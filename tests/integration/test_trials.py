"""A trial's transactions: what they write is written under its lease or not at all."""

import pytest
from optuna.trial import TrialState
from workers import expire_all, make_config

from hpo.search.samplers import propose
from hpo.storage import trial_store as trials
from hpo.storage.leases import Checkpoint, LeaseLostError, NumberTakenError

REPORTS = [(1, 0.1), (2, 0.2)]
TWO = Checkpoint(2, 1.5, b"two")

WRITES = {
    "write": lambda study, lease: trials.write(study, lease, REPORTS, TWO),
    "write a checkpoint": lambda study, lease: trials.write(study, lease, [], TWO),
    "give back": lambda study, lease: trials.give_back(study, lease, REPORTS, TWO),
    "end": lambda study, lease: trials.end(study, lease, TrialState.COMPLETE, 0.5, b"w", "why", REPORTS),
}


@pytest.fixture
def spec():
    return make_config()


@pytest.fixture
def study(bench, spec):
    return bench.join(spec)


def create(study, spec, number=0, owner="worker_a"):
    return trials.create(study, spec, propose(spec, []), number, owner)


@pytest.mark.parametrize("name", WRITES)
def test_who_lost_the_lease_writes_nothing(study, spec, name):
    late = create(study, spec)
    expire_all(study)
    assert study.leases.claim("worker_b") is not None
    with pytest.raises(LeaseLostError):
        WRITES[name](study, late)
    trial = study.trials[0]
    assert (trial.state, trial.value, trial.intermediate_values, trial.user_attrs) == (TrialState.RUNNING, None, {}, {})
    assert [(left.epoch, left.owned) for left in study.leases.unfinished()] == [(0, True)]


@pytest.mark.parametrize("name", ["write", "write a checkpoint"])
def test_who_writes_keeps_the_lease(study, spec, name):
    lease = create(study, spec)
    expire_all(study)
    WRITES[name](study, lease)
    assert study.leases.claim("worker_b") is None
    assert study.leases.unfinished()[0].epoch == 2


def test_what_is_given_back_is_whole(study, spec):
    trials.give_back(study, create(study, spec), REPORTS, TWO)
    claimed = study.leases.claim("worker_b")
    assert (claimed.epoch, claimed.checkpoint) == (2, b"two")
    assert trials.read(study, claimed).intermediate_values == dict(REPORTS)


def test_an_end_brings_the_last_reports(study, spec):
    lease = create(study, spec)
    trials.write(study, lease, REPORTS[:1])
    trials.end(study, lease, TrialState.PRUNED, 0.2, reason="pruned at epoch 2", reports=REPORTS)
    trial = study.trials[0]
    assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.PRUNED, 0.2, dict(REPORTS))
    assert trial.user_attrs == {trials.REASON: "pruned at epoch 2"}
    with pytest.raises(LeaseLostError):
        trials.end(study, lease, TrialState.COMPLETE, 0.9)


def test_a_number_that_is_taken_leaves_nothing_behind(study, spec):
    create(study, spec)
    for number in (0, 2):
        with pytest.raises(NumberTakenError):
            create(study, spec, number, "worker_b")
    assert [trial.number for trial in study.trials] == [0]
    assert len(study.leases.unfinished()) == 1
