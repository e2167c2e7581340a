"""Sampling error of a metric."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.data.metrics import METRICS
from hpo.tuning.sampling import accuracy_error, bootstrap_error, combined_error, estimate_sampling_error

CLASSIFICATION = [metric for metric in METRICS.values() if metric.task == "classification"]
REGRESSION = [metric for metric in METRICS.values() if metric.task == "regression"]


def classified(n, share, seed=0, classes=2):
    """Return outputs and targets of which about this share fits."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    outputs = rng.normal(size=(n, classes))
    right = np.where(rng.random(n) < share, y, (y + 1) % classes)
    outputs[np.arange(n), right] += 10
    return outputs, y


def predicted(n, noise=0.5, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=n)
    return (y + noise * rng.normal(size=n))[:, None], y


@given(st.floats(0, 1), st.integers(1, 10**6))
def test_no_sample_of_rows_is_certain(accuracy, rows):
    error = accuracy_error(accuracy, rows)
    assert 0 < error < 0.5
    assert error == pytest.approx(accuracy_error(1 - accuracy, rows))
    assert accuracy_error(accuracy, 4 * rows) < error


def test_perfect_accuracy_of_30_rows_has_error():
    assert accuracy_error(1.0, 30) == pytest.approx(0.0404, abs=1e-4)
    assert accuracy_error(0.5, 10_000) == pytest.approx(0.005, rel=1e-3)


@pytest.mark.parametrize("metric", CLASSIFICATION, ids=lambda metric: metric.name)
def test_perfect_predictions_of_30_rows_have_error(metric):
    y = np.arange(30) % 3
    sampling = estimate_sampling_error(metric, [(10 * np.eye(3)[y] + np.random.default_rng(0).random((30, 3)), y)])
    assert sampling.rows == 30
    assert sampling.of(metric.score(100 * np.eye(3)[y], y)) == sampling.error
    assert f"{sampling.error:.4f}" != "0.0000" if metric.name != "log_loss" else sampling.error > 0


@pytest.mark.slow
@pytest.mark.parametrize("metric", [*CLASSIFICATION, *REGRESSION], ids=lambda metric: metric.name)
def test_error_is_spread_of_values_of_other_rows(metric):
    # The bootstrap of a sample estimates the spread over samples.
    make = predicted if metric.task == "regression" else lambda n, seed: classified(n, 0.8, seed)
    samples = [make(100, seed=seed) for seed in range(25)]
    spread = np.std([metric.score(*sample) for sample in samples], ddof=1)
    estimates = [estimate_sampling_error(metric, [sample]).error for sample in samples[:3]]
    assert np.mean(estimates) == pytest.approx(spread, rel=0.5)


def test_folds_have_error_of_all_their_rows():
    metric = METRICS["rmse"]
    folds = [predicted(100, seed=seed) for seed in range(3)]
    whole = tuple(np.concatenate(parts) for parts in zip(*folds, strict=True))
    assert estimate_sampling_error(metric, folds).rows == 300
    assert bootstrap_error(metric, folds) == pytest.approx(bootstrap_error(metric, [whole]), rel=0.25)


def test_error_is_repeatable():
    folds = [predicted(50, seed=seed) for seed in range(2)]
    assert bootstrap_error(METRICS["r2"], folds) == bootstrap_error(METRICS["r2"], folds)


def test_error_of_single_row_is_unknown():
    assert bootstrap_error(METRICS["rmse"], [(np.ones((1, 1)), np.zeros(1))]) is None


@pytest.mark.slow
def test_resamples_have_each_class_if_metric_needs_it():
    outputs, y = classified(40, 0.7, classes=4)
    y[:] = 0
    y[:4] = np.arange(4)
    assert math.isfinite(bootstrap_error(METRICS["roc_auc"], [(outputs, y)]))


def test_parts_of_error_are_independent():
    assert combined_error(3.0, 4.0) == 5.0
    assert combined_error(0.0, 0.04) == 0.04
    assert combined_error(None, 0.04) is combined_error(0.1, None) is None
