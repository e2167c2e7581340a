"""Neural net in PyTorch, on a GPU if there is one, with the gradients of PyTorch's autograd.

Only this module imports PyTorch. NumPy draws all random numbers, in the same order as in `hpo.models.nets.mlp`. The
state of a net consists of NumPy arrays.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch.nn.functional import cross_entropy, huber_loss, mse_loss

from hpo.models.nets.mlp import (
    ADAM_CLEANING_STEPS,
    ADAM_DECAY,
    ADAM_EPSILON,
    ADAM_NEGLIGIBLE,
    Array,
    Dropout,
    NetSettings,
    Targets,
    count_parameters,
    initialize,
)


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Translate PyTorch's error for exhausted memory to a MemoryError."""
    try:
        yield
    except RuntimeError as error:
        if "DefaultCPUAllocator" not in str(error):
            raise
        raise MemoryError(str(error)) from None


class TorchMLP:
    """Neural net with the state of its optimizer. The arguments and methods are those of `hpo.models.nets.mlp.MLP`.

    All inputs and results are NumPy arrays. Batches are copied into memory that PyTorch allocates, because it is
    aligned and the last bits of a product can depend on the alignment.
    """

    @_memory_errors()
    def __init__(
        self,
        sizes: Sequence[int],
        settings: NetSettings,
        *,
        batch_size: int,
        rng: np.random.Generator,
        dtype: DTypeLike = np.float32,
    ) -> None:
        # The last bits depend on the number of threads.
        torch.set_num_threads(1)
        self.sizes = tuple(sizes)
        self.batch_size = batch_size
        self.regularization = settings.regularization
        self.momentum = settings.momentum
        self._dtype = np.dtype(dtype)
        self._device = _device()
        self._dropout = Dropout(settings.dropout, batch_size * (max(sizes[1:-1], default=0) + 1), rng)
        self._loss = settings.loss
        self._is_adam = settings.optimizer == "adam"
        count = count_parameters(sizes)
        drawn = np.zeros(3 * count + 1 if self._is_adam else count * (2 if self.momentum else 1), dtype)
        initialize(drawn[:count], sizes, rng)
        kind = torch.tensor(drawn[:0]).dtype
        shapes = [shape for inputs, units in pairwise(sizes) for shape in ((inputs, units), (units,))]
        self._parameters = [torch.empty(shape, dtype=kind, device=self._device) for shape in shapes]
        self._weights, self._biases = self._parameters[::2], self._parameters[1::2]
        self._velocities = [
            torch.empty_like(parameter) for parameter in self._parameters if self.momentum or self._is_adam
        ]
        self._second_moments = [torch.empty_like(parameter) for parameter in self._parameters if self._is_adam]
        self._steps = torch.empty(1 if self._is_adam else 0, dtype=kind, device=self._device)
        self._class_weights: torch.Tensor | None = None
        if settings.class_weights is not None:
            self._class_weights = torch.tensor(settings.class_weights, dtype=kind, device=self._device)
        self.load(drawn)
        for parameter in self._parameters:
            parameter.requires_grad_()
        # Batches and masks are made in main memory, even if the net is on a GPU. A mask has a column for the constant,
        # so that as many random numbers are drawn as by the net in NumPy.
        self._X = torch.empty((batch_size, sizes[0]), dtype=kind)
        self._y = torch.empty(batch_size, dtype=torch.int64 if settings.loss == "cross_entropy" else kind)
        self._masks = [torch.empty((batch_size, units + 1), dtype=torch.bool) for units in sizes[1:-1]]

    @_memory_errors()
    def step(self, X: Array, y: Targets, learning_rate: float, label_smoothing: float = 0.0) -> float:
        """Take the step of `hpo.models.nets.mlp.MLP.step`; return the loss before it, without the penalty.

        Args:
            X: Inputs (n, features + 1) with n from 1 to ``batch_size``. The last column is 1.
            y: Class indices (n,) from 0 to classes - 1, or numbers.
            learning_rate: Learning rate of the step.
            label_smoothing: Share of each label, from 0 to below 1, that is spread evenly over all classes.

        Raises:
            ValueError: if the shapes do not match the net.
            MemoryError: if the system has no memory left.
        """
        inputs, targets = self._on_device(self._X, X[:, :-1]), self._on_device(self._y, y)
        scores = self._forward(inputs, dropping=self._dropout.drops)
        loss = self._error(scores, targets, label_smoothing)
        self._descend(torch.autograd.grad(loss, self._parameters), learning_rate)
        return float(loss.detach())

    def penalty(self) -> float:
        """Return the share of the weights in the loss: regularization * sum of ||W||^2."""
        with torch.no_grad():
            return self.regularization * sum(float(W.square().sum()) for W in self._weights)

    @_memory_errors()
    def scores(self, X: Array) -> Array:
        """Return the outputs (n, outputs) for any number of examples (n, features + 1)."""
        scores = np.empty((len(X), self.sizes[-1]), self._dtype)
        with torch.no_grad():
            for start in range(0, len(X), self.batch_size):
                chunk = slice(start, start + self.batch_size)
                scores[chunk] = self._forward(self._on_device(self._X, X[chunk, :-1])).cpu().numpy()
        return scores

    def layers(self) -> list[tuple[Array, Array]]:
        """Return copies of the weights (inputs, units) and biases (units,) of each layer."""
        pairs = zip(self._weights, self._biases, strict=True)
        return [(W.detach().cpu().numpy().copy(), b.detach().cpu().numpy().copy()) for W, b in pairs]

    def is_finite(self) -> bool:
        """Return whether all weights and biases are finite."""
        return all(bool(torch.isfinite(parameter).all()) for parameter in self._parameters)

    def state(self) -> Array:
        """Return a copy of the parameters and of the optimizer's state, in the order of `MLP.state`."""
        parts = [tensor.detach().flatten() for tensor in self._state_tensors]
        state: Array = torch.cat(parts).cpu().numpy()
        return state

    def load(self, state: Array) -> None:
        """Restore a vector that `state` returned."""
        tensors = self._state_tensors
        parts = torch.tensor(state).split([tensor.numel() for tensor in tensors])
        with torch.no_grad():
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    @property
    def _state_tensors(self) -> list[torch.Tensor]:
        return [*self._parameters, *self._velocities, *self._second_moments, self._steps]

    def _error(self, scores: torch.Tensor, targets: torch.Tensor, label_smoothing: float) -> torch.Tensor:
        """Return the mean error of the examples, as in `hpo.models.nets.mlp`."""
        match self._loss:
            case "squared":
                return mse_loss(scores[:, 0], targets) / 2
            case "huber":
                return huber_loss(scores[:, 0], targets)
            case "cross_entropy" if self._class_weights is None:
                return cross_entropy(scores, targets, label_smoothing=label_smoothing)
        errors = cross_entropy(scores, targets, label_smoothing=label_smoothing, reduction="none")
        # The weights of PyTorch would divide by the sum of the weights of the batch.
        return (errors * self._class_weights[targets]).mean()

    def _on_device(self, buffer: torch.Tensor, batch: Targets) -> torch.Tensor:
        """Copy a batch to the device of the net. The result is valid until the next use of the buffer."""
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
        """Set dropped units to zero and scale the kept units."""
        self._dropout.draw(mask.numpy())
        return hidden * mask.to(self._device)[:, :-1] * self._dropout.kept_scale

    def _descend(self, gradients: Sequence[torch.Tensor], learning_rate: float) -> None:
        """Update the parameters by the formula of `hpo.models.nets.mlp.MLP.step`."""
        rate, decay = self._number(learning_rate), self._number(2 * self.regularization)
        with torch.no_grad():
            for W, gradient in zip(self._weights, gradients[::2], strict=True):
                gradient.add_(W, alpha=decay)
            if self._is_adam:
                self._step_adam(gradients, rate)
            elif self.momentum:
                for parameter, gradient, velocity in zip(self._parameters, gradients, self._velocities, strict=True):
                    velocity.mul_(self.momentum).sub_(gradient, alpha=rate)
                    parameter.add_(velocity)
            else:
                for parameter, gradient in zip(self._parameters, gradients, strict=True):
                    parameter.sub_(gradient, alpha=rate)

    def _step_adam(self, gradients: Sequence[torch.Tensor], rate: float) -> None:
        self._steps += 1
        steps = int(self._steps)
        bias, root_of_bias = 1 - self.momentum**steps, (1 - ADAM_DECAY**steps) ** 0.5
        tensors = zip(self._parameters, gradients, self._velocities, self._second_moments, strict=True)
        for parameter, gradient, first, second in tensors:
            first.mul_(self.momentum).add_(gradient, alpha=1 - self.momentum)
            second.mul_(ADAM_DECAY).addcmul_(gradient, gradient, value=1 - ADAM_DECAY)
            parameter.sub_(first / (second.sqrt() / root_of_bias + ADAM_EPSILON), alpha=rate / bias)
        if steps % ADAM_CLEANING_STEPS == 0:
            for tensor in (*self._parameters, *self._velocities):
                tensor.mul_(tensor.abs() >= ADAM_NEGLIGIBLE)
            for tensor in self._second_moments:
                tensor.mul_(tensor >= ADAM_NEGLIGIBLE**2)

    def _number(self, value: float) -> float:
        """Round a number to the type of the net, to infinity if it is too large.

        PyTorch raises an error for a number out of range. With infinity, the training diverges as in NumPy.
        """
        return float(np.array(value).astype(self._dtype))


def _device() -> torch.device:
    """Return the first visible GPU, or the CPU without one. CUDA_VISIBLE_DEVICES restricts the visible GPUs."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def warm_up() -> None:
    """Take a step with a net, so that PyTorch allocates its buffers, its threads and the context of a GPU."""
    rows, units = 256, 256
    settings = NetSettings(momentum=0.9, dropout=0.5)
    network = TorchMLP([units, units, 2], settings, batch_size=rows, rng=np.random.default_rng(0))
    network.step(np.ones((rows, units + 1), np.float32), np.zeros(rows, np.intp), 0.1, 0.1)
