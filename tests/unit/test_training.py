import io
import json
import tracemalloc
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo.config.study import Hyperparameters
from hpo.models import trainer as training_module
from hpo.models.mlp import MLP
from hpo.models.predictor import accuracy
from hpo.models.trainer import DivergenceError, Trainer, _input_scale

CLASSES = 3
TORCH = pytest.param(
    "torch", marks=pytest.mark.skipif(find_spec("torch") is None, reason="no PyTorch: pip install 'hpo[torch]'")
)
of_every_backend = pytest.mark.parametrize("backend", ["numpy", TORCH])


class Split(NamedTuple):
    X: np.ndarray
    y: np.ndarray


def make_split(n=50, features=4, seed=0, variants=1):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, n)
    X = rng.normal(size=(variants * n, features)) * np.arange(1, features + 1) + np.tile(y, variants)[:, np.newaxis]
    return Split(with_constant(X), y)


def with_constant(X):
    return np.column_stack([X, np.ones(len(X))]).astype(np.float32)


def make_training(split=None, seed=(0, 0), **settings):
    defaults = {"learning_rate": 0.1, "regularization": 1e-3, "hidden_size": 5, "epochs": 4, "batch_size": 16}
    hyperparameters = Hyperparameters.model_validate(defaults | settings)
    return Trainer(split or make_split(), CLASSES, hyperparameters, seed)


def bits(training):
    return b"".join(array.tobytes() for layer in training.weights() for array in layer)


class Step(NamedTuple):
    examples: list[float]
    labels: list[int]
    learning_rate: float
    label_smoothing: float


def steps_of(monkeypatch):
    """What `MLP.step` is called with from now on; X's first column tells the example."""
    calls = []
    step = MLP.step

    def spy(network, X, y, learning_rate, label_smoothing):
        calls.append(Step(X[:, 0].tolist(), y.tolist(), learning_rate, label_smoothing))
        return step(network, X, y, learning_rate, label_smoothing)

    monkeypatch.setattr(MLP, "step", spy)
    return calls


@pytest.fixture
def steps(monkeypatch):
    return steps_of(monkeypatch)


@of_every_backend
@settings(deadline=None, max_examples=40)
@given(
    finished=st.integers(0, 5),
    momentum=st.sampled_from([0.0, 0.9]),
    learning_rate_decay=st.sampled_from([1.0, 0.9]),
    hidden_layers=st.integers(1, 3),
    batch_size=st.sampled_from([1, 7, 16, 50, 200]),
    dropout=st.sampled_from([0.0, 0.3]),
    label_smoothing=st.sampled_from([0.0, 0.1]),
    whitening=st.sampled_from([0.0, 0.5]),
    input_scale=st.sampled_from([1.0, 0.5]),
    variants=st.integers(1, 3),
    seed=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 1000)),
)
def test_a_restored_training_goes_on_to_the_last_bit(backend, finished, seed, variants, **settings):
    settings |= {"split": make_split(variants=variants), "backend": backend}
    whole = make_training(epochs=5, seed=seed, **settings)
    epochs = list(whole.epochs())

    interrupted = make_training(epochs=5, seed=seed, **settings)
    steps = interrupted.epochs()
    for _ in range(finished):
        next(steps)
    state = interrupted.save()
    next(steps, None)

    resumed = make_training(epochs=5, seed=seed, **settings)
    resumed.restore(state)
    assert resumed.epoch == finished
    assert list(resumed.epochs()) == epochs[finished:]
    assert bits(resumed) == bits(whole)


def test_a_training_can_be_set_back():
    training = make_training(momentum=0.9)
    state = training.save()
    first = list(training.epochs())
    training.restore(state)
    assert list(training.epochs()) == first


def test_epochs_are_numbered_and_the_loss_falls():
    training = make_training()
    epochs = list(training.epochs())
    assert [epoch.number for epoch in epochs] == [1, 2, 3, 4]
    assert training.epoch == 4
    assert epochs[-1].train_loss < epochs[0].train_loss
    assert list(training.epochs()) == []


def test_train_loss_weighs_every_example_alike():
    split = make_split(n=5)
    slow = {"learning_rate": 1e-30, "regularization": 0.1}  # too slow to change a weight
    one_batch, uneven = (next(make_training(split, batch_size=size, **slow).epochs()) for size in (5, 4))
    assert uneven.train_loss == pytest.approx(one_batch.train_loss, rel=1e-6)


