"""The leases' contract, on SQLite and on PostgreSQL."""

import threading

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial
from sqlalchemy import event

from hpo import leases, storage
from hpo.leases import LEASE_SECONDS, Lease, LeaseLostError, Leases, NumberTakenError


class Clock:
    """The database's clock, moved by hand."""

    def __init__(self, rdb: RDBStorage) -> None:
        self._rdb = rdb

    def expire_all(self) -> None:
        with self._rdb.engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE hpo_leases SET expires = expires - {2 * LEASE_SECONDS}")


@pytest.fixture
def rdb(storage_url):
    rdb = storage.open_storage(storage.parse_url(storage_url))
    leases.create_table(rdb.engine)
    yield rdb
    storage.close(rdb)


@pytest.fixture
def study_id(rdb):
    study = optuna.create_study(study_name="s", storage=rdb, direction="maximize")
    return rdb.get_study_id_from_name(study.study_name)


@pytest.fixture
def ours(rdb):
    return Leases(rdb, "ours")


@pytest.fixture
def clock(rdb):
    return Clock(rdb)


def create(ours: Leases, rdb: RDBStorage, study_id: int, number: int, owner: str = "anna") -> Lease:
    with ours.creating(study_id, number, owner):
        rdb.create_new_trial(study_id, create_trial(state=TrialState.RUNNING))
    return ours.created(number, owner)


def end(ours: Leases, rdb: RDBStorage, lease: Lease, value: float, weights: bytes = b"w") -> None:
    with ours.ending(lease, value, weights):
        rdb.set_trial_state_values(lease.trial_id, TrialState.COMPLETE, [value])


def test_a_trial_and_its_lease_are_created_together(ours, rdb, study_id):
    lease = create(ours, rdb, study_id, 0)
    assert lease.attempt == 1
    assert rdb.get_trial(lease.trial_id).number == 0
    assert [(p.number, p.owned) for p in ours.unfinished()] == [(0, True)]


def test_a_number_that_is_taken_creates_nothing(ours, rdb, study_id):
    create(ours, rdb, study_id, 0)
    with pytest.raises(NumberTakenError):
        create(ours, rdb, study_id, 0)
    assert len(rdb.get_all_trials(study_id)) == 1
    assert len(ours.unfinished()) == 1


