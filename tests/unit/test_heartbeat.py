"""The heartbeat thread of a trial, on a database that a script controls."""

import threading
from dataclasses import replace
from queue import Queue

import pytest
from factories import make_outage
from sqlalchemy.exc import ProgrammingError

from hpo.errors import StorageError
from hpo.runner.heartbeat import HeartbeatTimings, TrialReporter
from hpo.storage.tables.leases import Checkpoint, Lease, LeaseLostError
from hpo.storage.tables.optuna_tables import NO_DETAILS, Details

LEASE = Lease(0, 7, attempt=1, owner="worker_a", epoch=2)
CHECKPOINT = Checkpoint(3, 1.5, b"three")
NEVER = threading.Event()
HOUR_S = 3600.0
RENEWAL = ([], None)


class FakeStore:
    """Trial store that fails with the errors of a script, and then accepts all writes.

    Attributes:
        attempts: All writes, also failed ones.
        written: The accepted writes.
        details: The details of the accepted writes that have some.
        up: Cleared during an outage.
    """

    def __init__(self, *script: Exception) -> None:
        self._script = list(script)
        self.attempts: Queue[tuple[list[tuple[int, float]], Checkpoint | None]] = Queue()
        self.written: list[tuple[list[tuple[int, float]], Checkpoint | None]] = []
        self.details: list[Details] = []
        self.up = threading.Event()
        self.up.set()

    def report(self, lease, reports, checkpoint, details) -> None:
        # The lease moves to the checkpoints that are written.
        assert replace(lease, epoch=LEASE.epoch) == LEASE
        self.attempts.put((list(reports), checkpoint))
        if not self.up.is_set():
            raise make_outage()
        if self._script:
            raise self._script.pop(0)
        self.written.append((list(reports), checkpoint))
        if details:
            self.details.append(details)

    @property
    def trials(self) -> list[tuple[int, float]]:
        return self.reports

    @property
    def reports(self) -> list[tuple[int, float]]:
        return [report for reports, _ in self.written for report in reports]

    @property
    def checkpoints(self) -> list[Checkpoint]:
        return [checkpoint for _, checkpoint in self.written if checkpoint is not None]

    def wait_for(self, condition) -> None:
        while not condition(*self.attempts.get()):
            pass


class FakePruner:
    """Pruner that decides at some steps, and stops a trial at one of them."""

    pauses = False

    def __init__(self, decision_steps: set[int] = frozenset({3, 4, 5}), stop_at: int | None = None) -> None:
        self._decision_steps = frozenset(decision_steps)
        self._stop_at = stop_at
        self.decisions = 0

    def decision_steps(self) -> frozenset[int]:
        return self._decision_steps

    def should_continue(self, reports, number) -> bool:
        assert number == LEASE.number
        self.decisions += 1
        return reports[-1][0] != self._stop_at


def make_reporter(store: FakeStore, pruner: FakePruner | None = None, **timings: float) -> TrialReporter:
    fast = {
        "first_checkpoint_s": 0.0,
        "checkpoint_interval_s": 0.0,
        "renewal_delay_s": 0.01,
        "retry_interval_s": 0.01,
    }
    return TrialReporter(store, LEASE, pruner or FakePruner(), HeartbeatTimings(**(fast | timings)))


def is_renewal(reports, checkpoint) -> bool:
    return (reports, checkpoint) == RENEWAL


def wait_for_outage(store: FakeStore) -> None:
    """Wait until the thread has noticed that the database is unavailable."""
    store.wait_for(is_renewal)
    store.wait_for(is_renewal)


def test_lease_is_renewed_without_steps():
    store = FakeStore()
    with make_reporter(store):
        assert [store.attempts.get() for _ in range(3)] == [RENEWAL] * 3


