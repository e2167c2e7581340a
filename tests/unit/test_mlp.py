"""Formulas of the net: loss, gradients, steps and dropout."""

import math
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from hpo.models.nets.mlp import MLP, NetSettings


def make_network(sizes, *, batch_size=8, seed=0, rng=None, dtype=np.float64, **settings):
    rng = np.random.default_rng(seed) if rng is None else rng
    network = MLP(sizes, NetSettings(**settings), batch_size=batch_size, rng=rng, dtype=dtype)
    # The noise makes the biases differ from zero.
    network.parameters[...] += rng.normal(scale=0.1, size=network.parameters.shape)
    return network


def with_constant(X):
    return np.column_stack([X, np.ones(len(X), X.dtype)])


def make_batch(n, sizes, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return with_constant(rng.normal(size=(n, sizes[0])).astype(dtype)), rng.integers(0, sizes[-1], n)


def plain_forward(network, X):
    """Return the scores, and the values before each rectifier."""
    before, X = [], X[:, :-1]
    for W, b in zip(network.weights[:-1], network.biases[:-1], strict=True):
        before.append(X @ W + b)
        X = before[-1] * (before[-1] > 0)
    return X @ network.weights[-1] + network.biases[-1], before


def softmax(scores):
    return np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)


def loss(network, X, y):
    return network.compute_gradients(X, y) + network.penalty()


def central_differences(function, network, X, y, width=1e-5):
    differences = np.empty_like(network.parameters)
    for i, value in enumerate(network.parameters.copy()):
        losses = []
        for shifted in (value + width, value - width):
            network.parameters[i] = shifted
            losses.append(function(network, X, y))
        network.parameters[i] = value
        differences[i] = (losses[0] - losses[1]) / (2 * width)
    return differences


def assert_gradients_equal(gradients, differences):
    error = np.linalg.norm(gradients - differences)
    # The losses are rounded to about 1e-16, and their difference is divided by the width 1e-5.
    assert error <= 1e-6 * np.linalg.norm(differences) + 1e-10


shapes = st.tuples(
    st.integers(1, 4),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(2, 4),
).map(lambda shape: [shape[0], *shape[1], shape[2]])
seeds = st.integers(0, 2**32 - 1)


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(1, 6), seeds)
def test_gradients_match_central_differences(sizes, n, seed):
    network = make_network(sizes, seed=seed)
    X, y = make_batch(n, sizes, seed)
    assume(far_from_kinks(network, X))
    differences = central_differences(MLP.compute_gradients, network, X, y)
    network.compute_gradients(X, y)
    assert_gradients_equal(network.gradients, differences)


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(1, 6), st.sampled_from([0.0, 1e-3, 0.3]), st.sampled_from([0.0, 0.9]), seeds)
def test_first_step_follows_gradient_with_penalty(sizes, n, regularization, momentum, seed):
    network = make_network(sizes, regularization=regularization, momentum=momentum, seed=seed)
    X, y = make_batch(n, sizes, seed)
    assume(far_from_kinks(network, X))
    differences = central_differences(loss, network, X, y)
    before, cross_entropy = network.parameters.copy(), network.compute_gradients(X, y)
    assert network.step(X, y, learning_rate=1.0) == cross_entropy
    assert_gradients_equal(before - network.parameters, differences)


@settings(deadline=None, max_examples=40)
@given(shapes, st.integers(1, 6), st.sampled_from(["squared", "huber"]), seeds)
def test_gradients_of_numbers_match_central_differences(sizes, n, loss, seed):
    sizes = [*sizes[:-1], 1]
    network = make_network(sizes, seed=seed, loss=loss)
    X, _ = make_batch(n, sizes, seed)
    y = np.random.default_rng(seed).normal(0, 3, n)
    residuals = plain_forward(network, X)[0][:, 0] - y
    # Huber's gradient has a kink at 1.
    assume(far_from_kinks(network, X) and (abs(abs(residuals) - 1) > 1e-3).all())
    differences = central_differences(MLP.compute_gradients, network, X, y)
    value = network.compute_gradients(X, y)
    assert_gradients_equal(network.gradients, differences)
    large = abs(residuals) > 1 if loss == "huber" else np.zeros(n, bool)
    assert value == pytest.approx(np.where(large, abs(residuals) - 0.5, residuals**2 / 2).mean(), rel=1e-12)


