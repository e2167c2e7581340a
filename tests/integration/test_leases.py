"""The leases' contract, on SQLite and on PostgreSQL."""

import threading

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from hpo.errors import StorageError
from hpo.storage import database as storage
from hpo.storage import leases
from hpo.storage import optuna_tables as records
from hpo.storage.leases import (
    LEASE_SECONDS,
    Checkpoint,
    InterruptionStats,
    Lease,
    LeaseLostError,
    Leases,
    NumberTakenError,
)


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
    return Leases(rdb.engine, "ours")


@pytest.fixture
def clock(rdb):
    return Clock(rdb)


def after(epoch: int) -> Checkpoint:
    return Checkpoint(epoch, 0.5 * epoch, b"after epoch %d" % epoch)


def create(ours: Leases, rdb: RDBStorage, study_id: int, number: int, owner: str = "worker_a") -> Lease:
    with rdb.engine.begin() as connection:
        trial_id = records.insert_trial(connection, study_id, number, {}, {})
        if trial_id is None:
            raise NumberTakenError(number)
        return ours.open(connection, number, trial_id, owner)


def renew(ours: Leases, rdb: RDBStorage, lease: Lease, checkpoint: Checkpoint | None = None) -> None:
    with rdb.engine.begin() as connection:
        ours.hold(connection, lease, checkpoint)


def report(ours: Leases, rdb: RDBStorage, lease: Lease, epoch: int, accuracy: float) -> None:
    with rdb.engine.begin() as connection:
        ours.hold(connection, lease)
        records.report(connection, lease.trial_id, [(epoch, accuracy)])


def give_back(ours: Leases, rdb: RDBStorage, lease: Lease, checkpoint: Checkpoint | None = None) -> None:
    with rdb.engine.begin() as connection:
        ours.hold(connection, lease, checkpoint)
        ours.release(connection, lease)


def end(ours: Leases, rdb: RDBStorage, lease: Lease, value: float, weights: bytes = b"w") -> None:
    with rdb.engine.begin() as connection:
        ours.close(connection, lease, value, weights)
        assert records.end_trial(connection, lease.trial_id, TrialState.COMPLETE, value, {})


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
        mine = Leases(own.engine, "ours")
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
    assert [p.number for p in Leases(rdb.engine, "ours").unfinished()] == list(range(20))


def test_a_held_trial_cannot_be_claimed(ours, rdb, study_id):
    create(ours, rdb, study_id, 0)
    assert ours.claim("worker_b") is None


def test_an_expired_trial_is_claimed_once_with_its_checkpoint(ours, rdb, study_id, clock):
    lease = create(ours, rdb, study_id, 0)
    renew(ours, rdb, lease, after(3))
    clock.expire_all()
    claimed = ours.claim("worker_b")
    assert claimed is not None
    assert (claimed.number, claimed.trial_id, claimed.attempt) == (0, lease.trial_id, 2)
    assert (claimed.epoch, claimed.seconds, claimed.checkpoint) == (3, 1.5, b"after epoch 3")
    assert ours.claim("carl") is None


def test_a_renewed_lease_is_not_claimed(ours, rdb, study_id, clock):
    lease = create(ours, rdb, study_id, 0)
    clock.expire_all()
    renew(ours, rdb, lease)
    assert ours.claim("worker_b") is None


def test_the_fence_keeps_a_late_owner_out(ours, rdb, study_id, clock):
    late = create(ours, rdb, study_id, 0)
    clock.expire_all()
    successor = ours.claim("worker_b")
    assert successor is not None
    with pytest.raises(LeaseLostError):
        renew(ours, rdb, late, after(9))
    with pytest.raises(LeaseLostError):
        give_back(ours, rdb, late, after(9))
    with pytest.raises(LeaseLostError):
        report(ours, rdb, late, 1, 0.1)
    with pytest.raises(LeaseLostError):
        end(ours, rdb, late, 0.1)
    trial = rdb.get_trial(late.trial_id)
    assert trial.state == TrialState.RUNNING
    assert trial.intermediate_values == {}
    report(ours, rdb, successor, 1, 0.2)
    assert rdb.get_trial(late.trial_id).intermediate_values == {1: 0.2}


