"""Generic training loop: epochs, divergence, save and restore."""

import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import make_net_trainer, make_split, weight_bytes

from hpo.data.division.splits import Split
from hpo.data.metrics import METRICS
from hpo.models import checkpoint
from hpo.models.trainer import DivergenceError, Learner, Trainer


def test_restore_rewinds_training():
    trainer = make_net_trainer(momentum=0.9, learning_rate_decay=0.5)
    state = trainer.save()
    first = list(trainer.epochs())
    trainer.restore(state)
    assert list(trainer.epochs()) == first


def test_epochs_are_numbered_with_falling_loss():
    trainer = make_net_trainer()
    epochs = list(trainer.epochs())
    assert [epoch.number for epoch in epochs] == [1, 2, 3, 4]
    assert trainer.epoch == 4
    assert epochs[-1].train_loss < epochs[0].train_loss
    assert list(trainer.epochs()) == []


@pytest.mark.parametrize(
    "other",
    [
        {"hidden_size": 6},
        {"hidden_layers": 2},
        {"momentum": 0.9},
        {"learning_rate": 0.2},
        {"dropout": 0.5},
        {"label_smoothing": 0.1},
        {"whitening": 0.5},
        {"input_scale": 0.5},
        {"split": make_split(variants=2)},
        {"seed": (0, 1)},
        {"split": make_split(n=49)},
        {"split": make_split(features=5)},
    ],
    ids=str,
)
def test_checkpoint_of_other_training_is_refused(other):
    trainer = make_net_trainer()
    next(trainer.epochs())
    before = trainer.save()
    with pytest.raises(ValueError, match="the checkpoint of another training"):
        trainer.restore(make_net_trainer(**other).save())
    assert list(make_restored(before).epochs()) == list(trainer.epochs())


def test_checkpoint_of_other_version_is_refused(monkeypatch):
    state = make_net_trainer().save()
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    with pytest.raises(ValueError, match="the checkpoint of another version"):
        make_net_trainer().restore(state)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_truncated_checkpoint_is_refused(data):
    state = make_net_trainer().save()
    with pytest.raises(ValueError, match="not a checkpoint"):
        make_net_trainer().restore(state[: data.draw(st.integers(0, len(state) - 1))])


def test_epoch_with_best_mean_over_folds_is_kept():
    models = [ScriptedModel([0.5, 0.9, 0.7]), ScriptedModel([0.5, 0.8, 0.9])]
    trainer, validation = keeping(models), [SCORED, SCORED]
    kept = [statistics.fmean(trainer.kept_scores(validation)) for _ in trainer.epochs()]
    # The means over the folds are 0.5, 0.85 and 0.8.
    assert kept == pytest.approx([0.5, 0.85, 0.85])
    assert [model.epoch for model in models] == [2, 2]
    assert trainer.scores(validation) == trainer.kept_scores(validation)


def test_last_of_equal_epochs_is_kept():
    model = ScriptedModel([0.9, 0.9, 0.5])
    list(keeping([model]).epochs())
    assert model.epoch == 2


def test_smallest_loss_is_kept():
    model = ScriptedModel([0.9, 0.5, 0.7])
    list(keeping([model], METRICS["rmse"]).epochs())
    # The error of an output is 1 - output.
    assert model.epoch == 1


@pytest.mark.parametrize("best", [1, 2, 3, 4])
@pytest.mark.parametrize("restored_at", [0, 1, 2, 3, 4])
def test_restored_training_keeps_same_epoch(best, restored_at):
    outputs = [0.9 if epoch == best else 0.1 for epoch in range(1, 5)]
    first, second = ScriptedModel(outputs), ScriptedModel(outputs)
    whole, resumed = keeping([first]), keeping([second])
    states = [whole.save(), *(whole.save() for _ in whole.epochs())]
    resumed.restore(states[restored_at])
    list(resumed.epochs())
    assert resumed.save() == whole.save()
    assert second.epoch == first.epoch == best


def test_restored_net_keeps_same_weights():
    options = {"keep": "best", "validation": make_split(seed=1), "optimizer": "adam", "momentum": 0.9, "epochs": 9}
    whole = make_net_trainer(**options)
    expected = [(epoch, whole.kept_scores([]), whole.save()) for epoch in whole.epochs()]
    for epoch, scores, state in expected:
        resumed = make_net_trainer(**options)
        resumed.restore(state)
        assert resumed.kept_scores([]) == scores
        assert [epoch, *resumed.epochs()] == [row[0] for row in expected[epoch.number - 1 :]]
        assert weight_bytes(resumed) == weight_bytes(whole)


def test_last_epoch_is_kept_by_default():
    split = make_split(seed=1)
    trainer = make_net_trainer(validation=split)
    assert [trainer.kept_scores([split]) == trainer.scores([split]) for _ in trainer.epochs()] == [True] * 4


def test_outputs_that_overflow_diverge():
    trainer = keeping([ScriptedModel([0.5, math.inf])])
    with pytest.raises(DivergenceError, match="epoch 2: an output is not finite"):
        list(trainer.epochs())


@pytest.mark.parametrize("name", ["rmse", "r2"])
def test_score_that_overflows_diverges(name):
    trainer = keeping([ScriptedModel([0.5, 1e200])], METRICS[name], Split(np.ones((2, 1), np.float32), np.arange(2.0)))
    with pytest.raises(DivergenceError, match=f"epoch 2: the {name} of the outputs is not finite"):
        list(trainer.epochs())


class ScriptedModel:
    """Model whose output for any input is given for each epoch."""

    def __init__(self, outputs):
        self._outputs = outputs
        self.epoch = 0

    def fit_epoch(self, on_step):
        self.epoch += 1
        return 0.0

    def is_finite(self):
        return True

    def predict(self, X):
        return np.full((len(X), 1), self._outputs[self.epoch - 1])

    def state_dict(self):
        return {"epoch": np.array(self.epoch)}

    def load_state_dict(self, state):
        self.epoch = int(state["epoch"])


# The error of an output is its distance to 1, and the first column of the inputs is the constant.
SCORED = Split(np.ones((1, 1), np.float32), np.ones(1))
CLOSENESS = replace(METRICS["r2"], function=lambda outputs, y: 1 - abs(float(y[0] - outputs[0, 0])))


def keeping(models, metric=CLOSENESS, split=SCORED):
    learners = [Learner(model, np.random.default_rng(fold)) for fold, model in enumerate(models)]
    epochs = len(models[0]._outputs)
    return Trainer(learners, epochs, metric, validation=[split] * len(models))


def make_restored(state):
    trainer = make_net_trainer()
    trainer.restore(state)
    return trainer