@settings(deadline=None, max_examples=20)
@given(n=st.integers(1, 40), batch_size=st.integers(1, 50))
def test_an_epoch_sees_every_example_once(n, batch_size):
    split = Split(with_constant(np.arange(n)), np.arange(n) % CLASSES)
    with pytest.MonkeyPatch.context() as monkeypatch:
        steps = steps_of(monkeypatch)
        next(make_training(split, batch_size=batch_size, learning_rate=1e-6).epochs())
    seen = [example for step in steps for example in step.examples]
    assert sorted(seen) == list(range(n))
    assert [label for step in steps for label in step.labels] == [example % CLASSES for example in seen]
    assert {len(step.examples) for step in steps[:-1]} <= {min(n, batch_size)}


@settings(deadline=None, max_examples=20)
@given(n=st.integers(1, 40), batch_size=st.integers(1, 50), variants=st.integers(2, 4))
def test_an_epoch_sees_every_example_once_as_one_of_its_variants(n, batch_size, variants):
    split = Split(with_constant(np.arange(variants * n)), np.arange(n) % CLASSES)
    with pytest.MonkeyPatch.context() as monkeypatch:
        steps = steps_of(monkeypatch)
        next(make_training(split, batch_size=batch_size, learning_rate=1e-6).epochs())
    seen = [int(example) for step in steps for example in step.examples]
    assert sorted(row % n for row in seen) == list(range(n))
    assert [label for step in steps for label in step.labels] == [row % n % CLASSES for row in seen]