def test_many_workers_at_once_create_each_number_once(storage_url, rdb, study_id):
    def work(owner: str) -> None:
        own = storage.open_storage(storage.parse_url(storage_url))
        mine = Leases(own, "ours")
        while (number := len(own.get_all_trials(study_id))) < 20:
            try:
                create(mine, own, study_id, number, owner)
            except NumberTakenError:
                continue
        storage.close(own)

    threads = [threading.Thread(target=work, args=(f"worker {i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [trial.number for trial in rdb.get_all_trials(study_id)] == list(range(20))
    assert [p.number for p in Leases(rdb, "ours").unfinished()] == list(range(20))


def test_a_held_trial_cannot_be_claimed(ours, rdb, study_id):
    create(ours, rdb, study_id, 0)
    assert ours.claim("bert") is None


def test_an_expired_trial_is_claimed_once_with_its_checkpoint(ours, rdb, study_id, clock):
    lease = create(ours, rdb, study_id, 0)
    ours.renew(lease, 3, b"after epoch 3")
    clock.expire_all()
    claimed = ours.claim("bert")
    assert claimed is not None
    assert (claimed.number, claimed.trial_id, claimed.attempt) == (0, lease.trial_id, 2)
    assert claimed.checkpoint == b"after epoch 3"
    assert ours.claim("carl") is None


def test_a_renewed_lease_is_not_claimed(ours, rdb, study_id, clock):
    lease = create(ours, rdb, study_id, 0)
    clock.expire_all()
    ours.renew(lease)
    assert ours.claim("bert") is None


def test_the_fence_keeps_a_late_owner_out(ours, rdb, study_id, clock):
    late = create(ours, rdb, study_id, 0)
    clock.expire_all()
    successor = ours.claim("bert")
    assert successor is not None
    with pytest.raises(LeaseLostError):
        ours.renew(late, 9, b"late")
    with pytest.raises(LeaseLostError):
        ours.give_back(late, 9, b"late")
    with pytest.raises(LeaseLostError), ours.holding(late):
        rdb.set_trial_intermediate_value(late.trial_id, 1, 0.1)
    with pytest.raises(LeaseLostError):
        end(ours, rdb, late, 0.1)
    trial = rdb.get_trial(late.trial_id)
    assert trial.state == TrialState.RUNNING
    assert trial.intermediate_values == {}
    with ours.holding(successor):
        rdb.set_trial_intermediate_value(late.trial_id, 1, 0.2)
    assert rdb.get_trial(late.trial_id).intermediate_values == {1: 0.2}


def test_a_trial_that_was_given_back_goes_on_at_once_and_counts_no_failure(ours, rdb, study_id):
    lease = create(ours, rdb, study_id, 0)
    ours.give_back(lease, 7, b"after epoch 7")
    assert [(p.epoch, p.owned) for p in ours.unfinished()] == [(7, False)]
    claimed = ours.claim("bert")
    assert claimed is not None
    assert (claimed.checkpoint, claimed.failures) == (b"after epoch 7", 0)


def test_what_a_dead_worker_held_is_free_at_once_and_counts_a_failure(ours, rdb, study_id):
    create(ours, rdb, study_id, 0)
    assert ours.bury("anna", "killed by SIGKILL") == [0]
    claimed = ours.claim("bert")
    assert claimed is not None
    assert (claimed.failures, claimed.error) == (1, "killed by SIGKILL")


def test_what_a_worker_held_that_was_ended_on_purpose_counts_no_failure(ours, rdb, study_id):
    create(ours, rdb, study_id, 0)
    assert ours.retire("anna") == [0]
    claimed = ours.claim("bert")
    assert claimed is not None
    assert claimed.failures == 0


def test_only_failures_in_a_row_without_progress_count(ours, rdb, study_id):
    create(ours, rdb, study_id, 0)
    for failures in (1, 2):
        ours.bury("anna", "crash")
        claimed = ours.claim("anna")
        assert claimed is not None
        assert claimed.failures == failures
    ours.renew(claimed, 5, b"further than ever")
    ours.bury("anna", "crash")
    claimed = ours.claim("anna")
    assert claimed is not None
    assert claimed.failures == 1


def test_an_ended_trial_is_never_claimed(ours, rdb, study_id, clock):
    end(ours, rdb, create(ours, rdb, study_id, 0), 0.5)
    clock.expire_all()
    assert ours.claim("bert") is None
    assert ours.unfinished() == []


def test_an_end_that_fails_leaves_the_lease_as_it_was(ours, rdb, study_id):
    lease = create(ours, rdb, study_id, 0)

    def fail(*_: object) -> None:
        raise ConnectionError("the database went away at the last moment")

    event.listen(rdb.engine, "commit", fail)
    with pytest.raises(ConnectionError):
        end(ours, rdb, lease, 0.5)
    event.remove(rdb.engine, "commit", fail)
    assert rdb.get_trial(lease.trial_id).state == TrialState.RUNNING
    ours.renew(lease)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
def test_the_weights_of_the_best_trial_alone_are_kept(ours, rdb, study_id, order):
    values = [0.5, 0.9, 0.9, 0.7]
    held = [create(ours, rdb, study_id, number) for number in range(4)]
    for number in order:
        end(ours, rdb, held[number], values[number], b"weights of %d" % number)
    assert [ours.weights(number) for number in range(4)] == [None, b"weights of 1", None, None]


def test_a_checkpoint_is_dropped_with_the_end(ours, rdb, study_id):
    lease = create(ours, rdb, study_id, 0)
    ours.renew(lease, 3, b"after epoch 3")
    end(ours, rdb, lease, 0.5)
    with rdb.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT checkpoint FROM hpo_leases").scalar_one() is None


def test_another_study_has_other_leases(ours, rdb, study_id, clock):
    create(ours, rdb, study_id, 0)
    clock.expire_all()
    assert Leases(rdb, "theirs").claim("bert") is None
