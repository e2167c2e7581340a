"""Generic training loop: epochs, divergence, save and restore."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import make_net_trainer, make_split

from hpo.models import checkpoint


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


def make_restored(state):
    trainer = make_net_trainer()
    trainer.restore(state)
    return trainer
