"""A fitted estimator as bytes, without pickle, and its predictions.

The bytes have the format of skops: a ZIP archive of NumPy arrays and JSON. An archive names each type that it needs,
and is refused if it names another type than a class of a trusted package.
"""

import io
import json
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hpo.models.estimators.lookup import PACKAGES
from hpo.utils.npz import DAMAGE_ERRORS

Array = NDArray[Any]

# Names of the arrays of an estimator.
ESTIMATOR = "estimator"
_SHAPE = "estimator_shape"

# The type of each member of an archive is checked. These two are not classes of a trusted package.
_TRUSTED = frozenset({"numpy.dtype", "collections.OrderedDict"})
_SCHEMA = "schema.json"
# The time of each member, so that the same model gives the same bytes.
_TIME = (1980, 1, 1, 0, 0, 0)
_MIN_PROBABILITY = float(np.finfo(np.float64).eps)
# Packages whose trees split on float32. Other estimators compute in float64.
_FLOAT32 = ("sklearn.ensemble", "sklearn.tree", "lightgbm", "xgboost", "catboost")


@dataclass(frozen=True, eq=False)
class FittedEstimator:
    """Estimator after its training.

    Attributes:
        estimator: The estimator.
        n_inputs: The number of features.
        n_outputs: The number of classes, or 1 for the prediction of a number.
    """

    estimator: Any
    n_inputs: int
    n_outputs: int

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], allowed: Collection[str] = ()) -> Self:
        """Return the estimator of these ``arrays()``. Other names in the mapping are ignored.

        Args:
            arrays: The arrays.
            allowed: Packages besides those of `hpo.models.estimators.lookup` whose classes may be loaded.

        Raises:
            KeyError: if an array is missing.
            ValueError: if the arrays are damaged, or need a type that is not trusted.
        """
        packed, shape = arrays[ESTIMATOR], arrays[_SHAPE]
        if shape.shape != (2,) or shape.dtype.kind != "i" or packed.dtype != np.uint8:
            raise ValueError(f"{ESTIMATOR} and {_SHAPE} are no arrays of an estimator")
        return cls(load(packed.tobytes(), allowed), *map(int, shape))

    def outputs(self, X: Array) -> Array:
        """Return the outputs (n, n_outputs) for inputs (n, k).

        The outputs are the logarithm of the probability of each class, or the predicted number. An estimator without
        probabilities gives its decision function, whose maximum is the predicted class.
        """
        X = np.asarray(X, input_dtype(self.estimator))
        with quiet():
            if self.n_outputs == 1:
                return np.asarray(self.estimator.predict(X), np.float64).reshape(len(X), 1)
            if hasattr(self.estimator, "predict_proba"):
                shares = np.asarray(self.estimator.predict_proba(X), np.float64)
                return self._in_all_classes(np.log(np.clip(shares, _MIN_PROBABILITY, 1)), np.log(_MIN_PROBABILITY))
            return self._in_all_classes(_decisions(self.estimator, X), -np.inf)

    def penalty(self, regularization: float) -> float:
        """Return 0, because the training loss of an estimator has no penalty."""
        return 0.0

    def arrays(self) -> dict[str, Array]:
        """Return the bytes of the estimator, and its numbers of inputs and outputs. They are equal for equal models."""
        packed = _canonical(dump(self.estimator))
        return {ESTIMATOR: np.frombuffer(packed, np.uint8), _SHAPE: np.array([self.n_inputs, self.n_outputs])}

    def _in_all_classes(self, values: Array, missing: float) -> Array:
        """Return values (n, c) with a column for each class, also those that the training split lacks."""
        present = np.asarray(self.estimator.classes_, np.intp)
        if len(present) == self.n_outputs:
            return values
        lowest = missing if np.isfinite(missing) else values.min(initial=0.0) - 1
        outputs = np.full((len(values), self.n_outputs), lowest)
        outputs[:, present] = values
        return outputs


def input_dtype(estimator: Any) -> type[np.floating[Any]]:
    """Return the type of the features that an estimator computes with."""
    return np.float32 if type(estimator).__module__.startswith(_FLOAT32) else np.float64


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore warnings, such as that of a solver that has not converged."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def dump(estimator: Any) -> bytes:
    """Return an estimator as bytes, which differ between calls."""
    import skops.io

    packed: bytes = skops.io.dumps(estimator, compression=zipfile.ZIP_DEFLATED, compresslevel=1)
    return packed


