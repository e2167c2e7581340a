"""Trial of Optuna that a user's function gets from a worker, and its checkpoints."""

import threading
from types import SimpleNamespace

import optuna
import pytest
from fakes import FakeClock
from optuna.trial import TrialState

import hpo
from hpo.errors import HpoError
from hpo.runner import function_trial
from hpo.runner.function_trial import FunctionTrial, OwnTrial, TrialAborted, new_frozen_trial
from hpo.runner.limits import Limits, TrialTimeoutError
from hpo.runner.objective import TrialStopped
from hpo.runner.trial_runner import LeasedTrial, SharedProgress, WorkerContext, WorkerTimings
from hpo.storage.tables.leases import Checkpoint, Lease, LeaseLostError
from hpo.storage.tables.optuna_tables import NO_DETAILS, Details


class FakeReporter:
    """Heartbeat that records what it gets.

    Attributes:
        writes: The details and reports.
        submitted: The checkpoints.
        error: The error of the next writes.
        checkpoint_due: Whether the last checkpoint is old enough.
    """

    def __init__(self):
        self.writes = []
        self.submitted = []
        self.error = None
        self.checkpoint_due = True

    def write(self, details, reports):
        if self.error is not None:
            raise self.error
        self.writes.append((details, list(reports)))

    def submit_checkpoint(self, checkpoint):
        self.submitted.append(checkpoint)


class Worker:
    """A worker that runs one trial.

    Attributes:
        own: The trial.
        notes: The messages for the user.
    """

    def __init__(self, *, pauses=False, epoch=0, checkpoint=None, recorded=(), trial_timeout=None):
        self.clock, self.stop, self.notes, self.reporter = FakeClock(), threading.Event(), [], FakeReporter()
        self.study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=0.5))
        trial_id = self.study.ask()._trial_id
        for step in recorded:
            self.study._storage.set_trial_intermediate_value(trial_id, step, 0.25)
        lease = Lease(0, trial_id, attempt=1, owner="worker_a", epoch=epoch, checkpoint=checkpoint)
        context = WorkerContext(
            SimpleNamespace(n_steps=lambda params: None),
            SimpleNamespace(pauses=pauses),
            Limits(30.0, trial_timeout),
            WorkerTimings(clock=self.clock),
            self.stop,
            SharedProgress(),
        )
        leased = LeasedTrial(context, lease, self.reporter, {}, None)
        frozen = self.study._storage.get_trial(trial_id)
        self.own = OwnTrial(leased, self.study._study_id, frozen, self.notes.append)
        self.trial = FunctionTrial(self.study, self.own)

    def save(self, step):
        """Save a checkpoint after the report of its step."""
        self.own.frozen.intermediate_values[step] = 0.25
        hpo.save_checkpoint(self.trial, b"%d" % step, step)


@pytest.fixture
def worker():
    return Worker()


def steps(checkpoints):
    return [checkpoint.step for checkpoint in checkpoints]


# Checkpoints


def test_new_trial_has_no_checkpoint(worker):
    assert hpo.load_checkpoint(worker.trial) is None


def test_resumed_trial_loads_its_checkpoint():
    assert hpo.load_checkpoint(Worker(epoch=2, checkpoint=b"two").trial) == b"two"


def test_checkpoint_is_submitted_if_last_one_is_old_enough(worker):
    worker.save(1)
    worker.reporter.checkpoint_due = False
    worker.save(2)
    assert worker.reporter.submitted == [Checkpoint(1, 0.0, b"1")]
    assert worker.own.checkpoint == Checkpoint(2, 0.0, b"2")


def test_pausing_trial_keeps_newest_checkpoint_back():
    worker = Worker(pauses=True)
    worker.save(1)
    assert worker.reporter.submitted == []
    worker.save(2)
    worker.save(4)
    assert steps(worker.reporter.submitted) == [1, 2]


@pytest.mark.parametrize(("pauses", "step"), [(False, 2), (True, 1)])
def test_stopping_worker_gets_checkpoint_without_undecided_step(pauses, step):
    worker = Worker(pauses=pauses)
    worker.save(1)
    worker.stop.set()
    with pytest.raises(TrialStopped) as stopped:
        worker.save(2)
    assert stopped.value.checkpoint.step == step


def test_trial_can_pause_with_checkpoint_at_last_report():
    worker = Worker(pauses=True)
    assert not worker.own.is_pausable
    worker.save(1)
    assert worker.own.is_pausable
    worker.own.frozen.intermediate_values[2] = 0.25
    assert not worker.own.is_pausable
    worker.save(2)
    assert worker.own.is_pausable


def test_trial_without_promotions_cannot_pause(worker):
    worker.save(1)
    assert not worker.own.is_pausable


def test_too_large_checkpoint_is_ignored_with_note(worker, monkeypatch):
    assert function_trial.MAX_CHECKPOINT_BYTES == 64 * 10**6
    monkeypatch.setattr(function_trial, "MAX_CHECKPOINT_BYTES", 2_000_000)
    hpo.save_checkpoint(worker.trial, bytes(2_000_000), 1)
    assert worker.notes == []
    hpo.save_checkpoint(worker.trial, bytes(2_600_000), 2)
    assert steps(worker.reporter.submitted) == [1]
    (note,) = worker.notes
    assert note.startswith("a checkpoint of 3 MB is ignored, because the limit is 2 MB")


