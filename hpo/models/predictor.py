"""Trained net with its preprocessing, which predicts labels or numbers from raw features, in a file without pickle."""

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpo.data.metrics import METRICS, TaskName, probabilities
from hpo.data.preprocessing import Preprocessor
from hpo.data.task import TASKS
from hpo.errors import DataError
from hpo.models.base import Weights
from hpo.models.inputs import check_features, check_labels, check_outputs, check_targets
from hpo.utils.files import atomic_write
from hpo.utils.npz import open_regular, read_arrays

_BLOCK_ROWS = 1024
# Names of the preprocessor's arrays in a file. A file of an earlier version has the same names.
_PREPROCESSOR_PREFIX = "map."


@dataclass(frozen=True, eq=False)
class Predictor:
    """Preprocessing and weights of a trained net.

    Attributes:
        classes: Labels (c,), in the order of the net's outputs; empty for the prediction of a number.
        preprocessor: Scaling and PCA of raw features (n, d) to the net's inputs (n, k).
        weights: Weights (inputs, units) and biases (units,) of each layer.
        feature_names: Names of the features (d,), in the order of the training; None if the data had none.
    """

    classes: NDArray[Any]
    preprocessor: Preprocessor
    weights: Weights
    feature_names: tuple[str, ...] | None = None

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the predicted labels (n,) of raw features (n, d).

        The columns of a data frame must have the names and the order of the training. Columns in another order are
        refused.

        Raises:
            ValueError: if X has other columns, or anything but finite numbers. The message names row and column.
        """
        return TASKS[self.task].decode(self._outputs(X), self.classes)

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the probability (n, c) of each class for raw features (n, d).

        Raises:
            ValueError: if X is not valid for `predict`, or the predictor has no classes.
        """
        if self.task == "regression":
            raise ValueError("a number is predicted; there are no probabilities of classes")
        return probabilities(self._outputs(X))

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Return the accuracy, or R2 for numbers, on raw features (n, d) and labels (n,) or (n, 1).

        Raises:
            ValueError: if X is not valid for `predict`, or y has another length or labels that are no classes.
        """
        predicted = self.predict(X)
        if self.task == "regression":
            return METRICS["r2"].score(predicted[:, np.newaxis], check_targets(y, len(predicted)))
        return float(np.mean(predicted == check_labels(y, len(predicted), self.classes)))

    @property
    def task(self) -> TaskName:
        """The task: a predictor of numbers has no classes."""
        return "classification" if len(self.classes) else "regression"

    def _outputs(self, X: ArrayLike) -> NDArray[Any]:
        features = check_features(X, len(self.preprocessor.mean), self.feature_names)
        with np.errstate(over="ignore", invalid="ignore"):
            return check_outputs(forward(self.weights, self.preprocessor.transform(features)))

    def save(self, path: Path) -> None:
        """Write a ``.npz`` file atomically.

        Raises:
            OutputError: if the file cannot be written.
        """
        arrays: dict[str, Any] = {"classes": self.classes}
        arrays |= {f"{_PREPROCESSOR_PREFIX}{name}": array for name, array in self.preprocessor.arrays().items()}
        if self.feature_names is not None:
            arrays["feature_names"] = np.array(self.feature_names, np.str_)
        with atomic_write(path) as file:
            np.savez(file, **arrays, **_name_arrays(self.weights))


def load_predictor(path: str | os.PathLike[str]) -> Predictor:
    """Load a predictor that ``hpo.export --model`` wrote. Pickles in the file are refused.

    Raises:
        DataError: if the file is missing, damaged, or is not such a file.
    """
    try:
        with open_regular(Path(path)) as file:
            # The export does not compress, so that larger arrays are a forgery.
            return _from_arrays(read_arrays(file, max_bytes=os.fstat(file.fileno()).st_size))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; write it with: python -m hpo.export --model {path}") from None
    except OSError as error:
        raise DataError(f"{path}: not a model that hpo.export wrote: {error.strerror or error}") from None
    except KeyError as error:
        raise DataError(f"{path}: not a model that hpo.export wrote: no array {error}") from None
    except ValueError as error:
        raise DataError(f"{path}: not a model that hpo.export wrote: {error}") from None


def _from_arrays(arrays: dict[str, NDArray[Any]]) -> Predictor:
    preprocessor = {
        name.removeprefix(_PREPROCESSOR_PREFIX): array
        for name, array in arrays.items()
        if name.startswith(_PREPROCESSOR_PREFIX)
    }
    names = arrays.get("feature_names")
    predictor = Predictor(
        arrays["classes"],
        Preprocessor.from_arrays(preprocessor),
        _weights_from_arrays(arrays),
        None if names is None else tuple(map(str, names.ravel())),
    )
    _check_consistent(predictor)
    return predictor


def _check_consistent(predictor: Predictor) -> None:
    """Check kinds, shapes and values of the arrays of a file.

    Raises:
        ValueError: if they are not those of a predictor.
    """
    for name, array, shape in _expected_shapes(predictor):
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}; {shape} is required")
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise ValueError(f"{name} holds something else than finite numbers")
    if not (predictor.preprocessor.scale > 0).all():
        raise ValueError("the scale of a feature is not positive")
    if predictor.classes.dtype.kind not in "biufU":
        raise ValueError(f"the classes are {predictor.classes.dtype}; text or numbers are required")


def _expected_shapes(predictor: Predictor) -> Iterator[tuple[str, NDArray[Any], tuple[int, ...]]]:
    preprocessor = predictor.preprocessor
    d, k = np.size(preprocessor.mean), preprocessor.n_outputs
    yield "the mean", preprocessor.mean, (d,)
    yield "the scale", preprocessor.scale, (d,)
    if preprocessor.components is not None:
        yield "the components", preprocessor.components, (k, d)
    units = k
    for i, (W, b) in enumerate(predictor.weights, 1):
        yield f"b{i}", b, (b.size,)
        yield f"W{i}", W, (units, b.size)
        units = b.size
    if predictor.classes.shape != (units,) and (predictor.classes.shape, units) != ((0,), 1):
        raise ValueError(f"{predictor.classes.shape} classes for {units} outputs")
    if predictor.feature_names is not None and len(predictor.feature_names) != d:
        raise ValueError(f"{len(predictor.feature_names)} names for {d} features")


def forward(weights: Weights, X: NDArray[np.float32]) -> NDArray[Any]:
    """Return the outputs (n, n_outputs) of the net of `hpo.models.mlp` for inputs (n, k) without the constant."""
    scores = np.empty((len(X), len(weights[-1][1])), weights[-1][1].dtype)
    for start in range(0, len(X), _BLOCK_ROWS):
        h = X[start : start + _BLOCK_ROWS]
        for W, b in weights[:-1]:
            h = np.maximum(h @ W + b, 0)
        W, b = weights[-1]
        scores[start : start + _BLOCK_ROWS] = h @ W + b
    return scores


def accuracy(weights: Weights, X: NDArray[np.float32], y: NDArray[np.intp]) -> float:
    """Return the share of inputs (n, k) whose class (n,) has the largest output."""
    return float(np.mean(forward(weights, X).argmax(axis=1) == y))


def loss(weights: Weights, X: NDArray[np.float32], y: NDArray[Any], regularization: float) -> float:
    """Return the loss of a net for inputs (n, k) and targets (n,).

    For class indices, it is the mean softmax cross-entropy + regularization * the sum of the squared weights without
    the biases. For numbers, it is the mean squared error.
    """
    if y.dtype.kind == "f":
        return float(np.mean((forward(weights, X)[:, 0] - y) ** 2))
    scores = forward(weights, X).astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    cross_entropy = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(y)), y]
    penalty = regularization * sum(float(np.vdot(W, W)) for W, _ in weights)
    return float(cross_entropy.mean()) + penalty


def pack_weights(weights: Weights) -> bytes:
    """Return the weights as the bytes of an ``.npz`` file. The same weights give the same bytes."""
    packed = io.BytesIO()
    np.savez(packed, **_name_arrays(weights))
    return packed.getvalue()


def unpack_weights(packed: bytes) -> Weights:
    """Return the weights that `pack_weights` packed.

    Raises:
        ValueError: if the bytes are damaged.
    """
    try:
        return _weights_from_arrays(read_arrays(io.BytesIO(packed), max_bytes=len(packed)))
    except KeyError as error:
        raise ValueError(f"no array {error}") from None


def _name_arrays(weights: Weights) -> dict[str, Any]:
    return {
        f"{letter}{i}": array for i, layer in enumerate(weights, 1) for letter, array in zip("Wb", layer, strict=True)
    }


def _weights_from_arrays(arrays: dict[str, NDArray[Any]]) -> Weights:
    # If an array is missing, its layer still counts, so that its name raises a KeyError.
    depth = max(1, (sum(name[:1] in ("W", "b") for name in arrays) + 1) // 2)
    return [(arrays[f"W{i}"], arrays[f"b{i}"]) for i in range(1, depth + 1)]