def test_a_trial_that_was_given_back_goes_on_at_once_and_counts_no_failure(ours, rdb, study_id):
    lease = create(ours, rdb, study_id, 0)
    give_back(ours, rdb, lease, after(7))
    assert [(p.epoch, p.owned) for p in ours.unfinished()] == [(7, False)]
    claimed = ours.claim("worker_b")
    assert claimed is not None
    assert (claimed.checkpoint, claimed.failures, claimed.deaths) == (b"after epoch 7", 0, 0)


def test_a_trial_that_was_given_back_without_a_checkpoint_keeps_the_one_before(ours, rdb, study_id):
    lease = create(ours, rdb, study_id, 0)
    renew(ours, rdb, lease, after(3))
    give_back(ours, rdb, lease)
    claimed = ours.claim("worker_b")
    assert claimed is not None
    assert claimed.checkpoint == b"after epoch 3"


def test_what_a_dead_worker_held_is_free_at_once_and_counts_a_failure(ours, rdb, study_id):
    create(ours, rdb, study_id, 0)
    assert ours.record_death("worker_a", "killed by SIGKILL", epoch=4) == [0]
    claimed = ours.claim("worker_b")
    assert claimed is not None
    assert (claimed.failures, claimed.deaths, claimed.error) == (1, 1, "killed by SIGKILL")


def test_what_a_worker_held_that_was_ended_on_purpose_counts_no_failure(ours, rdb, study_id):
    create(ours, rdb, study_id, 0)
    assert ours.retire("worker_a") == [0]
    claimed = ours.claim("worker_b")
    assert claimed is not None
    assert (claimed.failures, claimed.deaths) == (0, 0)


def die(ours: Leases, epoch: int) -> Lease:
    """Let worker_a die in the epoch after this one, and take up what she held."""
    assert ours.record_death("worker_a", "crash", epoch) == [0]
    claimed = ours.claim("worker_a")
    assert claimed is not None
    return claimed


def test_deaths_in_the_same_epoch_are_the_trials_fault_however_far_its_checkpoint_came(ours, rdb, study_id):
    lease = create(ours, rdb, study_id, 0)
    failures = []
    for checkpoint in (0, 8, 9):
        renew(ours, rdb, lease, after(checkpoint))
        lease = die(ours, epoch=9)
        failures.append(lease.failures)
    assert failures == [1, 2, 3]


def test_deaths_here_and_there_are_not_the_trials_fault(ours, rdb, study_id):
    create(ours, rdb, study_id, 0)
    assert [die(ours, epoch).failures for epoch in (4, 3, 4, 4, 5)] == [1, 1, 1, 2, 1]


def test_deaths_without_progress_are_counted_until_there_is_some(ours, rdb, study_id, clock):
    lease = create(ours, rdb, study_id, 0)
    assert [die(ours, epoch).deaths for epoch in (4, 3)] == [1, 2]
    clock.expire_all()
    lease = ours.claim("worker_a's successor")
    assert lease is not None
    assert (lease.deaths, lease.failures) == (3, 1)
    renew(ours, rdb, lease, after(0))
    ours.retire("worker_a's successor")
    lease = ours.claim("worker_a")
    assert lease is not None
    assert lease.deaths == 3
    renew(ours, rdb, lease, after(1))
    assert die(ours, epoch=2).deaths == 1


def test_what_interruptions_cost_is_counted(ours, rdb, study_id):
    assert ours.interruption_stats() == InterruptionStats(resumed=0, epochs_lost=0)
    lease = create(ours, rdb, study_id, 0)
    renew(ours, rdb, lease, after(3))
    lease = die(ours, epoch=7)
    renew(ours, rdb, lease, after(6))
    late = die(ours, epoch=6)
    ours.add_epochs_lost(late, 7)  # nobody has taken it from there
    give_back(ours, rdb, late)
    assert ours.claim("worker_b") is not None
    ours.add_epochs_lost(late, 5)
    assert ours.interruption_stats() == InterruptionStats(resumed=3, epochs_lost=9)