@settings(deadline=None, max_examples=40)
@given(shapes, st.integers(1, 6), st.sampled_from([0.0, 0.1]), seeds)
def test_class_weights_are_factors_of_errors(sizes, n, smoothing, seed):
    weights = np.random.default_rng(seed).uniform(0.1, 3, sizes[-1])
    network, plain = (make_network(sizes, seed=seed, class_weights=w) for w in (weights, None))
    X, y = make_batch(n, sizes, seed)
    rows = [plain.compute_gradients(X[i : i + 1], y[i : i + 1], label_smoothing=smoothing) for i in range(n)]
    value = network.compute_gradients(X, y, label_smoothing=smoothing)
    assert value == pytest.approx(np.mean(weights[y] * rows), rel=1e-9)
    gradients = np.zeros_like(network.gradients)
    for i in range(n):
        plain.compute_gradients(X[i : i + 1], y[i : i + 1], weights[y[i]] / n, smoothing)
        gradients += plain.gradients
    assert network.gradients == pytest.approx(gradients, rel=1e-9, abs=1e-12)


def test_adam_follows_its_formula():
    sizes, rate, penalty, decay = [4, 3, 2], 0.1, 0.01, 0.9
    network = make_network(sizes, momentum=decay, regularization=penalty, optimizer="adam")
    expected, first, second = network.parameters.copy(), 0.0, 0.0
    is_weight = np.zeros(len(expected), bool)
    is_weight[:12] = is_weight[15:21] = True
    for step in range(1, 6):
        X, y = make_batch(8, sizes, step)
        network.compute_gradients(X, y)
        gradient = network.gradients + 2 * penalty * expected * is_weight
        first = decay * first + (1 - decay) * gradient
        second = 0.999 * second + 0.001 * gradient**2
        expected -= rate * (first / (1 - decay**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        network.step(X, y, rate)
        assert network.parameters == pytest.approx(expected, rel=1e-9)


def test_state_of_adam_continues_its_steps():
    sizes = [4, 3, 2]
    whole, resumed = (make_network(sizes, momentum=0.9, optimizer="adam", seed=seed) for seed in (0, 1))
    for step in range(3):
        whole.step(*make_batch(8, sizes, step), 0.1)
    resumed.load(whole.state())
    for network in (whole, resumed):
        network.step(*make_batch(8, sizes, 3), 0.1)
    assert resumed.state().tobytes() == whole.state().tobytes()


def test_adam_zeroes_negligible_numbers():
    sizes = [2, 3, 2]
    network = make_network(sizes, momentum=0.9, optimizer="adam")
    small = np.array([1e-17, -1e-17, 1e-19, -1e-19, 1e-300, 0.5])
    # Inputs of zero leave the first six weights without a gradient, and a small moment moves a weight by up to 1e-9.
    X, y = with_constant(np.zeros((4, 2))), np.array([0, 1, 1, 0])
    network.load(np.concatenate([small, network.parameters[6:], np.zeros(2 * network.parameters.size), [62]]))
    network.step(X, y, 0.1)
    assert network.parameters[:6].tolist() == small.tolist()
    network.step(X, y, 0.1)
    assert network.parameters[:6].tolist() == [1e-17, -1e-17, 0, 0, 0, 0.5]
    network.velocity[:3], network.second_moment[:3] = [1e-16, -1e-16, 1e-19], [1e-35, 1e-37, 1e-30]
    network.load(np.concatenate([network.parameters, network.velocity, network.second_moment, [63]]))
    network.step(X, y, 0.1)
    assert network.velocity[:3].tolist() == pytest.approx([0.9e-16, -0.9e-16, 0])
    assert network.second_moment[:3].tolist() == pytest.approx([0.999e-35, 0, 0.999e-30])


dropouts = st.sampled_from([0.1, 0.5, 0.8])
smoothings = st.sampled_from([0.0, 0.1, 0.9])


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(1, 6), dropouts, smoothings, seeds)
def test_gradients_match_with_dropout_and_smoothing(sizes, n, dropout, smoothing, seed):
    rng = np.random.default_rng(seed)
    network = make_network(sizes, rng=rng, dropout=dropout)
    state = rng.bit_generator.state

    def cross_entropy_with_same_units(network, X, y):
        rng.bit_generator.state = state
        return network.compute_gradients(X, y, label_smoothing=smoothing)

    X, y = make_batch(n, sizes, seed)
    wide, differences = (
        central_differences(cross_entropy_with_same_units, network, X, y, width) for width in (1e-4, 1e-5)
    )
    # Two widths give the same difference unless a kink is near.
    assume(np.linalg.norm(wide - differences) <= 1e-5 * np.linalg.norm(differences))
    cross_entropy_with_same_units(network, X, y)
    assert_gradients_equal(network.gradients, differences)


def far_from_kinks(network, X):
    """Return whether no rectifier is near its kink, where a difference quotient is not the gradient."""
    return all(np.abs(before).min() > 1e-3 for before in plain_forward(network, X)[1])


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(1, 8), st.sampled_from([0.0, 0.3]), seeds)
def test_loss_matches_scikit_learn_plus_penalty(sizes, n, regularization, seed):
    network = make_network(sizes, regularization=regularization, seed=seed)
    X, y = make_batch(n, sizes, seed)
    probabilities = softmax(plain_forward(network, X)[0])
    # scikit-learn clips probabilities at 2e-16.
    assume(probabilities.min() > 1e-12)
    penalty = regularization * sum((W**2).sum() for W in network.weights)
    expected = log_loss(y, probabilities, labels=range(sizes[-1])) + penalty
    assert loss(network, X, y) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(1, 8), st.floats(0, 0.99), seeds)
