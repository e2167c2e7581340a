"""scikit-learn's models for ``benchmarks.tables``: their defaults, and the search space of a plain Optuna script."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
from optuna.trial import BaseTrial
from sklearn import ensemble, linear_model, neural_network, svm
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score, train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

Task = Literal["classification", "regression"]
Model = Any

# The time of an SVM grows with the square of the rows. More rows are validated once instead of five times.
MANY_ROWS = 20_000
_FOLDS = 5
_VALIDATION = 0.15 / 0.85

_CLASSES: Mapping[Task, Mapping[str, type[Any]]] = {
    "classification": {
        "linear": linear_model.LogisticRegression,
        "forest": ensemble.RandomForestClassifier,
        "boosting": ensemble.HistGradientBoostingClassifier,
        "svm": svm.SVC,
        "mlp": neural_network.MLPClassifier,
    },
    "regression": {
        "linear": linear_model.Ridge,
        "forest": ensemble.RandomForestRegressor,
        "boosting": ensemble.HistGradientBoostingRegressor,
        "svm": svm.SVR,
        "mlp": neural_network.MLPRegressor,
    },
}
_TREES = ("forest", "boosting")


def names(rows: int) -> tuple[str, ...]:
    """Return the models that can be fitted to a table with this number of rows."""
    return tuple(name for name in _CLASSES["classification"] if name != "svm" or rows <= MANY_ROWS)


def make(name: str, task: Task, seed: int, **parameters: Any) -> Pipeline:
    """Return a model with scikit-learn's defaults for all other parameters.

    Text is one-hot encoded. Numbers are standardised, except for trees.
    """
    model = _CLASSES[task][name]
    if "random_state" in model().get_params():
        parameters |= {"random_state": seed}
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    numbers = "passthrough" if name in _TREES else StandardScaler()
    text = make_column_selector(dtype_exclude="number")
    return make_pipeline(make_column_transformer((encoder, text), remainder=numbers), model(**parameters))


def suggest(trial: BaseTrial, task: Task, rows: int, seed: int) -> Pipeline:
    """Return a model with the parameters that a trial proposes."""
    name = trial.suggest_categorical("model", names(rows))
    return make(name, task, seed, **_SPACES[name](trial, task))


def cross_validated(model: Pipeline, X: pd.DataFrame, y: "pd.Series[Any]", task: Task, seed: int) -> float:
    """Return the mean score over five folds, or the score of one validation split if there are many rows."""
    if len(y) > MANY_ROWS:
        labels = y if task == "classification" else None
        X_train, X_validation, y_train, y_validation = train_test_split(
            X, y, test_size=_VALIDATION, random_state=seed, stratify=labels
        )
        return float(model.fit(X_train, y_train).score(X_validation, y_validation))
    folds = (StratifiedKFold if task == "classification" else KFold)(_FOLDS, shuffle=True, random_state=seed)
    return float(np.mean(cross_val_score(model, X, y, cv=folds)))


def _linear(trial: BaseTrial, task: Task) -> dict[str, Any]:
    if task == "regression":
        return {"alpha": trial.suggest_float("linear_alpha", 1e-3, 1e3, log=True)}
    return {"C": trial.suggest_float("linear_C", 1e-3, 1e2, log=True), "max_iter": 1000}


def _forest(trial: BaseTrial, task: Task) -> dict[str, Any]:
    return {
        "n_estimators": trial.suggest_int("forest_n_estimators", 50, 500, log=True),
        "max_features": trial.suggest_float("forest_max_features", 0.1, 1.0),
        "min_samples_leaf": trial.suggest_int("forest_min_samples_leaf", 1, 20, log=True),
    }


def _boosting(trial: BaseTrial, task: Task) -> dict[str, Any]:
    return {
        "learning_rate": trial.suggest_float("boosting_learning_rate", 0.01, 0.3, log=True),
        "max_iter": trial.suggest_int("boosting_max_iter", 50, 500, log=True),
        "max_leaf_nodes": trial.suggest_int("boosting_max_leaf_nodes", 4, 64, log=True),
        "min_samples_leaf": trial.suggest_int("boosting_min_samples_leaf", 2, 50, log=True),
        "l2_regularization": trial.suggest_float("boosting_l2_regularization", 1e-3, 10, log=True),
    }


def _svm(trial: BaseTrial, task: Task) -> dict[str, Any]:
    # The targets of a regression are not scaled, and their errors count from epsilon on.
    top = 1e2 if task == "classification" else 1e4
    return {
        "C": trial.suggest_float("svm_C", 1e-2, top, log=True),
        "gamma": trial.suggest_float("svm_gamma", 1e-4, 1e0, log=True),
    }


def _mlp(trial: BaseTrial, task: Task) -> dict[str, Any]:
    return {
        "hidden_layer_sizes": (trial.suggest_int("mlp_hidden_size", 32, 400, log=True),),
        "alpha": trial.suggest_float("mlp_alpha", 1e-6, 1e1, log=True),
        "learning_rate_init": trial.suggest_float("mlp_learning_rate_init", 1e-4, 1e-1, log=True),
        "early_stopping": True,
    }


_SPACES: Mapping[str, Callable[[BaseTrial, Task], dict[str, Any]]] = {
    "linear": _linear,
    "forest": _forest,
    "boosting": _boosting,
    "svm": _svm,
    "mlp": _mlp,
}
