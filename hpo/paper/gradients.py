"""Check of the net's gradients against central differences and PyTorch's autograd.

For n examples, one hidden layer h and the loss of `hpo.models.nets.mlp`, the formulas are::

    d_scores = (softmax(scores) - one_hot(y)) / n
    dW2 = h^T d_scores + 2 lambda W2        db2 = sum of d_scores over the examples
    d_h = d_scores W2^T where h > 0, else 0
    dW1 = X^T d_h + 2 lambda W1             db1 = sum of d_h over the examples
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hpo.models.base import is_installed
from hpo.models.nets.mlp import MLP, Array, Labels, NetSettings

# Layer sizes of the net for the report's toy set.
SIZES = (4, 10, 3)
# The penalty is large enough to show an error in its gradient.
REGULARIZATION = 0.1

_EXAMPLES = 5
_SETTINGS = NetSettings(REGULARIZATION)
# Half the width of a central difference. The error is of the order of its square.
_HALF_WIDTH = 1e-5

Gradients = Mapping[str, Array]


def gradient_errors(sizes: Sequence[int] = SIZES, seed: int = 0) -> dict[str, dict[str, float]]:
    """Compare the gradients of a training step, in float64, with other implementations.

    Returns:
        Errors by implementation ("differences", and "autograd" if PyTorch is installed) and by parameter (W1, b1, W2,
        ...). An error is the norm of the difference, relative to the norm of the gradient.
    """
    X, y = _batch(sizes, seed)
    gradients = _step_gradients(_network(MLP, sizes, seed), X, y)
    others = {"differences": _central_differences(_network(MLP, sizes, seed), X, y)}
    if is_installed("torch"):
        from hpo.models.nets.mlp_torch import TorchMLP

        others["autograd"] = _step_gradients(_network(TorchMLP, sizes, seed), X, y)
    return {name: _errors(gradients, other) for name, other in others.items()}


def _network(kind: Any, sizes: Sequence[int], seed: int) -> Any:
    network = kind(sizes, _SETTINGS, batch_size=_EXAMPLES, rng=np.random.default_rng(seed), dtype=np.float64)
    state = network.state()
    # The noise makes the biases differ from zero.
    network.load(state + np.random.default_rng(seed + 1).normal(scale=0.1, size=state.shape))
    return network


def _batch(sizes: Sequence[int], seed: int) -> tuple[Array, Labels]:
    rng = np.random.default_rng(seed + 2)
    X = np.hstack([rng.normal(size=(_EXAMPLES, sizes[0])), np.ones((_EXAMPLES, 1))])
    return X, rng.integers(0, sizes[-1], _EXAMPLES)


def _step_gradients(network: Any, X: Array, y: Labels) -> Gradients:
    """Return the change of the parameters by a step with learning rate 1 and no momentum."""
    before = network.layers()
    network.step(X, y, 1.0)
    return _named([(W - V, b - c) for (W, b), (V, c) in zip(before, network.layers(), strict=True)])


def _central_differences(network: MLP, X: Array, y: Labels) -> Gradients:
    differences = np.empty_like(network.parameters)
    for i, value in enumerate(network.parameters.copy()):
        losses = []
        for shifted in (value + _HALF_WIDTH, value - _HALF_WIDTH):
            network.parameters[i] = shifted
            losses.append(network.compute_gradients(X, y) + network.penalty())
        network.parameters[i] = value
        differences[i] = (losses[0] - losses[1]) / (2 * _HALF_WIDTH)
    network.parameters[...] = differences
    return _named(network.layers())


def _named(layers: Sequence[tuple[Array, Array]]) -> Gradients:
    return {f"{letter}{i}": part for i, layer in enumerate(layers, 1) for letter, part in zip("Wb", layer, strict=True)}


def _errors(gradients: Gradients, others: Gradients) -> dict[str, float]:
    return {
        name: float(np.linalg.norm(gradient - others[name]) / np.linalg.norm(gradient))
        for name, gradient in gradients.items()
    }