def test_submitted_checkpoint_is_written_once():
    store = FakeStore()
    with make_reporter(store) as reporter:
        assert reporter.written_step == 2
        reporter.submit_checkpoint(CHECKPOINT)
        store.wait_for(lambda _, checkpoint: checkpoint is CHECKPOINT)
        store.wait_for(is_renewal)
        assert reporter.written_step == 3
    assert store.checkpoints == [CHECKPOINT]


def test_checkpoint_is_retried_during_outage():
    store = FakeStore(make_outage(), make_outage(), make_outage())
    with make_reporter(store) as reporter:
        reporter.submit_checkpoint(CHECKPOINT)
        while reporter.written_step != 3:
            store.attempts.get()
            reporter.check()


def test_details_are_written_on_request():
    store = FakeStore()
    with make_reporter(store, write_delay_s=HOUR_S, decision_timeout_s=HOUR_S) as reporter:
        reporter.write(Details(system_attrs={"grid_id": 3}))
        reporter.write_now()
        assert store.details == [Details(system_attrs={"grid_id": 3})]
        assert reporter.unwritten_details == NO_DETAILS


def test_request_during_outage_does_not_wait():
    store = FakeStore()
    store.up.clear()
    with make_reporter(store, write_delay_s=HOUR_S, decision_timeout_s=HOUR_S) as reporter:
        reporter.write(Details(system_attrs={"grid_id": 3}))
        reporter.write_now()
        assert reporter.unwritten_details


def test_lost_lease_is_raised():
    with make_reporter(FakeStore(LeaseLostError(0))) as reporter, pytest.raises(LeaseLostError):
        while True:
            reporter.check()


@pytest.mark.parametrize(
    "error", [ProgrammingError("UPDATE", {}, Exception("no such table")), MemoryError(), KeyError()]
)
def test_other_error_is_raised(error):
    with make_reporter(FakeStore(error)) as reporter, pytest.raises(type(error)):
        reporter.report(3, 0.5)


def test_report_waits_for_decision():
    store, pruner = FakeStore(), FakePruner(stop_at=4)
    with make_reporter(store, pruner) as reporter:
        reporter.report(3, 0.5)
        assert reporter.stop_report is None
        reporter.report(4, 0.25)
        assert reporter.stop_report == (4, 0.25)
        assert reporter.unwritten_reports == []
    assert pruner.decisions == 2


def test_report_at_other_step_has_no_decision():
    store, pruner = FakeStore(), FakePruner({9}, stop_at=3)
    with make_reporter(store, pruner) as reporter:
        reporter.report(3, 0.5)
        assert reporter.stop_report is None
        assert reporter.is_decided
        store.wait_for(lambda reports, _: reports == [(3, 0.5)])
    assert pruner.decisions == 0


def test_reports_are_written_with_next_decision():
    store = FakeStore()
    with make_reporter(store, FakePruner({6}), renewal_delay_s=HOUR_S) as reporter:
        for step in (3, 4, 5):
            reporter.report(step, step / 10)
        assert reporter.unwritten_reports == [(3, 0.3), (4, 0.4), (5, 0.5)]
        reporter.report(6, 0.6)
        assert reporter.stop_report is None
    assert store.written == [([(3, 0.3), (4, 0.4), (5, 0.5), (6, 0.6)], None)]


def test_reports_are_written_with_next_checkpoint():
    store = FakeStore()
    with make_reporter(store, FakePruner(set()), renewal_delay_s=HOUR_S) as reporter:
        reporter.report(3, 0.3)
        reporter.submit_checkpoint(CHECKPOINT)
        store.wait_for(lambda reports, checkpoint: (reports, checkpoint) == ([(3, 0.3)], CHECKPOINT))


def test_reports_are_written_with_next_renewal():
    store = FakeStore()
    with make_reporter(store, FakePruner(set())) as reporter:
        for step in (3, 4):
            reporter.report(step, step / 10)
        while store.reports != [(3, 0.3), (4, 0.4)]:
            store.attempts.get()