def test_label_smoothing_matches_mixed_targets(sizes, n, smoothing, seed):
    network = make_network(sizes, seed=seed)
    X, y = make_batch(n, sizes, seed)
    targets = (1 - smoothing) * np.eye(sizes[-1])[y] + smoothing / sizes[-1]
    probabilities = softmax(plain_forward(network, X)[0])
    expected = -(targets * np.log(probabilities)).sum(axis=1).mean()
    assert network.compute_gradients(X, y, label_smoothing=smoothing) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("dropout", "share"), [(0.1, 26 / 256), (0.5, 0.5), (0.999, 255 / 256)])
def test_dropout_drops_share_and_scales_kept_units(dropout, share):
    network = make_network([1, 100, 100, 2], batch_size=1000, dropout=dropout)
    for layer in (0, 1):
        network.weights[layer][...] = 0
        network.biases[layer][...] = 1
    network._forward(np.ones((1000, 2)), dropping=True)
    for hidden in network._batch.hidden:
        kept = hidden[:, :-1] != 0
        assert kept.mean() == pytest.approx(1 - share, abs=0.005)
        assert np.unique(hidden[:, :-1][kept]) == pytest.approx(1 / (1 - share))
        # Each example drops other units.
        assert kept.any(axis=0).all() or share > 0.9
        assert kept.any(axis=1).all() or share > 0.9


@pytest.mark.parametrize("dropout", [0.01, 0.9])
def test_dropout_leaves_constants(dropout):
    network = make_network([2, 3, 1, 2], batch_size=200, dropout=dropout)
    network.parameters[...] = 0
    network.biases[1][...], network.biases[2][...] = 3, 7
    network.weights[2][...] = 1
    X, y = make_batch(200, network.sizes)
    network.step(X, y, learning_rate=0)
    assert (network.scores(X) == 10).all()
    scores = network._forward(X, dropping=True)
    kept = 3 / (1 - round(dropout * 256) / 256)
    assert np.unique(scores) == pytest.approx([7, 7 + kept])


@given(shapes, st.integers(1, 8), dropouts, seeds)
@settings(deadline=None)
def test_scores_ignore_dropout(sizes, n, dropout, seed):
    network = make_network(sizes, seed=seed, dropout=dropout)
    X, y = make_batch(n, sizes, seed)
    network.step(X, y, 0.1)
    assert network.scores(X) == pytest.approx(plain_forward(network, X)[0], rel=1e-9, abs=1e-12)


def test_each_step_drops_other_units():
    network = make_network([2, 50, 2], dropout=0.5)
    batch = make_batch(8, network.sizes)
    assert network.compute_gradients(*batch) != network.compute_gradients(*batch)


def test_step_without_dropout_draws_nothing():
    rng = np.random.default_rng(0)
    network = make_network([2, 50, 2], rng=rng)
    before = rng.bit_generator.state
    network.step(*make_batch(8, network.sizes), 0.1, 0.1)
    assert rng.bit_generator.state == before


def make_network_with_round_numbers():
    network = make_network([2, 1, 2], regularization=0.1, momentum=0.9)
    network.weights[0][...] = [[1], [1]]
    network.biases[0][...] = [0]
    network.weights[1][...] = [[1, -1]]
    network.biases[1][...] = [-3, 3]
    return network


