"""Sampling error of a metric: the part of its standard error that the choice of the rows causes.

More seeds do not reduce it. More rows do.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpo.config.study import StudyConfig
from hpo.data.metrics import Array, Metric
from hpo.data.prepared.cache import PreparedData
from hpo.data.sources import data_config

# The error of an estimate from so many resamples is 7% of the estimate.
_RESAMPLES = 100


@dataclass(frozen=True)
class SamplingError:
    """Sampling error of the values of one metric on the same rows.

    Attributes:
        rows: The number of rows.
        error: The error of the winner's value, None if it is unknown.
        is_accuracy: Whether the metric is the accuracy, whose error follows from its value and the number of rows.
    """

    rows: int
    error: float | None
    is_accuracy: bool

    def of(self, value: float) -> float | None:
        """Return the error of a value. That of another metric than the accuracy is about the winner's."""
        return accuracy_error(value, self.rows) if self.is_accuracy else self.error


def accuracy_error(accuracy: float, rows: int) -> float:
    """Return the sampling error of an accuracy.

    The formula is that of Agresti and Coull (1998), which is not zero for an accuracy of 0 or 1.
    """
    n = rows + 4
    p = (min(1.0, max(0.0, accuracy)) * rows + 2) / n
    return math.sqrt(p * (1 - p) / n)


def estimate_sampling_error(metric: Metric, folds: Sequence[tuple[Array, Array]]) -> SamplingError:
    """Estimate the sampling error of the mean of a metric over folds.

    Args:
        metric: The metric.
        folds: The outputs (n, n_outputs) and targets (n,) of each fold. No row is in two folds.
    """
    rows = sum(len(y) for _, y in folds)
    is_accuracy = metric.name == "accuracy"
    if is_accuracy:
        mean = statistics.fmean(metric.score(outputs, y) for outputs, y in folds)
        return SamplingError(rows, accuracy_error(mean, rows), is_accuracy)
    error = bootstrap_error(metric, folds)
    if error is not None and metric.task == "classification" and not metric.minimizes:
        # The metric is at most 1, and the resamples of perfect predictions are perfect, too.
        error = max(error, accuracy_error(1.0, rows))
    return SamplingError(rows, error, is_accuracy)


def bootstrap_error(metric: Metric, folds: Sequence[tuple[Array, Array]]) -> float | None:
    """Return the standard deviation of the mean over folds whose rows are resampled.

    The resamples are the same in each call.

    Args:
        metric: The metric.
        folds: The outputs (n, n_outputs) and targets (n,) of each fold.

    Returns:
        The standard deviation, None if a fold has a single row.
    """
    if any(len(y) < 2 for _, y in folds):
        return None
    rng = np.random.default_rng(0)
    # The folds have different rows, so their errors are independent.
    return math.hypot(*(_resampled_spread(metric, outputs, y, rng) for outputs, y in folds)) / len(folds)


def _resampled_spread(metric: Metric, outputs: Array, y: Array, rng: np.random.Generator) -> float:
    # A metric that needs all classes is resampled within each class.
    strata = y if metric.needs_all_classes else np.zeros(len(y))
    rows_of = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    values = []
    for _ in range(_RESAMPLES):
        rows = np.concatenate([rng.choice(rows, len(rows)) for rows in rows_of])
        values.append(metric.score(outputs[rows], y[rows]))
    return statistics.stdev(values)


def combined_error(seed_error: float | None, sampling_error: float | None) -> float | None:
    """Return the standard error from both of its parts, None if a part is unknown."""
    if seed_error is None or sampling_error is None:
        return None
    return math.hypot(seed_error, sampling_error)


def count_validation_rows(config: StudyConfig, data: PreparedData) -> int:
    """Return the number of different validation rows. Each repeat of a cross-validation has the same rows."""
    return sum(len(fold.validation.y) for fold in data.folds[: data_config(config).folds or 1])