def test_outage_does_not_delay_training():
    store = FakeStore()
    store.up.clear()
    with make_reporter(store, decision_timeout_s=HOUR_S) as reporter:
        wait_for_outage(store)
        for step in (3, 4, 5):
            reporter.report(step, step / 10)
        assert not reporter.is_decided
        store.up.set()
        reporter.flush(30, NEVER)
        assert reporter.is_decided
        assert reporter.stop_report is None
    assert store.reports == [(3, 0.3), (4, 0.4), (5, 0.5)]


def test_late_decision_keeps_later_reports():
    store = FakeStore(make_outage(), make_outage())
    store.up.clear()
    with make_reporter(store, FakePruner(stop_at=4)) as reporter:
        wait_for_outage(store)
        for step in (3, 4, 5):
            reporter.report(step, step / 10)
        store.up.set()
        reporter.flush(30, NEVER)
        assert reporter.stop_report == (4, 0.4)
        reporter.check()
        reporter.report(6, 0.6)
        assert reporter.stop_report == (4, 0.4)
        assert reporter.is_decided
        assert reporter.unwritten_reports == [(5, 0.5), (6, 0.6)]
        while store.attempts.get() != RENEWAL:
            pass
    assert store.reports == [(3, 0.3), (4, 0.4)]


def test_checkpoint_waits_for_its_reports():
    store = FakeStore()
    store.up.clear()
    with make_reporter(store) as reporter:
        store.wait_for(is_renewal)
        reporter.report(3, 0.5)
        reporter.submit_checkpoint(CHECKPOINT)
        store.wait_for(lambda reports, _: reports == [(3, 0.5)])
        store.up.set()
        while reporter.written_step != 3:
            store.attempts.get()
    assert [batch for batch in store.written if batch != RENEWAL] == [([(3, 0.5)], None), ([], CHECKPOINT)]


def test_checkpoint_after_stop_is_not_written():
    store = FakeStore()
    store.up.clear()
    with make_reporter(store, FakePruner(stop_at=3)) as reporter:
        store.wait_for(is_renewal)
        reporter.report(3, 0.5)
        reporter.submit_checkpoint(Checkpoint(4, 1.5, b"four"))
        store.up.set()
        reporter.flush(30, NEVER)
        assert reporter.stop_report == (3, 0.5)
        store.wait_for(is_renewal)
        store.wait_for(is_renewal)
    assert store.checkpoints == []
    assert reporter.written_step == 2


def test_flush_ends_after_timeout():
    store = FakeStore()
    store.up.clear()
    with make_reporter(store, decision_timeout_s=0.01) as reporter, pytest.raises(StorageError, match="did not answer"):
        reporter.report(3, 0.5)
        reporter.flush(0.05, NEVER)


def test_stop_ends_flush():
    store, stop = FakeStore(), threading.Event()
    store.up.clear()
    stop.set()
    with make_reporter(store, decision_timeout_s=0.01) as reporter:
        reporter.report(3, 0.5)
        reporter.flush(HOUR_S, stop)
        assert reporter.stop_report is None
        assert not reporter.is_decided


def test_hanging_database_does_not_delay_training():
    store, reply = FakeStore(), threading.Event()
    store.report = lambda *_: reply.wait() and None
    with make_reporter(store, FakePruner(stop_at=None), decision_timeout_s=0.01) as reporter:
        store.written.append(([(0, 0.0)], None))
        for step in (3, 4, 5):
            reporter.report(step, 0.5)
        assert not reporter.is_decided
        reply.set()
        reporter.flush(30, NEVER)


def test_checkpoint_is_due_after_interval():
    with make_reporter(FakeStore(), checkpoint_interval_s=HOUR_S) as reporter:
        assert reporter.checkpoint_due
        reporter.submit_checkpoint(CHECKPOINT)
        assert not reporter.checkpoint_due


def test_thread_ends_with_trial():
    with make_reporter(FakeStore()):
        assert "heartbeat of trial 0" in {thread.name for thread in threading.enumerate()}
    assert "heartbeat of trial 0" not in {thread.name for thread in threading.enumerate()}
