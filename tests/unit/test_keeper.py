"""The thread that says to the database what a trial has to say."""

import threading
from queue import Queue

import pytest
from sqlalchemy.exc import OperationalError, ProgrammingError

from hpo.errors import StorageError
from hpo.runner import reporter as keeper_module
from hpo.runner.reporter import TrialReporter
from hpo.storage.leases import Checkpoint, LeaseLostError

THREE = Checkpoint(3, 1.5, b"three")
NEVER = threading.Event()
HOUR = 3600.0
RENEWED = ([], None)


class FakeDatabase:
    """Answers what it is told from a script of errors, then with success; ``said`` is what it accepted."""

    def __init__(self, *script: Exception, leave_at: int | None = None) -> None:
        self._script = list(script)
        self._leave_at = leave_at
        self.asked: Queue[object] = Queue()
        self.said: list[tuple[list[tuple[int, float]], Checkpoint | None]] = []
        self.questions = 0
        self.up = threading.Event()
        self.up.set()

    def write(self, reports, checkpoint) -> None:
        self.asked.put((list(reports), checkpoint))
        if not self.up.is_set():
            raise outage()
        if self._script:
            raise self._script.pop(0)
        self.said.append((list(reports), checkpoint))

    def should_continue(self) -> bool:
        self.questions += 1
        return self.reports[-1][0] != self._leave_at

    @property
    def reports(self) -> list[tuple[int, float]]:
        return [report for reports, _ in self.said for report in reports]

    @property
    def checkpoints(self) -> list[Checkpoint]:
        return [checkpoint for _, checkpoint in self.said if checkpoint is not None]

    def wait_for(self, wanted) -> None:
        while not wanted(*self.asked.get(timeout=30)):
            pass