def test_every_epoch_draws_variants_anew_and_all_alike(steps):
    n, variants, epochs = 1000, 3, 4
    split = Split(with_constant(np.arange(variants * n)), np.arange(n) % CLASSES)
    list(make_training(split, batch_size=n, epochs=epochs, learning_rate=1e-9).epochs())
    drawn = np.array([np.array(sorted(step.examples, key=lambda row: row % n)) // n for step in steps])
    assert drawn.shape == (epochs, n)
    assert np.bincount(drawn.astype(int).ravel()) / drawn.size == pytest.approx(1 / variants, abs=0.04)
    assert (drawn[0] == drawn[1]).mean() == pytest.approx(1 / variants, abs=0.06)


def test_rows_that_are_no_multiple_of_the_labels_are_refused():
    split = make_split(n=50)
    with pytest.raises(ValueError, match="50 rows of X; a multiple of the 20 labels is needed"):
        make_training(Split(split.X, split.y[:20]))


def test_accuracy_is_of_the_examples_themselves():
    split = make_split(variants=2)
    training = make_training(split)
    list(training.epochs())
    assert training.accuracy(split) == training.accuracy(Split(split.X[:50], split.y))


def test_labels_are_smoothed_as_asked(steps):
    list(make_training(label_smoothing=0.25, epochs=1).epochs())
    assert {step.label_smoothing for step in steps} == {0.25}


@pytest.mark.parametrize(
    "setting", [{"dropout": 0.5}, {"label_smoothing": 0.5}, {"whitening": 0.5}, {"input_scale": 2.0}]
)
def test_each_setting_has_weights_of_its_own(setting):
    plain, other = make_training(), make_training(**setting)
    list(plain.epochs()), list(other.epochs())
    assert bits(plain) != bits(other)


def test_sizes_can_be_listed():
    one, other = make_training(hidden_size=6, hidden_layers=2), make_training(hidden_size=None, hidden_layers=(6, 6))
    list(one.epochs()), list(other.epochs())
    assert [W.tobytes() for W, _ in one.weights()] == [W.tobytes() for W, _ in other.weights()]
    assert [W.shape for W, _ in make_training(hidden_size=None, hidden_layers=(7, 5, 3)).weights()[1:]] == [
        (7, 5),
        (5, 3),
        (3, CLASSES),
    ]


# How inputs are scaled


@settings(deadline=None, max_examples=40)
@given(whitening=st.floats(0.01, 1), features=st.integers(1, 6), seed=st.integers(0, 1000))
def test_whitening_divides_by_a_power_of_the_deviation_and_keeps_the_sum_of_the_variances(whitening, features, seed):
    X = make_split(features=features, seed=seed).X
    scale = _input_scale(X, whitening, 1.0)
    before, after = X.astype(np.float64).var(axis=0)[:-1], (X * scale).astype(np.float64).var(axis=0)[:-1]
    assert after.sum() == pytest.approx(before.sum(), rel=1e-4)
    shares = after / before ** (1 - whitening)
    assert shares == pytest.approx(shares[0], rel=1e-4)
    assert scale[-1] == 1


@pytest.mark.parametrize("whitening", [0.0, 0.5])
def test_all_inputs_are_multiplied_by_the_input_scale(whitening):
    X = make_split().X
    expected = np.ones(5) if not whitening else _input_scale(X, whitening, 1.0)
    assert _input_scale(X, whitening, 0.25)[:-1] == pytest.approx(expected[:-1] / 4)
    assert _input_scale(X, whitening, 0.25)[-1] == 1


def test_inputs_are_left_alone_where_nothing_is_asked():
    assert _input_scale(make_split().X, 0.0, 1.0) is None


def test_the_net_sees_the_inputs_scaled(steps):
    split = make_split()
    next(make_training(split, input_scale=0.5).epochs())
    seen = sorted(example for step in steps for example in step.examples)
    assert seen == sorted((split.X[:, 0] / 2).tolist())


def test_the_deviation_is_of_all_rows(monkeypatch):
    X = make_split(n=50).X
    monkeypatch.setattr(training_module, "_ROWS", 7)
    assert training_module._variances(X) == pytest.approx(X.astype(np.float64).var(axis=0), abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, 100.0])
def test_inputs_that_do_not_vary_stay_finite_and_small(value):
    split = make_split(n=997, features=3)
    split.X[:, 1] = value
    scale = _input_scale(split.X, 1.0, 1.0)
    assert np.isfinite(scale).all()
    assert scale[1] == scale[:-1].min()


def test_data_without_any_variance_are_left_as_they_are():
    assert _input_scale(np.ones((5, 4), np.float32), 1.0, 1.0).tolist() == [1, 1, 1, 1]


@of_every_backend
@settings(deadline=None, max_examples=30)
@given(
    whitening=st.sampled_from([0.0, 0.5, 1.0]),
    input_scale=st.sampled_from([1.0, 0.3]),
    hidden_layers=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_exported_weights_are_of_the_inputs_as_they_come(backend, seed, **settings):
    split, unseen = make_split(seed=seed, variants=2), make_split(seed=seed + 1)
    training = make_training(split, dropout=0.2, backend=backend, **settings)
    list(training.epochs())
    assert training.accuracy(unseen) == accuracy(training.weights(), unseen.X[:, :-1], unseen.y)


@of_every_backend
def test_the_split_is_not_written_to(backend):
    split = make_split(variants=2)
    split.X.flags.writeable = False
    training = make_training(split, whitening=0.5, dropout=0.5, backend=backend)
    list(training.epochs())
    training.accuracy(split)


# Sizes and seeds


def test_a_batch_is_at_most_the_whole_split():
    split = make_split(n=50)
    whole, more = make_training(split, batch_size=50), make_training(split, batch_size=10**12)
    assert list(more.epochs()) == list(whole.epochs())
    assert bits(more) == bits(whole)


def test_every_epoch_has_its_own_order(steps):
    split = Split(with_constant(np.arange(20)), np.arange(20) % CLASSES)
    list(make_training(split, batch_size=20, epochs=2, learning_rate=1e-6).epochs())
    assert steps[0].examples != steps[1].examples


def test_learning_rate_decays_once_an_epoch(steps):
    list(make_training(learning_rate_decay=0.5, epochs=3, batch_size=30).epochs())
    assert [step.learning_rate for step in steps] == [0.1, 0.1, 0.05, 0.05, 0.025, 0.025]


def test_a_longer_trial_begins_like_a_shorter_one():
    short, long = (list(make_training(epochs=n, learning_rate_decay=0.9).epochs()) for n in (2, 4))
    assert long[:2] == short


@of_every_backend
def test_same_seed_same_bits_and_another_trial_others(backend):
    trainings = [make_training(seed=seed, backend=backend) for seed in ((1, 2), (1, 2), (1, 3), (2, 2))]
    for training in trainings:
        list(training.epochs())
    first, again, other_trial, other_study = map(bits, trainings)
    assert first == again
    assert len({first, other_trial, other_study}) == 3


def test_a_read_only_memory_map_gives_the_same_bits(tmp_path):
    split = make_split()
    np.save(tmp_path / "X.npy", split.X)
    mapped = Split(np.load(tmp_path / "X.npy", mmap_mode="r"), split.y)
    from_memory, from_map = make_training(split), make_training(mapped)
    assert list(from_memory.epochs()) == list(from_map.epochs())
    assert bits(from_memory) == bits(from_map)
    assert from_map.accuracy(mapped) == from_memory.accuracy(split)


@pytest.mark.parametrize("whitening", [0.0, 0.5])
def test_an_epoch_holds_no_copy_of_the_data(whitening):
    split = make_split(n=20_000, features=100)
    tracemalloc.start()
    try:
        training = make_training(split, batch_size=200, whitening=whitening, learning_rate=1e-6)
        next(training.epochs())
        training.accuracy(split)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < split.X.nbytes / 10


def test_accuracy_on_data_that_can_be_told_apart():
    y = np.arange(60) % CLASSES
    split = Split(with_constant(np.eye(CLASSES)[y]), y)
    training = make_training(split, epochs=50, hidden_size=20)
    list(training.epochs())
    assert training.accuracy(split) == 1.0
    assert training.accuracy(Split(split.X, (y + 1) % CLASSES)) == 0.0


@of_every_backend
def test_divergence_is_an_error_at_its_epoch(backend):
    training = make_training(learning_rate=1e6, epochs=50, backend=backend)
    with pytest.raises(DivergenceError, match=r"epoch \d: the loss or a weight is not finite"):
        list(training.epochs())
    assert training.epoch < 9


@of_every_backend
def test_weights_that_overflow_in_the_last_step_are_divergence(backend):
    split = make_split(n=16)
    training = make_training(split, learning_rate=1e38, regularization=100.0, hidden_size=1, backend=backend)
    with pytest.raises(DivergenceError, match="loss inf"):
        next(training.epochs())
    assert 0 <= training.accuracy(split) <= 1


@of_every_backend
def test_weights_are_copies(backend):
    training = make_training(hidden_layers=2, backend=backend)
    before = bits(training)
    for W, b in training.weights():
        W[...], b[...] = 0, 1
    assert bits(training) == before
    assert [W.shape for W, _ in training.weights()] == [(4, 5), (5, 5), (5, 3)]
    assert [b.shape for _, b in training.weights()] == [(5,), (5,), (3,)]


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
        pytest.param({"backend": "torch"}, marks=TORCH.marks),
        {"split": make_split(variants=2)},
        {"seed": (0, 1)},
        {"split": make_split(n=49)},
        {"split": make_split(features=5)},
    ],
    ids=str,
)
def test_the_state_of_another_training_is_refused(other):
    training = make_training()
    next(training.epochs())
    before = training.save()
    with pytest.raises(ValueError, match="the state of another training"):
        training.restore(make_training(**other).save())
    assert list(make_restored(before).epochs()) == list(training.epochs())


