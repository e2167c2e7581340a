"""Budget of an estimator: the steps in which it is trained."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hpo.models.base import RefusalError
from hpo.models.estimators.fitted import quiet

Array = NDArray[Any]

# Errors of packages that are not errors of Python, as "module:attribute".
_PACKAGE_ERRORS = ("lightgbm.basic:LightGBMError", "xgboost.core:XGBoostError", "catboost:CatBoostError")


class Budget(Protocol):
    """Training of an estimator up to a step.

    Attributes:
        steps: The steps of the whole training.
        can_skip: Whether `train` can go to any later step at once.
        is_costly: Whether each call of `train` has a high cost of its own, so that few calls are better.
    """

    @property
    def steps(self) -> int: ...  # noqa: D102  # described above

    @property
    def can_skip(self) -> bool: ...  # noqa: D102  # described above

    @property
    def is_costly(self) -> bool: ...  # noqa: D102  # described above

    def train(self, estimator: Any, X: Array, y: Array, step: int, classes: Array | None) -> None:
        """Train an estimator that has been trained up to an earlier step.

        Args:
            estimator: The estimator, which changes.
            X: Features (n, d).
            y: Targets (n,).
            step: The step to train up to.
            classes: All classes; None for the prediction of a number.
        """


@dataclass(frozen=True)
class OneStep:
    """Budget of an estimator that is fitted at once."""

    steps = 1
    can_skip = False
    is_costly = False

    def train(self, estimator: Any, X: Array, y: Array, step: int, classes: Array | None) -> None:
        """Fit the estimator."""
        estimator.fit(X, y)


@dataclass(frozen=True)
class WarmStart:
    """Budget of an ensemble that grows by ``warm_start``. A grown ensemble equals one that is fitted at once.

    Attributes:
        steps: The members of the whole ensemble.
        parameter: The parameter of the number of members.
        is_costly: Whether each fit prepares the data again.
    """

    steps: int
    parameter: str
    is_costly: bool
    can_skip = True

    def train(self, estimator: Any, X: Array, y: Array, step: int, classes: Array | None) -> None:
        """Grow the ensemble to ``step`` members."""
        estimator.set_params(**{self.parameter: step, "warm_start": True}).fit(X, y)


@dataclass(frozen=True)
class PartialFit:
    """Budget of an estimator that passes over the training split once in each step.

    Attributes:
        steps: The passes of the whole training.
        seed: The seed of the order of the rows, which differs in each pass. None for an estimator without a seed.
    """

    steps: int
    seed: int | None
    can_skip = False
    is_costly = False

    def train(self, estimator: Any, X: Array, y: Array, step: int, classes: Array | None) -> None:
        """Take one pass."""
        if self.seed is not None:
            state = np.random.SeedSequence([self.seed, step]).generate_state(1)[0]
            estimator.set_params(random_state=int(state) >> 1)
        known = {} if classes is None else {"classes": np.arange(len(classes))}
        estimator.partial_fit(X, y, **known)


def train(budget: Budget, estimator: Any, X: Array, y: Array, step: int, classes: Array | None) -> None:
    """Train an estimator up to a step, without warnings.

    Raises:
        RefusalError: if the estimator refuses its parameters or the data. Its cause is the error.
    """
    with refusals_of(estimator), quiet():
        budget.train(estimator, X, y, step, classes)


@contextmanager
def refusals_of(estimator: Any) -> Iterator[None]:
    """Translate the errors by which an estimator refuses its parameters or the data.

    Raises:
        RefusalError: if the estimator refuses them. Its cause is the error.
    """
    try:
        yield
    except _refusals() as error:
        raise RefusalError(f"{type(estimator).__name__}: {' '.join(str(error).split())}") from error


def budget_of(estimator: Any) -> Budget:
    """Return the budget of an estimator that is not trained.

    An estimator with early stopping has one step, because the estimator itself decides its number of passes or members.
    """
    params = estimator.get_params(deep=False)
    if _stops_early(params):
        return OneStep()
    # partial_fit refuses balanced weights of the classes, because a call need not have all rows.
    if hasattr(estimator, "partial_fit") and "max_iter" in params and params.get("class_weight") != "balanced":
        return PartialFit(params["max_iter"], params.get("random_state"))
    if "warm_start" in params:
        if "n_estimators" in params:
            return WarmStart(params["n_estimators"], "n_estimators", is_costly=False)
        # A linear model has a warm start too, but does not end where it would without one.
        if _is_histogram_boosting(estimator):
            return WarmStart(params["max_iter"], "max_iter", is_costly=True)
    return OneStep()


def _stops_early(params: dict[str, Any]) -> bool:
    if "early_stopping" in params:
        return bool(params["early_stopping"])
    return params.get("n_iter_no_change") is not None and "tol" in params and "max_iter" not in params


def _is_histogram_boosting(estimator: Any) -> bool:
    return type(estimator).__module__.startswith("sklearn.ensemble._hist_gradient_boosting")


def _refusals() -> tuple[type[Exception], ...]:
    """Return the types of errors by which an estimator refuses its parameters or the data."""
    paths = [path.split(":") for path in _PACKAGE_ERRORS]
    imported = [getattr(import_module(module), name) for module, name in paths if module in sys.modules]
    return ValueError, TypeError, ArithmeticError, *imported
