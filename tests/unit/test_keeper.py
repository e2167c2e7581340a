"""The thread that keeps a lease."""

import threading
from queue import Queue

import pytest
from sqlalchemy.exc import OperationalError, ProgrammingError

from hpo import keeper
from hpo.keeper import Keeper
from hpo.leases import Lease, LeaseLostError

LEASE = Lease(number=0, trial_id=1, attempt=1, owner="anna")


class FakeLeases:
    """Answers renewals from a script, then with success."""

    def __init__(self, *script: Exception) -> None:
        self._script = list(script)
        self.renewals: Queue[tuple[object, ...]] = Queue()

    def renew(self, lease: Lease, *checkpoint: object) -> None:
        self.renewals.put(checkpoint)
        if self._script:
            raise self._script.pop(0)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    monkeypatch.setattr(keeper, "RENEW_SECONDS", 0.01)
    monkeypatch.setattr(keeper, "FIRST_CHECKPOINT_SECONDS", 0.0)


def wait_for_checkpoint(leases: FakeLeases) -> tuple[object, ...]:
    while not (renewal := leases.renewals.get(timeout=30)):
        pass
    return renewal


def outage() -> OperationalError:
    return OperationalError("UPDATE", {}, ConnectionError("gone"))


def test_a_lease_is_renewed_even_if_no_epoch_ends():
    leases = FakeLeases()
    with Keeper(leases, LEASE):
        assert [leases.renewals.get(timeout=30) for _ in range(3)] == [()] * 3


def test_an_offered_checkpoint_is_written_once():
    leases = FakeLeases()
    with Keeper(leases, LEASE) as keeper:
        keeper.offer(3, b"three")
        assert wait_for_checkpoint(leases) == (3, b"three")
        assert leases.renewals.get(timeout=30) == ()


def test_a_checkpoint_outlives_an_outage():
    leases = FakeLeases(outage(), outage(), outage())
    with Keeper(leases, LEASE) as keeper:
        keeper.offer(3, b"three")
        renewals = [wait_for_checkpoint(leases) for _ in range(3)]
    assert renewals == [(3, b"three")] * 3


def test_a_lost_lease_is_told_with_the_next_checkpoint():
    leases = FakeLeases(LeaseLostError(0))
    with Keeper(leases, LEASE) as keeper:
        leases.renewals.get(timeout=30)
        with pytest.raises(LeaseLostError):
            while True:
                keeper.offer(1, b"one")


def test_what_the_database_refuses_is_told_too():
    refusal = ProgrammingError("UPDATE", {}, Exception("no such table"))
    with Keeper(FakeLeases(refusal), LEASE) as keeper, pytest.raises(ProgrammingError):
        while True:
            keeper.offer(1, b"one")


def test_the_thread_ends_with_its_trial():
    with Keeper(FakeLeases(), LEASE):
        assert "keeper of trial 0" in {thread.name for thread in threading.enumerate()}
    assert "keeper of trial 0" not in {thread.name for thread in threading.enumerate()}