def renewal(reports, checkpoint) -> bool:
    return (reports, checkpoint) == RENEWED


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    monkeypatch.setattr(keeper_module, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(keeper_module, "RENEW_SECONDS", 0.01)
    monkeypatch.setattr(keeper_module, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(keeper_module, "FIRST_CHECKPOINT_SECONDS", 0.0)


def keeping(database: FakeDatabase, judged: set[int] = frozenset({3, 4, 5})) -> TrialReporter:
    return TrialReporter("trial 0", 2, frozenset(judged), database.write, database.should_continue)


def outage() -> OperationalError:
    return OperationalError("UPDATE", {}, ConnectionError("gone"))


def test_a_lease_is_renewed_even_if_no_epoch_ends():
    database = FakeDatabase()
    with keeping(database):
        assert [database.asked.get(timeout=30) for _ in range(3)] == [RENEWED] * 3


def test_an_offered_checkpoint_is_written_once():
    database = FakeDatabase()
    with keeping(database) as keeper:
        assert keeper.written == 2
        keeper.offer(THREE)
        database.wait_for(lambda _, checkpoint: checkpoint is THREE)
        database.wait_for(renewal)
        assert keeper.written == 3
    assert database.checkpoints == [THREE]


def test_a_checkpoint_outlives_an_outage():
    database = FakeDatabase(outage(), outage(), outage())
    with keeping(database) as keeper:
        keeper.offer(THREE)
        while keeper.written != 3:
            database.asked.get(timeout=30)
            assert keeper.check() is None


def test_a_lost_lease_is_told():
    database = FakeDatabase(LeaseLostError(0))
    with keeping(database) as keeper, pytest.raises(LeaseLostError):
        while True:
            keeper.check()


@pytest.mark.parametrize(
    "error", [ProgrammingError("UPDATE", {}, Exception("no such table")), MemoryError(), KeyError()]
)
def test_what_goes_wrong_otherwise_is_told_too(error):
    with keeping(FakeDatabase(error)) as keeper, pytest.raises(type(error)):
        keeper.report(3, 0.5)


def test_a_report_that_can_be_the_last_is_answered():
    database = FakeDatabase(leave_at=4)
    with keeping(database) as keeper:
        assert keeper.report(3, 0.5) is None
        assert keeper.left is None
        assert keeper.report(4, 0.25) == keeper.left == (4, 0.25)
        assert keeper.undelivered == []
    assert database.questions == 2


def test_a_report_that_cannot_be_the_last_is_not_asked_about():
    database = FakeDatabase(leave_at=3)
    with keeping(database, judged={9}) as keeper:
        assert keeper.report(3, 0.5) is None
        assert keeper.settled
        database.wait_for(lambda reports, _: reports == [(3, 0.5)])
    assert database.questions == 0


def test_reports_that_decide_nothing_are_written_together_with_the_one_that_does(monkeypatch):
    monkeypatch.setattr(keeper_module, "RENEW_SECONDS", HOUR)
    database = FakeDatabase()
    with keeping(database, judged={6}) as keeper:
        for epoch in (3, 4, 5):
            keeper.report(epoch, epoch / 10)
        assert keeper.undelivered == [(3, 0.3), (4, 0.4), (5, 0.5)]
        assert keeper.report(6, 0.6) is None
    assert database.said == [([(3, 0.3), (4, 0.4), (5, 0.5), (6, 0.6)], None)]


def test_reports_that_decide_nothing_go_with_the_checkpoint_that_they_led_to(monkeypatch):
    monkeypatch.setattr(keeper_module, "RENEW_SECONDS", HOUR)
    database = FakeDatabase()
    with keeping(database, judged=set()) as keeper:
        keeper.report(3, 0.3)
        keeper.offer(THREE)
        database.wait_for(lambda reports, checkpoint: (reports, checkpoint) == ([(3, 0.3)], THREE))


def test_what_nobody_waits_for_is_written_when_the_lease_is_renewed():
    database = FakeDatabase()
    with keeping(database, judged=set()) as keeper:
        for epoch in (3, 4):
            keeper.report(epoch, epoch / 10)
        while database.reports != [(3, 0.3), (4, 0.4)]:
            database.asked.get(timeout=30)


def test_reports_wait_for_a_database_that_is_away_and_the_training_does_not(monkeypatch):
    monkeypatch.setattr(keeper_module, "ANSWER_SECONDS", HOUR)
    database = FakeDatabase()
    database.up.clear()
    with keeping(database) as keeper:
        database.wait_for(renewal)  # the keeper knows that the database is away
        database.wait_for(renewal)
        assert [keeper.report(epoch, epoch / 10) for epoch in (3, 4, 5)] == [None] * 3
        assert not keeper.settled
        database.up.set()
        assert keeper.settle(30, NEVER) is None
        assert keeper.settled
    assert database.reports == [(3, 0.3), (4, 0.4), (5, 0.5)]


def test_a_late_answer_names_the_report_that_it_is_about_and_those_after_it_are_kept():
    database = FakeDatabase(outage(), outage(), leave_at=4)
    database.up.clear()
    with keeping(database) as keeper:
        database.wait_for(renewal)
        database.wait_for(renewal)
        for epoch in (3, 4, 5):
            keeper.report(epoch, epoch / 10)
        database.up.set()
        assert keeper.settle(30, NEVER) == (4, 0.4)
        assert keeper.check() == keeper.left == (4, 0.4)
        assert keeper.report(6, 0.6) == (4, 0.4)
        assert keeper.settled
        assert keeper.undelivered == [(5, 0.5), (6, 0.6)]
        while database.asked.get(timeout=30) != RENEWED:
            pass
    assert database.reports == [(3, 0.3), (4, 0.4)]


def test_no_checkpoint_is_ahead_of_the_reports_that_led_to_it():
    database = FakeDatabase()
    database.up.clear()
    with keeping(database) as keeper:
        database.wait_for(renewal)
        keeper.report(3, 0.5)
        keeper.offer(THREE)
        database.wait_for(lambda reports, _: reports == [(3, 0.5)])
        database.up.set()
        while keeper.written != 3:
            database.asked.get(timeout=30)
    told = [what for what in database.said if what != RENEWED]
    assert told == [([(3, 0.5)], None), ([], THREE)]


def test_no_checkpoint_is_behind_the_report_after_which_the_trial_is_left():
    database = FakeDatabase(leave_at=3)
    database.up.clear()
    with keeping(database) as keeper:
        database.wait_for(renewal)
        keeper.report(3, 0.5)
        keeper.offer(Checkpoint(4, 1.5, b"four"))
        database.up.set()
        assert keeper.settle(30, NEVER) == (3, 0.5)
        database.wait_for(renewal)
        database.wait_for(renewal)
    assert database.checkpoints == []
    assert keeper.written == 2


def test_a_database_that_stays_away_is_not_waited_for_without_end():
    database = FakeDatabase()
    database.up.clear()
    with keeping(database) as keeper, pytest.raises(StorageError, match="did not answer"):
        keeper.report(3, 0.5)
        keeper.settle(0.05, NEVER)


def test_a_stop_ends_the_waiting():
    database, stop = FakeDatabase(), threading.Event()
    database.up.clear()
    stop.set()
    with keeping(database) as keeper:
        keeper.report(3, 0.5)
        assert keeper.settle(HOUR, stop) is None
        assert not keeper.settled


def test_a_database_that_hangs_does_not_stop_the_training(monkeypatch):
    monkeypatch.setattr(keeper_module, "ANSWER_SECONDS", 0.01)
    answer = threading.Event()
    with TrialReporter("trial 0", 2, frozenset({3, 4, 5}), lambda *_: bool(answer.wait()), lambda: True) as keeper:
        assert [keeper.report(epoch, 0.5) for epoch in (3, 4, 5)] == [None] * 3
        assert not keeper.settled
        answer.set()
        keeper.settle(30, NEVER)


def test_a_checkpoint_is_wanted_when_it_is_time(monkeypatch):
    monkeypatch.setattr(keeper_module, "CHECKPOINT_SECONDS", HOUR)
    with keeping(FakeDatabase()) as keeper:
        assert keeper.checkpoint_due
        keeper.offer(THREE)
        assert not keeper.checkpoint_due


def test_the_thread_ends_with_its_trial():
    with keeping(FakeDatabase()):
        assert "keeper of trial 0" in {thread.name for thread in threading.enumerate()}
    assert "keeper of trial 0" not in {thread.name for thread in threading.enumerate()}
