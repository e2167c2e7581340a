"""Training of a net: batches, variants, learning rate decay and scaling of the inputs."""

import math
import tracemalloc
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import (
    N_CLASSES,
    make_net_trainer,
    make_numbered_split,
    make_split,
    net_weights,
    score,
    weight_bytes,
    with_constant,
)

from hpo.data.division.splits import Split
from hpo.models.nets import net
from hpo.models.nets.mlp import MLP
from hpo.models.nets.net import _input_scale


class Step(NamedTuple):
    """Arguments of a step. ``first_inputs`` is the first column of X."""

    first_inputs: list[float]
    labels: list[int]
    learning_rate: float
    label_smoothing: float


def record_steps(monkeypatch):
    """Return a list to which each later `MLP.step` appends its arguments."""
    steps = []
    step = MLP.step

    def recorder(network, X, y, learning_rate, label_smoothing):
        steps.append(Step(X[:, 0].tolist(), y.tolist(), learning_rate, label_smoothing))
        return step(network, X, y, learning_rate, label_smoothing)

    monkeypatch.setattr(MLP, "step", recorder)
    return steps


@pytest.fixture
def steps(monkeypatch):
    return record_steps(monkeypatch)


def test_train_loss_weighs_examples_equally():
    split = make_split(n=5)
    # The learning rate is too small to change a weight.
    slow = {"learning_rate": 1e-30, "regularization": 0.1}
    one_batch, uneven = (next(make_net_trainer(split, batch_size=size, **slow).epochs()) for size in (5, 4))
    assert uneven.train_loss == pytest.approx(one_batch.train_loss, rel=1e-6)


@settings(deadline=None, max_examples=20)
@given(n=st.integers(1, 40), batch_size=st.integers(1, 50))
def test_epoch_has_each_example_once(n, batch_size):
    with pytest.MonkeyPatch.context() as monkeypatch:
        steps = record_steps(monkeypatch)
        next(make_net_trainer(make_numbered_split(n), batch_size=batch_size, learning_rate=1e-6).epochs())
    examples = [example for step in steps for example in step.first_inputs]
    assert sorted(examples) == list(range(n))
    assert [label for step in steps for label in step.labels] == [example % N_CLASSES for example in examples]
    assert {len(step.first_inputs) for step in steps[:-1]} <= {min(n, batch_size)}


@pytest.mark.parametrize(
    ("examples", "batch_size"),
    [(1, 1), (31, 31), (33, 32), (1100, 32), (1200, 64), (1500, 64), (3500, 128), (70_000, 1024)],
)
def test_automatic_batch_size_is_power_of_two(examples, batch_size):
    assert net._batch_size("auto", examples) == batch_size


def test_automatic_batch_size_is_used(steps):
    next(make_net_trainer(make_split(n=70), batch_size="auto").epochs())
    assert [len(step.labels) for step in steps] == [32, 32, 6]


