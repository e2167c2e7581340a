"""The loop of a training objective, with a trainer that does not train."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from workers import make_config

from hpo.models.base import RefusalError
from hpo.models.fitted import FittedNet, unpack_folds
from hpo.models.trainer import DivergenceError, Epoch
from hpo.runner import training_objective
from hpo.runner.limits import TrialTimeoutError
from hpo.runner.objective import TrialPruned, TrialStopped
from hpo.runner.training_objective import TrainingObjective
from hpo.testing.objectives import RecordingTrial

VALIDATION = object()


class FakeTrainer:
    """Trainer whose score after epoch n is n / 1000.

    Args:
        epochs: The number of epochs.
        restored_at: The epoch of the checkpoint.
        diverges_at: The epoch that diverges.
        error: The error of this epoch; None for a divergence.
        fitted: The fitted models.
    """

    def __init__(self, epochs, restored_at=0, diverges_at=None, error=None, fitted=()):
        self.epoch = restored_at
        self._epochs = epochs
        self._diverges_at = diverges_at
        self._error = error
        self._fitted = fitted

    def epochs(self, on_step):
        while self.epoch < self._epochs:
            on_step()
            if self.epoch + 1 == self._diverges_at:
                raise self._error or DivergenceError(f"epoch {self._diverges_at}: the loss is nan")
            self.epoch += 1
            yield Epoch(self.epoch, 0.5)

    def kept_scores(self, splits):
        assert splits == [VALIDATION]
        return [self.epoch / 1000]

    def save(self):
        return b"state"

    def fitted(self):
        return self._fitted


class FakeTrainingObjective(TrainingObjective):
    """Training objective with a given trainer and given report steps."""

    def __init__(self, trainer, report_steps):
        super().__init__(make_config(), data_folder=None, fingerprint="")
        self._data = SimpleNamespace(folds=[SimpleNamespace(validation=VALIDATION)])
        self._trainer = trainer
        self._report_steps = {"": frozenset(report_steps)}

    def _load_trainer(self, trial, data):
        return self._trainer

    def n_steps(self, params):
        return self._trainer._epochs


class EventTrial(RecordingTrial):
    """Trial that also records the order of reports and of ended steps."""

    def __init__(self, **events):
        super().__init__({}, **events)
        self.events = []

    def report(self, value, step):
        self.events.append(("report", step, value))
        super().report(value, step)

    def save_checkpoint(self, state, step):
        self.events.append(("end", step))
        super().save_checkpoint(state, step)


def run(trainer, report_steps, **events):
    """Run the objective; return the trial and the value or the exception."""
    trial = EventTrial(**events)
    try:
        return trial, FakeTrainingObjective(trainer, report_steps)(trial)
    except (TrialPruned, TrialStopped, TrialTimeoutError) as error:
        return trial, error


def expected_events(first, last, report_steps):
    events = []
    for step in range(first, last):
        if step in report_steps:
            events.append(("report", step, step / 1000))
        events.append(("end", step))
    return [*events, ("report", last, last / 1000)]


@settings(deadline=None)
@given(data=st.data(), last=st.integers(1, 30), report_steps=st.sets(st.integers(1, 40)))
def test_trial_reports_on_schedule_and_at_end(data, last, report_steps):
    restored_at = data.draw(st.integers(0, last))
    trial, value = run(FakeTrainer(last, restored_at), report_steps)
    assert trial.events == expected_events(restored_at + 1, last, report_steps)
    assert value == last / 1000


@settings(deadline=None)
@given(data=st.data(), last=st.integers(2, 30), report_steps=st.sets(st.integers(1, 29), min_size=1))
def test_pruned_trial_ends_at_once(data, last, report_steps):
    report_steps = {min(step, last - 1) for step in report_steps}
    pruned_at = data.draw(st.sampled_from(sorted(report_steps)))
    trainer = FakeTrainer(last)
    trial, error = run(trainer, report_steps, prune_at=pruned_at)
    assert isinstance(error, TrialPruned)
    assert error.reason is None
    assert trial.events[-2:] == [("report", pruned_at, pruned_at / 1000), ("end", pruned_at)]
    assert trainer.epoch == pruned_at


def test_trial_at_last_step_is_complete():
    trial, value = run(FakeTrainer(5), {5}, prune_at=5, stop_at=5)
    assert value == 0.005
    assert trial.reports == [(5, 0.005)]


def test_divergence_prunes_with_reason():
    trial, error = run(FakeTrainer(9, diverges_at=6), {1, 4})
    assert isinstance(error, TrialPruned)
    assert error.reason == "diverged: epoch 6: the loss is nan"
    assert trial.reports == [(1, 0.001), (4, 0.004)]


def test_refusal_of_model_prunes_with_reason():
    trial, error = run(FakeTrainer(9, diverges_at=6, error=RefusalError("SVC: no such kernel")), {1, 4})
    assert isinstance(error, TrialPruned)
    assert error.reason == "refused: SVC: no such kernel"
    assert trial.reports == [(1, 0.001), (4, 0.004)]


@pytest.mark.parametrize("folds", [1, 3])
def test_models_that_are_too_large_together_prune_trial(monkeypatch, folds):
    net = FittedNet([(np.zeros((1000, 100)), np.zeros(100))])
    objective = FakeTrainingObjective(FakeTrainer(3, fitted=[net] * folds), {1})
    artifact = objective.artifact()
    assert [model.n_inputs for model in unpack_folds(artifact)] == [1000] * folds
    monkeypatch.setattr(training_objective, "MAX_ARTIFACT_BYTES", len(artifact) - 1)
    size = f"{len(artifact) / 1e6:.0f} MB"
    with pytest.raises(TrialPruned, match=f"refused: the fitted model has {size}; at most {size} are stored"):
        objective.artifact()


def test_divergence_in_last_epoch_is_not_complete():
    trial, error = run(FakeTrainer(3, diverges_at=3), {1})
    assert isinstance(error, TrialPruned)
    assert trial.events == [("report", 1, 0.001), ("end", 1), ("end", 2)]


def test_stop_comes_after_report():
    trial, error = run(FakeTrainer(9), {1}, stop_at=1)
    assert isinstance(error, TrialStopped)
    assert (error.checkpoint.step, error.checkpoint.state) == (1, b"state")
    assert trial.events == [("report", 1, 0.001), ("end", 1)]


def test_timeout_ends_epoch():
    trial, error = run(FakeTrainer(9), {1}, timeout_at=3)
    assert isinstance(error, TrialTimeoutError)
    assert trial.events == [("report", 1, 0.001), ("end", 1), ("end", 2)]


@pytest.mark.parametrize("error", [ArithmeticError, ValueError, FloatingPointError])
def test_other_error_is_not_divergence(error):
    trainer = FakeTrainer(3)

    def score(_):
        raise error("a bug")

    trainer.kept_scores = score
    with pytest.raises(error, match="a bug"):
        run(trainer, {1})


def test_report_error_passes():
    class LostTrial(RecordingTrial):
        def report(self, value, step):
            raise KeyError(step)

    with pytest.raises(KeyError):
        FakeTrainingObjective(FakeTrainer(1), set())(LostTrial({}))


def test_trial_restored_at_last_epoch_completes():
    trial, value = run(FakeTrainer(7, restored_at=7), {1, 7})
    assert value == 0.007
    assert trial.events == [("report", 7, 0.007)]


def test_cost_parameter_is_searched_epochs():
    assert TrainingObjective(make_config(), None, "").cost_parameter == "epochs"


def test_fixed_epochs_are_no_cost_parameter():
    objective = TrainingObjective(make_config(space={"epochs": None}, train={"epochs": 5}), None, "")
    params = {"learning_rate": 0.01, "regularization": 1e-4, "hidden_size": 8}
    assert (objective.cost_parameter, objective.max_steps, objective.n_steps(params)) == (None, 5, 5)
