"""The same net in PyTorch, on the GPU where there is one, with the gradients that PyTorch derives.

Imported by those alone that train with it. What is drawn at random is drawn by NumPy, as `hpo.models.mlp` does and in the
same order, and what is kept of a net are NumPy's arrays: only the arithmetic is PyTorch's.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch.nn.functional import cross_entropy

from hpo.models.mlp import Array, Dropout, Labels, count_parameters, initialize


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Within: memory that the system refuses is a MemoryError, as it is with NumPy."""
    try:
        yield
    except RuntimeError as error:
        if "DefaultCPUAllocator" not in str(error):
            raise
        raise MemoryError(str(error)) from None


class TorchMLP:
    """A net with its optimizer's state, as `hpo.models.mlp.MLP`: the same arguments, the same methods.

    Everything that goes in or comes out is a NumPy array. Batches are copied into memory that PyTorch has made: it is
    aligned, and the last bits of a product can depend on that.
    """

    @_memory_errors()
    def __init__(
        self,
        sizes: Sequence[int],
        *,
        batch_size: int,
        regularization: float,
        momentum: float,
        rng: np.random.Generator,
        dropout: float = 0.0,
        dtype: DTypeLike = np.float32,
    ) -> None:
        torch.set_num_threads(1)  # the last bits depend on it, too
        self.sizes = tuple(sizes)
        self.batch_size = batch_size
        self.regularization = regularization
        self.momentum = momentum
        self._dtype = np.dtype(dtype)
        self._device = _device()
        self._dropout = Dropout(dropout, batch_size * (max(sizes[1:-1], default=0) + 1), rng)
        drawn = np.zeros(count_parameters(sizes) * (2 if momentum else 1), dtype)
        initialize(drawn[: count_parameters(sizes)], sizes, rng)
        kind = torch.tensor(drawn[:0]).dtype
        shapes = [shape for inputs, units in pairwise(sizes) for shape in ((inputs, units), (units,))]
        self._parameters = [torch.empty(shape, dtype=kind, device=self._device) for shape in shapes]
        self._weights, self._biases = self._parameters[::2], self._parameters[1::2]
        self._velocities = [torch.empty_like(parameter) for parameter in self._parameters if momentum]
        self.load(drawn)
        for parameter in self._parameters:
            parameter.requires_grad_()
        # Where batches are put together, which is not where the net is if that is a GPU; the masks with a constant
        # unit, as NumPy's net has it.
        self._X = torch.empty((batch_size, sizes[0]), dtype=kind)
        self._y = torch.empty(batch_size, dtype=torch.int64)
        self._masks = [torch.empty((batch_size, units + 1), dtype=torch.bool) for units in sizes[1:-1]]

    @_memory_errors()
    def step(self, X: Array, y: Labels, learning_rate: float, label_smoothing: float = 0.0) -> float:
        """Descend once, and return the cross-entropy from before the step.

        Args:
            X: shape (n, features + 1), its last column 1, with n from 1 to ``batch_size``.
            y: class indices from 0 to classes - 1, shape (n,).
            learning_rate: of the step.
            label_smoothing: from 0 to below 1, the share of each example that all classes have in equal parts.

        Raises:
            ValueError: the shapes do not fit.
        """
        inputs, labels = self._on_device(self._X, X[:, :-1]), self._on_device(self._y, y)
        scores = self._forward(inputs, dropping=self._dropout.drops)
        loss = cross_entropy(scores, labels, label_smoothing=label_smoothing)
        self._descend(torch.autograd.grad(loss, self._parameters), learning_rate)
        return float(loss.detach())

    def penalty(self) -> float:
        """What the weights add to the loss."""
        with torch.no_grad():
            return self.regularization * sum(float(W.square().sum()) for W in self._weights)

    @_memory_errors()
    def scores(self, X: Array) -> Array:
        """What the softmax is taken of, shape (n, classes), for any number of examples (n, features + 1)."""
        scores = np.empty((len(X), self.sizes[-1]), self._dtype)
        with torch.no_grad():
            for start in range(0, len(X), self.batch_size):
                chunk = slice(start, start + self.batch_size)
                scores[chunk] = self._forward(self._on_device(self._X, X[chunk, :-1])).cpu().numpy()
        return scores

    def layers(self) -> list[tuple[Array, Array]]:
        """Copies of the weights (inputs, units) and the biases (units,) of each layer."""
        pairs = zip(self._weights, self._biases, strict=True)
        return [(W.detach().cpu().numpy().copy(), b.detach().cpu().numpy().copy()) for W, b in pairs]

    def is_finite(self) -> bool:
        """Whether every weight and bias is a finite number."""
        return all(bool(torch.isfinite(parameter).all()) for parameter in self._parameters)

    def state(self) -> Array:
        """All that steps change, for `load`: the vector that `hpo.models.mlp.MLP.state` gives."""
        parts = [tensor.detach().flatten() for tensor in (*self._parameters, *self._velocities)]
        state: Array = torch.cat(parts).cpu().numpy()
        return state

    def load(self, state: Array) -> None:
        """Take up what `state` gave."""
        tensors = [*self._parameters, *self._velocities]
        parts = torch.tensor(state).split([tensor.numel() for tensor in tensors])
        with torch.no_grad():
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def _on_device(self, buffer: torch.Tensor, batch: Array | Labels) -> torch.Tensor:
        """A batch where the net is; it is valid until the next of this buffer."""
        rows = buffer[: len(batch)]
        np.copyto(rows.numpy(), batch)
        return rows.to(self._device)

    def _forward(self, inputs: torch.Tensor, dropping: bool = False) -> torch.Tensor:
        for W, b, mask in zip(self._weights, self._biases, self._masks, strict=False):
            inputs = torch.relu(torch.addmm(b, inputs, W))
            if dropping:
                inputs = self._drop(inputs, mask[: len(inputs)])
        return torch.addmm(self._biases[-1], inputs, self._weights[-1])

    def _drop(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Zero for some units, and more of the others."""
        self._dropout.draw(mask.numpy())
        return hidden * mask.to(self._device)[:, :-1] * self._dropout.kept_scale

    def _descend(self, gradients: Sequence[torch.Tensor], learning_rate: float) -> None:
        """One step of `hpo.models.mlp.MLP.step`, from the gradients of the cross-entropy."""
        rate, decay = self._number(learning_rate), self._number(2 * self.regularization)
        with torch.no_grad():
            for W, gradient in zip(self._weights, gradients[::2], strict=True):
                gradient.add_(W, alpha=decay)
            if self.momentum:
                for parameter, gradient, velocity in zip(self._parameters, gradients, self._velocities, strict=True):
                    velocity.mul_(self.momentum).sub_(gradient, alpha=rate)
                    parameter.add_(velocity)
            else:
                for parameter, gradient in zip(self._parameters, gradients, strict=True):
                    parameter.sub_(gradient, alpha=rate)

    def _number(self, value: float) -> float:
        """Infinity for what is too large for the net's numbers: PyTorch refuses it, and the loss is to tell."""
        return float(np.array(value).astype(self._dtype))


def _device() -> torch.device:
    """The first GPU that this process may see; CUDA_VISIBLE_DEVICES hides it."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def warm_up() -> None:
    """Let PyTorch make what it makes when it is first used: buffers, threads, and what a GPU needs."""
    rows, units = 256, 256
    network = TorchMLP(
        [units, units, 2], batch_size=rows, regularization=0.0, momentum=0.9, rng=np.random.default_rng(0), dropout=0.5
    )
    network.step(np.ones((rows, units + 1), np.float32), np.zeros(rows, np.intp), 0.1, 0.1)