@pytest.mark.parametrize("state", [bytearray(b"12"), memoryview(b"12"), memoryview(b"1x2")[::2]])
def test_buffer_is_a_checkpoint(worker, state):
    hpo.save_checkpoint(worker.trial, state, 1)
    (checkpoint,) = worker.reporter.submitted
    assert checkpoint.state == b"12"
    assert type(checkpoint.state) is bytes


@pytest.mark.parametrize(
    ("state", "step", "error", "message"),
    [
        ("12", 1, TypeError, "the state of a checkpoint is bytes, not str"),
        ({"a": 1}, 1, TypeError, "the state of a checkpoint is bytes, not dict"),
        (None, 1, TypeError, "the state of a checkpoint is bytes, not NoneType"),
        (b"12", -1, ValueError, "the step of a checkpoint is at least 0, not -1"),
    ],
)
def test_other_checkpoint_is_refused(worker, state, step, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        hpo.save_checkpoint(worker.trial, state, step)
    assert worker.reporter.submitted == []


def test_trial_that_hpo_does_not_run_has_no_checkpoints():
    trial = optuna.create_study().ask()
    hpo.save_checkpoint(trial, b"12", 1)
    assert hpo.load_checkpoint(trial) is None
    fixed = optuna.trial.FixedTrial({})
    hpo.save_checkpoint(fixed, b"12", 1)
    assert hpo.load_checkpoint(fixed) is None


# Reports


def test_report_of_earlier_attempt_stays():
    trial = Worker(recorded=[1, 2]).trial
    for step in (1, 2, 3):
        trial.report(0.75, step)
    assert trial.study._storage.get_trial(trial._trial_id).intermediate_values == {1: 0.25, 2: 0.25, 3: 0.75}


def test_pruner_is_not_asked_about_steps_up_to_checkpoint():
    trial = Worker(epoch=2, checkpoint=b"two").trial
    decisions = []
    for step in (1, 2, 3):
        trial.report(0.75, step)
        decisions.append(trial.should_prune())
    assert decisions == [False, False, True]


def test_pruner_is_asked_about_each_step_of_trial_without_checkpoint():
    trial = Worker(recorded=[1, 2]).trial
    trial.report(0.75, 0)
    assert not trial.should_prune()
    trial.report(0.75, 3)
    assert trial.should_prune()


# Errors on their way through the function


@pytest.mark.parametrize("error", [LeaseLostError(0), OSError("the disk is full")])
def test_error_of_heartbeat_passes_except_exception(worker, error):
    worker.reporter.error = error
    with pytest.raises(TrialAborted) as aborted:
        worker.own.write(NO_DETAILS, [(1, 0.5)])
    assert aborted.value.error is error
    assert worker.own.aborted is aborted.value
    assert not isinstance(aborted.value, Exception)


def test_stopping_worker_ends_trial_at_next_call(worker):
    worker.trial.report(0.5, 1)
    worker.stop.set()
    with pytest.raises(TrialStopped) as stopped:
        worker.trial.report(0.5, 2)
    assert stopped.value.checkpoint is None
    assert worker.own.aborted is stopped.value
    with pytest.raises(TrialStopped):
        worker.own.write(Details(user_attrs={"a": 1}), ())
    assert worker.reporter.writes == []


def test_timeout_ends_trial_at_next_call():
    worker = Worker(trial_timeout=10.0)
    worker.trial.report(0.5, 1)
    worker.clock.advance(11)
    with pytest.raises(TrialTimeoutError):
        worker.trial.report(0.5, 2)
    with pytest.raises(TrialTimeoutError):
        worker.own.write(NO_DETAILS, [(2, 0.5)])


def test_ended_trial_is_written_after_stop(worker):
    worker.stop.set()
    worker.own.has_ended = True
    worker.own.write(NO_DETAILS, [(1, 0.5)])
    assert worker.reporter.writes == [(NO_DETAILS, [(1, 0.5)])]


def test_last_report_is_value_of_trial_that_exceeds_a_limit(worker):
    assert worker.own.last_report is None
    worker.own.frozen.intermediate_values = {2: 0.5, 1: 0.25}
    assert worker.own.last_report == (2, 0.5)
    worker.own.frozen.intermediate_values[3] = float("nan")
    assert worker.own.last_report is None


def test_function_must_not_end_its_trial(worker):
    with pytest.raises(HpoError, match=r"remove the call of study\.tell"):
        worker.own.end(TrialState.COMPLETE, [0.5])
    worker.own.has_ended = True
    worker.own.end(TrialState.COMPLETE, [0.5])
    assert (worker.own.frozen.state, worker.own.frozen.values) == (TrialState.COMPLETE, [0.5])


def test_new_trial_has_local_start_time():
    trial = new_frozen_trial(3, 7)
    assert (trial.number, trial._trial_id, trial.state) == (3, 7, TrialState.RUNNING)
    assert trial.datetime_start.tzinfo is None
