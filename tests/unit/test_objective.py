"""A trial from its first epoch, or the one after its checkpoint, to its end."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from hpo.models.trainer import DivergenceError, Epoch
from hpo.runner.objective import Outcome, Schedule, run_trial

VALIDATION = object()


class FakeTraining:
    """A training whose accuracy after epoch n is n / 1000, from an epoch that a checkpoint may have left it at."""

    def __init__(self, epochs, restored_at=0, diverges_at=None):
        self.epoch = restored_at
        self._epochs = epochs
        self._diverges_at = diverges_at

    def epochs(self, after_step):
        while self.epoch < self._epochs:
            after_step()
            if self.epoch + 1 == self._diverges_at:
                raise DivergenceError(f"epoch {self._diverges_at}: the loss is nan")
            self.epoch += 1
            yield Epoch(self.epoch, 0.5)

    def accuracy(self, split):
        assert split is VALIDATION
        return self.epoch / 1000


class Script:
    """What a trial did, in order; ``pruned_at`` is the report that is answered with "prune"."""

    def __init__(self, pruned_at=None):
        self.events = []
        self._pruned_at = pruned_at
        self.training = None

    def report(self, epoch, accuracy):
        self.events.append(("report", epoch, accuracy))
        return Outcome.pruned(epoch, accuracy) if epoch == self._pruned_at else None

    def after_epoch(self):
        self.events.append(("after", self.training.epoch))

    def after_step(self):
        pass

    def run(self, training, last_epoch, epochs, reported=None):
        self.training = training
        schedule = Schedule(last_epoch, frozenset(epochs))
        return run_trial(training, VALIDATION, schedule, reported, self.report, self.after_epoch, self.after_step)


def expected_events(first, last, schedule):
    events = []
    for epoch in range(first, last):
        if epoch in schedule:
            events.append(("report", epoch, epoch / 1000))
        events.append(("after", epoch))
    return [*events, ("report", last, last / 1000)]


@settings(deadline=None)
@given(data=st.data(), last=st.integers(1, 30), schedule=st.sets(st.integers(1, 40)))
def test_a_trial_reports_on_schedule_and_after_its_last_epoch(data, last, schedule):
    restored_at = data.draw(st.integers(0, last))
    script = Script()
    outcome = script.run(FakeTraining(last, restored_at), last, schedule)
    assert script.events == expected_events(restored_at + 1, last, schedule)
    assert outcome == Outcome(TrialState.COMPLETE, last / 1000)


@settings(deadline=None)
@given(data=st.data(), last=st.integers(2, 30), schedule=st.sets(st.integers(1, 29), min_size=1))
def test_a_pruned_trial_ends_at_once(data, last, schedule):
    schedule = {min(epoch, last - 1) for epoch in schedule}
    pruned_at = data.draw(st.sampled_from(sorted(schedule)))
    script, training = Script(pruned_at), FakeTraining(last)
    outcome = script.run(training, last, schedule)
    assert (outcome.state, outcome.value) == (TrialState.PRUNED, pruned_at / 1000)
    assert str(pruned_at) in outcome.reason
    assert script.events[-1] == ("report", pruned_at, pruned_at / 1000)
    assert training.epoch == pruned_at


def test_a_trial_that_reached_its_last_epoch_is_complete_whatever_the_pruner_says():
    script = Script(pruned_at=5)
    assert script.run(FakeTraining(5), 5, {5}) == Outcome(TrialState.COMPLETE, 0.005)
    assert [event for event in script.events if event[0] == "report"] == [("report", 5, 0.005)]


def test_a_divergence_prunes_with_its_reason_and_the_last_value():
    outcome = Script().run(FakeTraining(9, diverges_at=6), 9, {1, 4})
    assert (outcome.state, outcome.value) == (TrialState.PRUNED, 0.004)
    assert "diverged" in outcome.reason
    assert "epoch 6: the loss is nan" in outcome.reason


def test_a_divergence_before_the_first_report_has_no_value():
    outcome = Script().run(FakeTraining(9, diverges_at=1), 9, {1, 4})
    assert (outcome.state, outcome.value) == (TrialState.PRUNED, None)


def test_a_divergence_in_the_last_epoch_is_no_completion():
    script = Script()
    outcome = script.run(FakeTraining(3, diverges_at=3), 3, {1})
    assert (outcome.state, outcome.value) == (TrialState.PRUNED, 0.001)
    assert script.events == [("report", 1, 0.001), ("after", 1), ("after", 2)]


class StopError(Exception):
    pass


def test_what_after_epoch_raises_gets_out():
    script = Script()

    def stop():
        raise StopError

    script.after_epoch = stop
    with pytest.raises(StopError):
        script.run(FakeTraining(9), 9, {1})
    assert script.events == [("report", 1, 0.001)]  # the report comes first


def test_an_answer_that_comes_late_ends_the_trial_where_it_was_asked_for():
    script, training = Script(), FakeTraining(9)
    script.after_epoch = lambda: Outcome.pruned(1, 0.001) if training.epoch == 4 else None
    outcome = script.run(training, 9, {1})
    assert (outcome.state, outcome.value, training.epoch) == (TrialState.PRUNED, 0.001, 4)


def test_what_comes_between_two_steps_ends_the_trial_in_the_middle_of_an_epoch():
    script, training = Script(), FakeTraining(9)

    def stop():
        if training.epoch == 2:
            raise StopError

    script.after_step = stop
    with pytest.raises(StopError):
        script.run(training, 9, {1})
    assert script.events == [("report", 1, 0.001), ("after", 1), ("after", 2)]


def test_a_trial_that_is_cut_short_is_worth_what_it_reported():
    assert Outcome.cut_short(0.5, "timeout") == Outcome(TrialState.PRUNED, 0.5, "timeout")
    assert Outcome.cut_short(0.0, "timeout").state == TrialState.PRUNED
    assert Outcome.cut_short(None, "memory") == Outcome(TrialState.FAIL, None, "memory")


def test_what_report_raises_gets_out():
    script = Script()

    def lost(epoch, accuracy):
        raise StopError

    script.report = lost
    with pytest.raises(StopError):
        script.run(FakeTraining(1), 1, set())


@pytest.mark.parametrize("error", [ArithmeticError, ValueError, FloatingPointError])
def test_a_bug_is_no_divergence(error):
    training = FakeTraining(3)

    def accuracy(_):
        raise error("a bug")

    training.accuracy = accuracy
    with pytest.raises(error, match="a bug"):
        Script().run(training, 3, {1})


def test_a_training_restored_at_its_last_epoch_completes():
    script = Script()
    assert script.run(FakeTraining(7, restored_at=7), 7, {1, 7}) == Outcome(TrialState.COMPLETE, 0.007)
    assert script.events == [("report", 7, 0.007)]


def test_a_trial_that_diverges_after_it_was_resumed_ends_as_if_it_had_never_stopped():
    undisturbed = Script().run(FakeTraining(9, diverges_at=6), 9, {1, 4})
    resumed = Script().run(FakeTraining(9, diverges_at=6, restored_at=5), 9, {1, 4}, reported=0.004)
    assert resumed == undisturbed