def test_the_state_of_another_version_is_refused(monkeypatch):
    state = make_training().save()
    monkeypatch.setattr(training_module, "_FORMAT", 1)
    with pytest.raises(ValueError, match="the state of another training"):
        make_training().restore(state)


def make_restored(state):
    training = make_training()
    training.restore(state)
    return training


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_truncated_state_is_refused(data):
    state = make_training().save()
    with pytest.raises(ValueError, match="not the state of a training"):
        make_training().restore(state[: data.draw(st.integers(0, len(state) - 1))])


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def described(about, arrays=b""):
    text = json.dumps(about).encode()
    return len(text).to_bytes(4) + text + arrays


@pytest.mark.parametrize(
    "state",
    [b"", b"no state", npy(np.zeros(3)), described({"epoch": 1}), described([1]), described({"checksum": 1}, b"12")],
    ids=["nothing", "text", "array", "key missing", "list", "checksum wrong"],
)
def test_bytes_that_are_no_state_are_refused(state):
    with pytest.raises(ValueError, match="not the state of a training"):
        make_training().restore(state)


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_label_outside_the_classes_is_refused(label):
    split = make_split()
    split.y[7] = label
    with pytest.raises(ValueError, match="0 to 2 are allowed"):
        make_training(split)


def test_a_split_without_the_constant_column_is_refused():
    split = make_split()
    with pytest.raises(ValueError, match="the constant 1 is needed"):
        make_training(Split(split.X[:, :-1], split.y))