def test_a_claim_whose_answer_was_lost_is_repeated_without_a_loss(ours, rdb, study_id):
    give_back(ours, rdb, create(ours, rdb, study_id, 0))
    give_back(ours, rdb, create(ours, rdb, study_id, 1, "worker_b"))
    first = ours.claim("carl")
    again = ours.claim("carl")
    assert first is not None
    assert again is not None
    assert (again.number, again.attempt, again.deaths) == (first.number, first.attempt + 1, 0)
    with pytest.raises(LeaseLostError):
        renew(ours, rdb, first)


def test_leases_that_ran_out_while_the_server_was_down_are_left_to_their_owners_for_a_while(
    ours, rdb, study_id, clock, monkeypatch
):
    monkeypatch.setattr(leases, "RESTART_GRACE_SECONDS", 1e9)
    create(ours, rdb, study_id, 0)
    clock.expire_all()
    claimed = ours.claim("worker_b")
    # A file has no server that could be down.
    assert (claimed is None) == (rdb.engine.dialect.name == "postgresql")


def test_who_is_frozen_within_a_transaction_loses_its_locks(postgres, monkeypatch):
    monkeypatch.setattr(storage, "_IDLE_TIMEOUT", 100)
    rdb = storage.open_storage(storage.parse_url(postgres.new_database()))
    leases.create_table(rdb.engine)
    optuna.create_study(study_name="s", storage=rdb)
    ours = Leases(rdb.engine, "ours")
    give_back(ours, rdb, create(ours, rdb, rdb.get_study_id_from_name("s"), 0))
    with pytest.raises(DBAPIError) as caught, rdb.engine.begin() as frozen:
        frozen.exec_driver_sql("SELECT * FROM hpo_leases FOR UPDATE")
        while ours.claim("worker_b") is None:
            pass
        frozen.exec_driver_sql("SELECT 1")
    assert storage.is_outage(caught.value)
    storage.close(rdb)


def test_a_table_of_another_version_is_refused(rdb):
    with rdb.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE hpo_leases DROP COLUMN crash_epoch")
    with pytest.raises(StorageError, match="another version"):
        leases.create_table(rdb.engine)


def test_an_ended_trial_is_never_claimed(ours, rdb, study_id, clock):
    end(ours, rdb, create(ours, rdb, study_id, 0), 0.5)
    clock.expire_all()
    assert ours.claim("worker_b") is None
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
    renew(ours, rdb, lease)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
def test_the_weights_of_the_best_trials_alone_are_kept(ours, rdb, study_id, order, monkeypatch):
    monkeypatch.setattr(leases, "KEPT_WEIGHTS", 2)
    values = [0.5, 0.9, 0.9, 0.7]
    held = [create(ours, rdb, study_id, number) for number in range(4)]
    for number in order:
        end(ours, rdb, held[number], values[number], b"weights of %d" % number)
    assert [ours.weights(number) for number in range(4)] == [None, b"weights of 1", b"weights of 2", None]
    assert ours.kept() == [1, 2]


def test_a_study_whose_best_trial_alone_has_weights_has_that_one(ours, rdb, study_id):
    """Versions before this one kept no others."""
    for number, value in enumerate([0.5, 0.9, 0.7]):
        end(ours, rdb, create(ours, rdb, study_id, number), value, b"weights")
    with rdb.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE hpo_leases SET weights = NULL WHERE number != 1")
    assert ours.kept() == [1]
    end(ours, rdb, create(ours, rdb, study_id, 3), 0.6, b"weights")
    assert ours.kept() == [1, 3]


def test_a_checkpoint_is_dropped_with_the_end(ours, rdb, study_id):
    lease = create(ours, rdb, study_id, 0)
    renew(ours, rdb, lease, after(3))
    end(ours, rdb, lease, 0.5)
    with rdb.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT COUNT(*) FROM hpo_checkpoints").scalar_one() == 0


def test_another_study_has_other_leases(ours, rdb, study_id, clock):
    create(ours, rdb, study_id, 0)
    clock.expire_all()
    assert Leases(rdb.engine, "theirs").claim("worker_b") is None
