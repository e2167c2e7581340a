"""Trained models with their preprocessing: labels or numbers from raw features, in a file without pickle."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpo.data.metrics import METRICS, TaskName, probabilities
from hpo.data.prepared.preprocessing import Preprocessor
from hpo.data.task import TASKS
from hpo.errors import DataError
from hpo.models.fitted import FittedModel, check_array, fitted_from_arrays
from hpo.models.inputs import check_features, check_labels, check_outputs, check_table, check_targets
from hpo.utils.files import atomic_write
from hpo.utils.npz import open_regular, read_arrays

# Names of the preprocessor's arrays in a file. A file of an earlier version has the same names.
_PREPROCESSOR = "map."


class Member(NamedTuple):
    """Preprocessing and fitted model of one fold."""

    preprocessor: Preprocessor
    model: FittedModel


@dataclass(frozen=True, eq=False)
class Predictor:
    """Trained models with their preprocessing. The mean of their predictions is the prediction.

    Attributes:
        classes: Labels (c,), in the order of the models' outputs; empty for the prediction of a number.
        members: Scaling and PCA of raw features (n, d) to the inputs (n, k) of a model, and the model, of each fold.
        feature_names: Names of the features (d,), in the order of the training; None if the data had none.
    """

    classes: NDArray[Any]
    members: tuple[Member, ...]
    feature_names: tuple[str, ...] | None = None

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the predicted labels (n,) of raw features (n, d).

        The columns of a data frame are found by the names of the training, in any order; others are ignored. An array
        has the columns of the training in their order. A missing value is treated as in the training. It is refused if
        the training had plain numbers without missing values.

        Raises:
            ValueError: if a column is missing, or if a value is not of its column's kind. The message names row and
                column.
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

    @property
    def classes_(self) -> NDArray[Any]:
        """The classes, by the name of scikit-learn.

        Raises:
            AttributeError: if a number is predicted, as for a regressor of scikit-learn.
        """
        if not len(self.classes):
            raise AttributeError("a number is predicted; there are no classes")
        return self.classes

    @property
    def n_features_in_(self) -> int:
        """The number d of features, by the name of scikit-learn."""
        return self.members[0].preprocessor.n_inputs

    @property
    def feature_names_in_(self) -> NDArray[Any]:
        """The names of the features, by the name of scikit-learn.

        Raises:
            AttributeError: if the training had no names, as for an estimator of scikit-learn.
        """
        if self.feature_names is None:
            raise AttributeError("the training data had no names of features")
        return np.array(self.feature_names, object)

    def _outputs(self, X: ArrayLike) -> NDArray[Any]:
        features = self._features(X)
        with np.errstate(over="ignore", invalid="ignore"):
            outputs = [check_outputs(model.outputs(map_.transform(features))) for map_, model in self.members]
        return TASKS[self.task].mean_outputs(outputs)

    def _features(self, X: ArrayLike) -> NDArray[Any]:
        encoder = self.members[0].preprocessor.encoder
        if encoder is None:
            return check_features(X, self.n_features_in_, self.feature_names)
        return check_table(X, encoder.schema)

    def save(self, path: Path) -> None:
        """Write a ``.npz`` file atomically.

        Raises:
            OutputError: if the file cannot be written.
        """
        arrays: dict[str, Any] = {"classes": self.classes}
        for fold, (preprocessor, model) in enumerate(self.members):
            prefix = _prefix(fold)
            arrays |= {f"{prefix}{_PREPROCESSOR}{name}": array for name, array in preprocessor.arrays().items()}
            arrays |= {f"{prefix}{name}": array for name, array in model.arrays().items()}
        if self.feature_names is not None:
            arrays["feature_names"] = np.array(self.feature_names, np.str_)
        with atomic_write(path) as file:
            np.savez(file, **arrays)


def load_predictor(path: str | os.PathLike[str], allow_import: Collection[str] = ()) -> Predictor:
    """Load a predictor that ``hpo.export --model`` wrote. Pickles in the file are refused.

    Args:
        path: The file.
        allow_import: Packages of an estimator that may be imported, besides the known ones.

    Raises:
        DataError: if the file is missing, damaged, or is not such a file.
    """
    try:
        with open_regular(Path(path)) as file:
            # The export does not compress, so that larger arrays are a forgery.
            return _from_arrays(read_arrays(file, max_bytes=os.fstat(file.fileno()).st_size), allow_import)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; write it with: python -m hpo.export --model {path}") from None
    except OSError as error:
        raise DataError(f"{path}: not a model that hpo.export wrote: {error.strerror or error}") from None
    except KeyError as error:
        raise DataError(f"{path}: not a model that hpo.export wrote: no array {error}") from None
    except ValueError as error:
        raise DataError(f"{path}: not a model that hpo.export wrote: {error}") from None


def _from_arrays(arrays: Mapping[str, NDArray[Any]], allowed: Collection[str]) -> Predictor:
    names = arrays.get("feature_names")
    members: list[Member] = []
    while not members or any(name.startswith(_prefix(len(members))) for name in arrays):
        members.append(_member_from_arrays(arrays, _prefix(len(members)), allowed))
    predictor = Predictor(
        arrays["classes"],
        tuple(members),
        None if names is None else tuple(map(str, names.ravel())),
    )
    _check_consistent(predictor)
    return predictor


def _member_from_arrays(arrays: Mapping[str, NDArray[Any]], prefix: str, allowed: Collection[str]) -> Member:
    # The names of the first fold are those of a file without folds.
    own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    preprocessor = {
        name.removeprefix(_PREPROCESSOR): array for name, array in own.items() if name.startswith(_PREPROCESSOR)
    }
    return Member(Preprocessor.from_arrays(preprocessor), fitted_from_arrays(own, allowed))


def _prefix(fold: int) -> str:
    """Return the prefix of the arrays of a fold. The first fold has none, as in a file of an earlier version."""
    return f"fold{fold}." if fold else ""


def _check_consistent(predictor: Predictor) -> None:
    """Check kinds, shapes and values of the arrays of a file.

    Raises:
        ValueError: if they are not those of a predictor.
    """
    if predictor.classes.dtype.kind not in "biufU":
        raise ValueError(f"the classes are {predictor.classes.dtype}; text or numbers are required")
    n_features = predictor.n_features_in_
    if predictor.feature_names is not None and len(predictor.feature_names) != n_features:
        raise ValueError(f"{len(predictor.feature_names)} names for {n_features} features")
    for member in predictor.members:
        if member.preprocessor.n_inputs != n_features:
            raise ValueError("the folds have other features")
        _check_preprocessor(member.preprocessor)
        _check_model(member, predictor.classes)


def _check_preprocessor(preprocessor: Preprocessor) -> None:
    encoder = preprocessor.encoder
    n_scaled = preprocessor.n_inputs if encoder is None else encoder.n_outputs
    check_array("the mean", preprocessor.mean, (n_scaled,))
    check_array("the scale", preprocessor.scale, (n_scaled,))
    if preprocessor.components is not None:
        check_array("the components", preprocessor.components, (preprocessor.n_outputs, n_scaled))
    if not (preprocessor.scale > 0).all():
        raise ValueError("the scale of a feature is not positive")


def _check_model(member: Member, classes: NDArray[Any]) -> None:
    preprocessor, model = member
    if model.n_inputs != preprocessor.n_outputs:
        raise ValueError(f"a model with {model.n_inputs} inputs for {preprocessor.n_outputs} preprocessed features")
    if classes.shape != (model.n_outputs,) and (classes.shape, model.n_outputs) != ((0,), 1):
        raise ValueError(f"{classes.shape} classes for {model.n_outputs} outputs")