def load(packed: bytes, allowed: Collection[str] = ()) -> Any:
    """Return the estimator that `dump` returned as bytes.

    Raises:
        ValueError: if the bytes are damaged, or need a type that is not trusted.
    """
    import skops.io

    if not packed:
        raise ValueError("not an estimator: it is empty")
    try:
        types = skops.io.get_untrusted_types(data=packed)
        for name in types:
            _check_type(name, allowed)
        return skops.io.loads(packed, trusted=types)
    except ValueError:
        raise
    except DAMAGE_ERRORS as error:
        raise ValueError(f"not an estimator: {error}") from error


def _check_type(name: str, allowed: Collection[str]) -> None:
    """Check that a name is that of a class of a trusted package.

    A function of a trusted package is refused as well, because an archive could call it with any arguments.

    Raises:
        ValueError: if it is not.
    """
    package, (place, _, attribute) = name.partition(".")[0], name.rpartition(".")
    if name in _TRUSTED:
        return
    if package not in PACKAGES and package not in allowed:
        allow = "--allow-import, or allow_import of load_predictor"
        raise ValueError(f"it needs {name}; if you trust the file, allow the package '{package}' ({allow})")
    try:
        found = getattr(import_module(place), attribute, None)
    except ImportError as error:
        raise ValueError(f"it needs {name}: {error}") from error
    if not isinstance(found, type) or found.__module__.partition(".")[0] != package:
        raise ValueError(f"it needs {name}, which is not a class of {package}")


def _decisions(estimator: Any, X: Array) -> Array:
    """Return the decision function (n, c), with its maximum at the predicted class."""
    predicted = np.searchsorted(estimator.classes_, estimator.predict(X))
    rows = np.arange(len(X))
    if not hasattr(estimator, "decision_function"):
        outputs = np.zeros((len(X), len(estimator.classes_)))
        outputs[rows, predicted] = 1
        return outputs
    outputs = np.array(estimator.decision_function(X), np.float64)
    if outputs.ndim == 1:
        return np.stack([-outputs / 2, outputs / 2], axis=1)
    if outputs.shape[1] != len(estimator.classes_):
        # A decision for each pair of classes has no order of the classes.
        outputs = np.zeros((len(X), len(estimator.classes_)))
    others = np.flatnonzero(outputs.argmax(axis=1) != predicted)
    outputs[others, predicted[others]] = np.nextafter(outputs[others].max(axis=1, initial=0.0), np.inf)
    return outputs


def _canonical(packed: bytes) -> bytes:
    """Return an archive of skops with names, times and padding that do not differ between calls.

    skops names members and memoized objects by their address in memory. Constants with equal content get one name,
    because it depends on the history of a program which of them are one object.
    """
    canonical = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(packed)) as source, zipfile.ZipFile(canonical, "w") as target:
        schema = json.loads(source.read(_SCHEMA))
        files = _rename(schema)
        members = {new: _without_padding(source.read(old)) for old, new in files.items()}
        members[_SCHEMA] = json.dumps(schema).encode()
        for name, content in members.items():
            info = zipfile.ZipInfo(name, _TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            target.writestr(info, content, compresslevel=1)
    return canonical.getvalue()


def _rename(schema: Any) -> dict[str, str]:
    """Replace addresses in a schema by numbers in the order of their appearance; return the names of the files."""
    identities: dict[Any, int] = {}
    files: dict[str, str] = {}
    pending = [schema]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            if "__id__" in node:
                node["__id__"] = identities.setdefault(_identity(node), len(identities))
            if isinstance(file := node.get("file"), str) and "__loader__" in node:
                node["file"] = files.setdefault(file, f"{len(files)}.{file.rpartition('.')[2]}")
            pending.extend(reversed(node.values()))
        elif isinstance(node, list):
            pending.extend(reversed(node))
    return files


def _identity(node: dict[str, Any]) -> Any:
    """Return a key that is equal for nodes of one object."""
    match node["__loader__"]:
        case "JsonNode":
            return node["__module__"], node["__class__"], node["content"]
        case "TypeNode":
            return node["__module__"], node["__class__"]
    return node["__id__"]


def _without_padding(member: bytes) -> bytes:
    """Return an array file with zeros between the fields of a record, where memory is not initialized."""
    if not member.startswith(b"\x93NUMPY"):
        return member
    array = np.load(io.BytesIO(member), allow_pickle=False)
    if array.dtype.names is None:
        return member
    cleared = np.zeros(array.shape, array.dtype)
    for name in array.dtype.names:
        cleared[name] = array[name]
    packed = io.BytesIO()
    np.save(packed, cleared, allow_pickle=False)
    return packed.getvalue()