def test_two_steps_match_hand_calculation():
    network = make_network_with_round_numbers()

    # h = 2 + 1 = 3; scores = (3 - 3, -3 + 3) = (0, 0); softmax = (0.5, 0.5)
    # cross-entropy = ln 2, penalty = 0.1 (1 + 1 + 1 + 1)
    assert network.penalty() == pytest.approx(0.4)
    assert network.step(np.array([[2.0, 1.0, 1.0]]), np.array([0]), 0.1) == pytest.approx(math.log(2))
    # scores' gradient (-0.5, 0.5); h's -0.5 * 1 + 0.5 * -1 = -1
    # W2: 3 (-0.5, 0.5) + 0.2 (1, -1) = (-1.3, 1.3);   W1: -1 (2, 1) + 0.2 (1, 1) = (-1.8, -0.8)
    assert network.weights[1] == pytest.approx(np.array([[1 + 0.13, -1 - 0.13]]))
    assert network.biases[1] == pytest.approx(np.array([-3 + 0.05, 3 - 0.05]))
    assert network.weights[0] == pytest.approx(np.array([[1 + 0.18], [1 + 0.08]]))
    assert network.biases[0] == pytest.approx(np.array([0 + 0.1]))

    # The hidden unit is 0 and the scores are (-2.95, 2.95). Only b2 has a gradient besides that of the penalty.
    network.step(np.array([[-10.0, -10.0, 1.0]]), np.array([0]), 0.1)
    miss = 1 - 1 / (1 + math.exp(5.9))
    # W2: v = 0.9 * 0.13 - 0.1 * 0.2 * 1.13 = 0.0944
    assert network.weights[1] == pytest.approx(np.array([[1.13 + 0.0944, -1.13 - 0.0944]]))
    # b2: v = 0.9 * 0.05 + 0.1 miss
    assert network.biases[1] == pytest.approx(np.array([-2.905 + 0.1 * miss, 2.905 - 0.1 * miss]))
    # W1: v = 0.9 * 0.18 - 0.1 * 0.2 * 1.18 = 0.1384 and 0.9 * 0.08 - 0.1 * 0.2 * 1.08 = 0.0504
    assert network.weights[0] == pytest.approx(np.array([[1.18 + 0.1384], [1.08 + 0.0504]]))
    # b1: v = 0.9 * 0.1
    assert network.biases[0] == pytest.approx(np.array([0.1 + 0.09]))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_penalty_leaves_out_biases(momentum):
    sizes = [3, 4, 2]
    X, y = make_batch(6, sizes)
    free, penalised = (make_network(sizes, regularization=value, momentum=momentum) for value in (0.0, 5.0))
    before = [W.copy() for W in free.weights]
    free.step(X, y, 0.01)
    penalised.step(X, y, 0.01)
    assert np.array_equal(np.concatenate(free.biases), np.concatenate(penalised.biases))
    for W, with_penalty, without in zip(before, penalised.weights, free.weights, strict=True):
        assert without - with_penalty == pytest.approx(0.01 * 10 * W)


@pytest.mark.parametrize("n", [1, 3, 8])
def test_short_batch_ignores_longer_batch(n):
    sizes = [3, 4, 2]
    used, fresh = make_network(sizes), make_network(sizes, batch_size=n)
    used.compute_gradients(*make_batch(8, sizes, seed=1))
    X, y = make_batch(n, sizes)
    assert used.compute_gradients(X, y) == pytest.approx(fresh.compute_gradients(X, y), rel=1e-12)
    assert used.gradients == pytest.approx(fresh.gradients, rel=1e-9, abs=1e-15)


def test_batch_above_batch_size_is_refused():
    network = make_network([3, 4, 2], batch_size=8)
    with pytest.raises(ValueError, match="reshape"):
        network.step(*make_batch(9, [3, 4, 2]), 0.1)


@given(shapes, st.integers(1, 20), seeds)
def test_scores_accept_any_number_of_examples(sizes, n, seed):
    network = make_network(sizes, batch_size=8, seed=seed)
    X, _ = make_batch(n, sizes, seed)
    assert network.scores(X) == pytest.approx(plain_forward(network, X)[0], rel=1e-9, abs=1e-12)


def test_large_scores_have_finite_loss():
    network = make_network([1, 1, 2], dtype=np.float32)
    network.parameters[...] = 0
    network.biases[-1][...] = [1e4, -1e4]
    assert network.compute_gradients(np.ones((1, 2), np.float32), np.array([1])) == 2e4


def test_initial_weights_have_documented_variance():
    network = MLP([300, 200, 100], NetSettings(), batch_size=1, rng=np.random.default_rng(0))
    assert [W.shape for W in network.weights] == list(pairwise([300, 200, 100]))
    assert network.weights[0].std() == pytest.approx(math.sqrt(2 / 300), rel=0.02)
    assert network.weights[1].std() == pytest.approx(math.sqrt(1 / 200), rel=0.02)
    assert not np.concatenate(network.biases).any()
    assert network.parameters.dtype == np.float32


@pytest.mark.parametrize(("momentum", "dropout", "smoothing"), [(0.0, 0.0, 0.0), (0.9, 0.0, 0.1), (0.9, 0.3, 0.0)])
def test_step_allocates_no_large_array(momentum, dropout, smoothing):
    sizes, n = [300, 300, 300, 100], 1000
    network = make_network(sizes, batch_size=n, momentum=momentum, dropout=dropout, dtype=np.float32)
    X, y = make_batch(n, sizes, dtype=np.float32)
    network.step(X, y, 0.01, smoothing)
    tracemalloc.start()
    try:
        for _ in range(3):
            network.step(X, y, 0.01, smoothing)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # NumPy converts a mask in blocks of 32 KiB.
    assert peak < 64 * 1024 < network.weights[-1].nbytes
