"""The gradients that were derived by hand, beside those of central differences and of PyTorch's autograd.

For n examples, one hidden layer h and the loss of `hpo.models.mlp`::

    d_scores = (softmax(scores) - one_hot(y)) / n
    dW2 = h^T d_scores + 2 lambda W2        db2 = the sum of d_scores over the examples
    d_h = d_scores W2^T where h > 0, else 0
    dW1 = X^T d_h + 2 lambda W1             db1 = the sum of d_h over the examples
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hpo.models.mlp import MLP, Array, Labels
from hpo.models.optional_dependencies import has_torch

SIZES = (4, 10, 3)  # of the report's toy set
REGULARIZATION = 0.1  # so much that a wrong penalty shows
_EXAMPLES = 5
_SETTINGS: dict[str, Any] = {
    "batch_size": _EXAMPLES,
    "regularization": REGULARIZATION,
    "momentum": 0.0,
    "dtype": np.float64,
}
_WIDTH = 1e-5  # of a central difference, whose error is of the order of its square

Gradients = Mapping[str, Array]


def gradient_errors(sizes: Sequence[int] = SIZES, seed: int = 0) -> dict[str, dict[str, float]]:
    """How far the gradients of a step of training are from others, in float64.

    Returns:
        For ``differences`` and, where PyTorch is installed, ``autograd``: the norm of the difference of each of W1,
        b1, W2, ..., relative to the norm of the gradient.
    """
    X, y = _batch(sizes, seed)
    by_hand = _of_a_step(_network(MLP, sizes, seed), X, y)
    others = {"differences": _central_differences(_network(MLP, sizes, seed), X, y)}
    if has_torch():
        from hpo.models.mlp_torch import TorchMLP

        others["autograd"] = _of_a_step(_network(TorchMLP, sizes, seed), X, y)
    return {name: _errors(by_hand, other) for name, other in others.items()}


def _network(kind: Any, sizes: Sequence[int], seed: int) -> Any:
    network = kind(sizes, rng=np.random.default_rng(seed), **_SETTINGS)
    state = network.state()
    network.load(state + np.random.default_rng(seed + 1).normal(scale=0.1, size=state.shape))  # biases are not zero
    return network


def _batch(sizes: Sequence[int], seed: int) -> tuple[Array, Labels]:
    rng = np.random.default_rng(seed + 2)
    X = np.hstack([rng.normal(size=(_EXAMPLES, sizes[0])), np.ones((_EXAMPLES, 1))])
    return X, rng.integers(0, sizes[-1], _EXAMPLES)


def _of_a_step(network: Any, X: Array, y: Labels) -> Gradients:
    """A step without momentum goes down the gradient, times the learning rate."""
    before = network.layers()
    network.step(X, y, 1.0)
    return _named([(W - V, b - c) for (W, b), (V, c) in zip(before, network.layers(), strict=True)])


def _central_differences(network: MLP, X: Array, y: Labels) -> Gradients:
    differences = np.empty_like(network.parameters)
    for i, value in enumerate(network.parameters.copy()):
        losses = []
        for shifted in (value + _WIDTH, value - _WIDTH):
            network.parameters[i] = shifted
            losses.append(network.cross_entropy(X, y) + network.penalty())
        network.parameters[i] = value
        differences[i] = (losses[0] - losses[1]) / (2 * _WIDTH)
    network.parameters[...] = differences
    return _named(network.layers())


def _named(layers: Sequence[tuple[Array, Array]]) -> Gradients:
    return {f"{letter}{i}": part for i, layer in enumerate(layers, 1) for letter, part in zip("Wb", layer, strict=True)}


def _errors(gradients: Gradients, others: Gradients) -> dict[str, float]:
    return {
        name: float(np.linalg.norm(gradient - others[name]) / np.linalg.norm(gradient))
        for name, gradient in gradients.items()
    }