def test_cosine_schedule_multiplies_decayed_learning_rate(steps):
    split = make_split(n=5)
    schedule = {"learning_rate": 0.5, "learning_rate_decay": 0.5, "schedule": "cosine", "epochs": 4}
    list(make_net_trainer(split, batch_size=5, **schedule).epochs())
    half_wave = [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    expected = [0.5 * 0.5**epoch * factor for epoch, factor in enumerate(half_wave)]
    assert [step.learning_rate for step in steps] == pytest.approx(expected)


@settings(deadline=None, max_examples=20)
@given(n=st.integers(1, 40), batch_size=st.integers(1, 50), variants=st.integers(2, 4))
def test_epoch_has_one_variant_per_example(n, batch_size, variants):
    with pytest.MonkeyPatch.context() as monkeypatch:
        steps = record_steps(monkeypatch)
        next(make_net_trainer(make_numbered_split(n, variants), batch_size=batch_size, learning_rate=1e-6).epochs())
    rows = [int(row) for step in steps for row in step.first_inputs]
    assert sorted(row % n for row in rows) == list(range(n))
    assert [label for step in steps for label in step.labels] == [row % n % N_CLASSES for row in rows]


def test_each_epoch_draws_variants_uniformly(steps):
    n, variants, epochs = 1000, 3, 4
    list(make_net_trainer(make_numbered_split(n, variants), batch_size=n, epochs=epochs, learning_rate=1e-9).epochs())
    drawn = np.array([np.array(sorted(step.first_inputs, key=lambda row: row % n)) // n for step in steps])
    assert drawn.shape == (epochs, n)
    assert np.bincount(drawn.astype(int).ravel()) / drawn.size == pytest.approx(1 / variants, abs=0.04)
    assert (drawn[0] == drawn[1]).mean() == pytest.approx(1 / variants, abs=0.06)


def test_score_ignores_variants():
    split = make_split(variants=2)
    trainer = make_net_trainer(split)
    list(trainer.epochs())
    assert score(trainer, split) == score(trainer, Split(split.X[:50], split.y))


def test_label_smoothing_reaches_step(steps):
    list(make_net_trainer(label_smoothing=0.25, epochs=1).epochs())
    assert {step.label_smoothing for step in steps} == {0.25}


@pytest.mark.parametrize(
    "hyperparameter", [{"dropout": 0.5}, {"label_smoothing": 0.5}, {"whitening": 0.5}, {"input_scale": 2.0}]
)
def test_hyperparameter_changes_weights(hyperparameter):
    plain, other = make_net_trainer(), make_net_trainer(**hyperparameter)
    list(plain.epochs()), list(other.epochs())
    assert weight_bytes(plain) != weight_bytes(other)


def test_listed_sizes_equal_counted_layers():
    counted = make_net_trainer(hidden_size=6, hidden_layers=2)
    listed = make_net_trainer(hidden_size=None, hidden_layers=(6, 6))
    list(counted.epochs()), list(listed.epochs())
    assert [W.tobytes() for W, _ in net_weights(counted)] == [W.tobytes() for W, _ in net_weights(listed)]
    assert [W.shape for W, _ in net_weights(make_net_trainer(hidden_size=None, hidden_layers=(7, 5, 3)))[1:]] == [
        (7, 5),
        (5, 3),
        (3, N_CLASSES),
    ]


# Scaling of the inputs


@settings(deadline=None, max_examples=40)
@given(whitening=st.floats(0.01, 1), features=st.integers(1, 6), seed=st.integers(0, 1000))
def test_whitening_keeps_sum_of_variances(whitening, features, seed):
    X = make_split(features=features, seed=seed).X
    scale = _input_scale(X, whitening, 1.0)
    before, after = X.astype(np.float64).var(axis=0)[:-1], (X * scale).astype(np.float64).var(axis=0)[:-1]
    assert after.sum() == pytest.approx(before.sum(), rel=1e-4)
    shares = after / before ** (1 - whitening)
    assert shares == pytest.approx(shares[0], rel=1e-4)
    assert scale[-1] == 1


@pytest.mark.parametrize("whitening", [0.0, 0.5])
def test_input_scale_multiplies_all_inputs(whitening):
    X = make_split().X
    expected = np.ones(5) if not whitening else _input_scale(X, whitening, 1.0)
    assert _input_scale(X, whitening, 0.25)[:-1] == pytest.approx(expected[:-1] / 4)
    assert _input_scale(X, whitening, 0.25)[-1] == 1


def test_inputs_without_scaling_have_no_scale():
    assert _input_scale(make_split().X, 0.0, 1.0) is None


def test_step_has_scaled_inputs(steps):
    split = make_split()
    next(make_net_trainer(split, input_scale=0.5).epochs())
    inputs = sorted(value for step in steps for value in step.first_inputs)
    assert inputs == sorted((split.X[:, 0] / 2).tolist())


def test_variances_cover_all_blocks(monkeypatch):
    X = make_split(n=50).X
    monkeypatch.setattr(net, "_BLOCK_ROWS", 7)
    assert net._variances(X) == pytest.approx(X.astype(np.float64).var(axis=0), abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, 100.0])
def test_constant_input_has_smallest_multiplier(value):
    split = make_split(n=997, features=3)
    split.X[:, 1] = value
    scale = _input_scale(split.X, 1.0, 1.0)
    assert np.isfinite(scale).all()
    assert scale[1] == scale[:-1].min()


def test_whitening_keeps_constant_data():
    assert _input_scale(np.ones((5, 4), np.float32), 1.0, 1.0).tolist() == [1, 1, 1, 1]


# Batches, seeds and memory


def test_batch_has_at_most_all_examples():
    split = make_split(n=50)
    whole, larger = make_net_trainer(split, batch_size=50), make_net_trainer(split, batch_size=10**12)
    assert list(larger.epochs()) == list(whole.epochs())
    assert weight_bytes(larger) == weight_bytes(whole)


def test_each_epoch_has_its_order(steps):
    list(make_net_trainer(make_numbered_split(20), batch_size=20, epochs=2, learning_rate=1e-6).epochs())
    assert steps[0].first_inputs != steps[1].first_inputs


def test_learning_rate_decays_per_epoch(steps):
    list(make_net_trainer(learning_rate_decay=0.5, epochs=3, batch_size=30).epochs())
    assert [step.learning_rate for step in steps] == [0.1, 0.1, 0.05, 0.05, 0.025, 0.025]


def test_longer_training_begins_identically():
    short, long = (list(make_net_trainer(epochs=n, learning_rate_decay=0.9).epochs()) for n in (2, 4))
    assert long[:2] == short


def test_memory_map_gives_same_weights(tmp_path):
    split = make_split()
    np.save(tmp_path / "X.npy", split.X)
    mapped = Split(np.load(tmp_path / "X.npy", mmap_mode="r"), split.y)
    from_memory, from_map = make_net_trainer(split), make_net_trainer(mapped)
    assert list(from_memory.epochs()) == list(from_map.epochs())
    assert weight_bytes(from_memory) == weight_bytes(from_map)
    assert score(from_map, mapped) == score(from_memory, split)


@pytest.mark.parametrize("whitening", [0.0, 0.5])
def test_epoch_does_not_copy_data(whitening):
    split = make_split(n=20_000, features=100)
    tracemalloc.start()
    try:
        trainer = make_net_trainer(split, batch_size=200, whitening=whitening, learning_rate=1e-6)
        next(trainer.epochs())
        score(trainer, split)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < split.X.nbytes / 10


def test_separable_data_reach_full_accuracy():
    y = np.arange(60) % N_CLASSES
    split = Split(with_constant(np.eye(N_CLASSES)[y]), y)
    trainer = make_net_trainer(split, epochs=50, hidden_size=20)
    list(trainer.epochs())
    assert score(trainer, split) == 1.0
    assert score(trainer, Split(split.X, (y + 1) % N_CLASSES)) == 0.0


# Invalid training splits


@pytest.mark.parametrize("label", [-1, N_CLASSES])
def test_label_outside_classes_is_refused(label):
    split = make_split()
    split.y[7] = label
    with pytest.raises(ValueError, match="0 to 2 are allowed"):
        make_net_trainer(split)


def test_split_without_constant_is_refused():
    split = make_split()
    with pytest.raises(ValueError, match="the constant 1 is needed"):
        make_net_trainer(Split(split.X[:, :-1], split.y))


def test_incomplete_variants_are_refused():
    split = make_split(n=50)
    with pytest.raises(ValueError, match="50 rows of X; a multiple of the 20 labels is needed"):
        make_net_trainer(Split(split.X, split.y[:20]))
