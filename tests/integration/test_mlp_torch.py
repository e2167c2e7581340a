"""Net in PyTorch: the same numbers as the net in NumPy, except for rounding."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import net_weights, score

from hpo.data.division.splits import Split
from hpo.data.task import Classification
from hpo.models.nets.hyperparameters import Hyperparameters
from hpo.models.nets.mlp import MLP, NetSettings, count_parameters
from hpo.models.trainer import make_trainer

torch = pytest.importorskip("torch", reason="no PyTorch: pip install 'hpo[torch]'")

from hpo.models.nets import mlp_torch  # noqa: E402  # it imports PyTorch
from hpo.models.nets.mlp_torch import TorchMLP  # noqa: E402  # it imports PyTorch

CLASSES = 3

shapes = st.tuples(
    st.integers(1, 5),
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.integers(2, 4),
).map(lambda shape: [shape[0], *shape[1], shape[2]])
seeds = st.integers(0, 2**32 - 1)
dropouts = st.sampled_from([0.0, 0.1, 0.8])
smoothings = st.sampled_from([0.0, 0.1, 0.9])


def make(kind, sizes, seed=0, **settings):
    rng = np.random.default_rng(seed)
    made = {"batch_size": 8, "dtype": np.float64}
    made |= {name: settings.pop(name) for name in made.keys() & settings.keys()}
    return kind(sizes, NetSettings(**settings), rng=rng, **made), rng


def both(sizes, seed=0, **settings):
    """Return a net of each backend from the same seed, and their generators."""
    return zip(*(make(kind, sizes, seed, **settings) for kind in (MLP, TorchMLP)), strict=True)


def make_batch(n, sizes, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    X = np.column_stack([rng.normal(size=(n, sizes[0])), np.ones(n)]).astype(dtype)
    return X, rng.integers(0, sizes[-1], n)


def states_of(*rngs):
    return [rng.bit_generator.state for rng in rngs]


def parts(vector, sizes):
    """Return the weights and the biases of each layer."""
    shapes = [shape for inputs, units in pairwise(sizes) for shape in ((inputs, units), (units,))]
    ends = np.cumsum([np.prod(shape) for shape in shapes])
    return np.split(vector, ends[:-1])


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(1, 8), dropouts, smoothings, seeds)
def test_gradients_match_autograd(sizes, n, dropout, smoothing, seed):
    (numpy_net, torch_net), _ = both(sizes, seed, momentum=0.5, dropout=dropout)
    parameters = numpy_net.state() + np.random.default_rng(seed).normal(scale=0.1, size=len(numpy_net.state()))
    velocity = slice(count_parameters(sizes), None)
    parameters[velocity] = 0
    numpy_net.load(parameters)
    torch_net.load(parameters)
    X, y = make_batch(n, sizes, seed)
    by_hand = numpy_net.compute_gradients(X, y, label_smoothing=smoothing)
    assert torch_net.step(X, y, 1.0, smoothing) == pytest.approx(by_hand, rel=1e-12, abs=1e-12)
    # After the first step with learning rate 1, the velocity is the negative gradient.
    derived = -torch_net.state()[velocity]
    for one, other in zip(parts(numpy_net.gradients, sizes), parts(derived, sizes), strict=True):
        assert np.linalg.norm(one - other) <= 1e-12 * np.linalg.norm(one) + 1e-15


@settings(deadline=None, max_examples=60)
@given(
    shapes,
    st.integers(1, 8),
    st.fixed_dictionaries(
        {
            "regularization": st.sampled_from([0.0, 1e-3, 0.3]),
            "momentum": st.sampled_from([0.0, 0.9]),
            "dropout": dropouts,
            "optimizer": st.sampled_from(["sgd", "adam"]),
            "loss": st.sampled_from(["cross_entropy", "squared", "huber"]),
            "class_weights": st.sampled_from([None, np.array([0.5, 2.0, 1.0, 3.0])]),
        }
    ),
    smoothings,
    seeds,
)
def test_steps_match_numpy_net(sizes, n, hyperparameters, smoothing, seed):
    predicts_numbers = hyperparameters["loss"] != "cross_entropy"
    if predicts_numbers:
        sizes = [*sizes[:-1], 1]
    if (weights := hyperparameters.pop("class_weights")) is not None and not predicts_numbers:
        hyperparameters["class_weights"] = np.resize(weights, sizes[-1])
    (numpy_net, torch_net), rngs = both(sizes, seed, **hyperparameters)
    assert (torch_net.state() == numpy_net.state()).all()
    for number, size in enumerate((n, 8, n)):
        X, y = make_batch(size, sizes, seed + number)
        if predicts_numbers:
            y = np.random.default_rng(seed + number).normal(0, 3, size)
        losses = [network.step(X, y, 0.1 / (1 + number), smoothing) for network in (numpy_net, torch_net)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    # Adam divides a gradient that is a rounding error by 1e-8 at least, and a step multiplies it by 0.1.
    tolerance = 1e-7 if hyperparameters["optimizer"] == "adam" else 1e-12
    assert torch_net.state() == pytest.approx(numpy_net.state(), rel=1e-9, abs=tolerance)
    assert torch_net.penalty() == pytest.approx(numpy_net.penalty(), rel=1e-9)
    X, _ = make_batch(21, sizes, seed)
    assert torch_net.scores(X) == pytest.approx(numpy_net.scores(X), rel=1e-9, abs=tolerance)
    before, after = states_of(*rngs)
    assert before == after


def test_negligible_numbers_are_zeroed_as_in_numpy():
    networks, _ = both([2, 3, 2], momentum=0.9, optimizer="adam")
    state = networks[0].state()
    count = (len(state) - 1) // 3
    state[:3], state[count : count + 3], state[2 * count : 2 * count + 3] = (
        1e-19,
        [1e-16, 1e-19, 0.0],
        [1e-37, 1e-30, 1],
    )
    state[-1] = 63
    for network in networks:
        network.load(state)
        network.step(np.array([[0.0, 0.0, 1.0]]), np.array([1]), 0.1)
    after = [network.state() for network in networks]
    assert [(array == 0).tolist() for array in after] == [(after[0] == 0).tolist()] * 2
    assert after[0][[2, count + 1, 2 * count]].tolist() == [0, 0, 0]
    assert after[1] == pytest.approx(after[0], rel=1e-9, abs=1e-12)


@settings(deadline=None, max_examples=25)
@given(
    st.fixed_dictionaries(
        {
            "hidden_layers": st.integers(1, 3),
            "batch_size": st.sampled_from([7, 16, 200]),
            "regularization": st.sampled_from([0.0, 1e-2]),
            "momentum": st.sampled_from([0.0, 0.9]),
            "learning_rate_decay": st.sampled_from([1.0, 0.5]),
            "schedule": st.sampled_from(["constant", "cosine"]),
            "dropout": st.sampled_from([0.0, 0.3]),
            "label_smoothing": st.sampled_from([0.0, 0.1]),
            "whitening": st.sampled_from([0.0, 0.5]),
            "input_scale": st.sampled_from([1.0, 0.5]),
        }
    ),
    st.integers(1, 3),
    st.integers(0, 1000),
)
def test_training_matches_numpy_net(hyperparameters, variants, seed):
    check_training(hyperparameters, make_split(seed, variants), seed)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("batch_size", ["auto", 16])
def test_training_that_keeps_best_epoch_matches_numpy_net(schedule, batch_size):
    options = {"keep": "best", "momentum": 0.9, "schedule": schedule, "batch_size": batch_size, "regularization": 1e-3}
    check_training(options, make_split(0, 1), 0)


def check_training(hyperparameters, split, seed):
    numpy_trainer, torch_trainer = (
        make_trainer(
            Hyperparameters(learning_rate=0.03, hidden_size=6, epochs=3, backend=backend, **hyperparameters),
            [split],
            Classification(),
            np.arange(CLASSES),
            seed=(0, seed),
            validation=[make_split(seed + 1, 1)],
        )
        for backend in ("numpy", "torch")
    )
    assert isinstance(torch_trainer._learners[0].model._network, TorchMLP)
    losses = [[epoch.train_loss for epoch in training.epochs()] for training in (numpy_trainer, torch_trainer)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for one, other in zip(net_weights(numpy_trainer), net_weights(torch_trainer), strict=True):
        for expected, array in zip(one, other, strict=True):
            assert (type(array), array.dtype, array.shape) == (np.ndarray, np.float32, expected.shape)
            assert array == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert score(torch_trainer, split) == pytest.approx(score(numpy_trainer, split), abs=0.05)


def make_split(seed, variants, n=50, features=4):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, n)
    X = rng.normal(size=(variants * n, features)) + np.tile(y, variants)[:, np.newaxis]
    return Split(np.column_stack([X, np.ones(len(X))]).astype(np.float32), y)


def test_state_matches_numpy_net():
    sizes = [3, 4, 5, 2]
    (numpy_net, torch_net), _ = both(sizes, momentum=0.9)
    numpy_net.step(*make_batch(8, sizes), 0.1)
    state = numpy_net.state()
    assert len(state) == 2 * count_parameters(sizes)
    torch_net.load(state)
    assert (torch_net.state() == state).all()
    for (W, b), (W_other, b_other) in zip(numpy_net.layers(), torch_net.layers(), strict=True):
        assert (W_other == W).all()
        assert (b_other == b).all()


def test_state_without_momentum_has_no_velocity():
    network, _ = make(TorchMLP, [3, 4, 2])
    assert len(network.state()) == count_parameters([3, 4, 2])


def test_load_accepts_unaligned_read_only_state():
    network, _ = make(TorchMLP, [3, 4, 2], dtype=np.float32)
    state = np.arange(count_parameters([3, 4, 2]), dtype=np.float32)
    odd = np.frombuffer(b"." + state.tobytes(), np.float32, offset=1)
    assert not odd.flags.writeable
    network.load(odd)
    assert (network.state() == state).all()


def test_state_and_layers_are_copies():
    sizes = [3, 4, 2]
    network, _ = make(TorchMLP, sizes, momentum=0.9)
    state, layers = network.state(), network.layers()
    returned = [state, *(array for layer in layers for array in layer)]
    copies = [array.copy() for array in returned]
    network.step(*make_batch(8, sizes), 0.1)
    assert all((array == copy).all() for array, copy in zip(returned, copies, strict=True))


@pytest.mark.parametrize("n", [1, 3])
def test_short_batch_ignores_longer_batch(n):
    sizes = [3, 4, 2]
    used, fresh = (make(TorchMLP, sizes, batch_size=size)[0] for size in (8, n))
    used.scores(make_batch(8, sizes, seed=1)[0])
    X, y = make_batch(n, sizes)
    assert used.step(X, y, 0.1) == pytest.approx(fresh.step(X, y, 0.1), rel=1e-12)
    assert used.state() == pytest.approx(fresh.state(), rel=1e-9, abs=1e-15)


def test_batch_above_batch_size_is_refused():
    network, _ = make(TorchMLP, [3, 4, 2], batch_size=8)
    with pytest.raises(ValueError, match="broadcast"):
        network.step(*make_batch(9, [3, 4, 2]), 0.1)


def test_step_accepts_read_only_inputs():
    network, _ = make(TorchMLP, [3, 4, 2])
    X, y = make_batch(8, [3, 4, 2])
    X.flags.writeable = y.flags.writeable = False
    network.step(X, y, 0.1)
    network.scores(X)


def test_large_scores_have_finite_loss():
    network, _ = make(TorchMLP, [1, 1, 2], dtype=np.float32)
    network.load(np.array([0, 0, 0, 0, 1e4, -1e4], np.float32))
    assert network.step(np.ones((1, 2), np.float32), np.array([1]), 0.1) == 2e4


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("beyond", [{"learning_rate": 1e39}, {"regularization": 1e39}])
def test_number_out_of_range_diverges(momentum, beyond):
    sizes, given = [3, 4, 2], {"learning_rate": 0.1, "regularization": 0.0} | beyond
    network, _ = make(TorchMLP, sizes, momentum=momentum, regularization=given["regularization"], dtype=np.float32)
    assert network.is_finite()
    with np.errstate(over="ignore"):
        network.step(*make_batch(8, sizes, dtype=np.float32), given["learning_rate"])
    assert not network.is_finite()


def test_net_uses_one_thread():
    torch.set_num_threads(2)
    make(TorchMLP, [3, 4, 2])
    assert torch.get_num_threads() == 1


def test_exhausted_memory_raises_memory_error():
    with pytest.raises(MemoryError, match="allocate memory"):
        make(TorchMLP, [1, 1, 2], batch_size=10**15)


def test_other_torch_error_passes():
    with pytest.raises(RuntimeError, match="device-side assert"), mlp_torch._memory_errors():
        raise RuntimeError("CUDA error: device-side assert triggered")


@pytest.mark.parametrize("place", range(count_parameters([3, 4, 2])))
def test_is_finite_checks_each_parameter(place):
    network, _ = make(TorchMLP, [3, 4, 2])
    state = network.state()
    state[place] = np.nan
    network.load(state)
    assert not network.is_finite()


@pytest.mark.parametrize(
    ("method", "error"),
    [
        (lambda network, X, y: network.step(X, y, 0.1, 0.1), "item"),
        (lambda network, X, _: network.scores(X), "Cannot copy out of meta"),
        (lambda network, *_: network.state(), "Cannot copy out of meta"),
        (lambda network, *_: network.layers(), "Cannot copy out of meta"),
        (lambda network, *_: network.penalty(), "item"),
        (lambda network, *_: network.is_finite(), "item|bool"),
    ],
    ids=["step", "scores", "state", "layers", "penalty", "is_finite"],
)
def test_methods_compute_on_device(method, error, monkeypatch):
    """Compute on a device without memory in place of a GPU. Each method fails only at the copy of its result."""
    monkeypatch.setattr(mlp_torch, "_device", lambda: torch.device("meta"))
    sizes = [3, 4, 5, 2]
    network, _ = make(TorchMLP, sizes, momentum=0.9, dropout=0.5)
    with pytest.raises((RuntimeError, NotImplementedError), match=error):
        method(network, *make_batch(8, sizes))


def test_warm_up_takes_one_step(monkeypatch):
    steps = []
    step = TorchMLP.step
    monkeypatch.setattr(TorchMLP, "step", lambda *arguments: steps.append(step(*arguments)))
    mlp_torch.warm_up()
    assert len(steps) == 1
