"""Metrics equal scikit-learn's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn import metrics as sklearn_metrics

from hpo.data.metrics import DEFAULT_METRICS, METRICS, probabilities

seeds = st.integers(0, 2**32 - 1)


def classified(seed, classes):
    """Return outputs and targets; each class has a row."""
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.integers(classes, size=rng.integers(1, 40))])
    return rng.normal(0, 2, (len(y), classes)).astype(np.float32), y


def expected(name, outputs, y):
    """Return the value of scikit-learn's function for the scorer of this name."""
    shares, labels = softmax(outputs.astype(float), axis=1), outputs.argmax(axis=1)
    is_binary = outputs.shape[1] == 2
    scored = shares[:, 1] if is_binary else shares
    if name == "balanced_accuracy":
        # The mean of the recalls, without the warning of a predicted class that has no row.
        return np.mean([(labels[y == c] == c).mean() for c in np.unique(y)])
    return {
        "accuracy": lambda: sklearn_metrics.accuracy_score(y, labels),
        "f1_macro": lambda: sklearn_metrics.f1_score(y, labels, average="macro", zero_division=0.0),
        "roc_auc": lambda: sklearn_metrics.roc_auc_score(y, scored, multi_class="ovr"),
        "average_precision": lambda: sklearn_metrics.average_precision_score(y, scored),
        "log_loss": lambda: sklearn_metrics.log_loss(y, shares, labels=range(outputs.shape[1])),
    }[name]()


@given(seed=seeds, classes=st.integers(2, 5))
@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.task == "classification"])
def test_metric_of_classes_equals_scikit_learn(name, seed, classes):
    outputs, y = classified(seed, classes)
    assert METRICS[name].score(outputs, y) == pytest.approx(expected(name, outputs, y), abs=1e-12)


@given(seed=seeds)
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("r2", sklearn_metrics.r2_score),
        ("rmse", sklearn_metrics.root_mean_squared_error),
        ("mae", sklearn_metrics.mean_absolute_error),
    ],
)
def test_metric_of_numbers_equals_scikit_learn(name, function, seed):
    rng = np.random.default_rng(seed)
    y, predicted = rng.normal(100, 10, (2, 20))
    assert METRICS[name].score(predicted[:, np.newaxis], y) == function(y, predicted)


def test_metric_without_value_is_not_defined():
    defined = {name: metric.is_defined(np.array([1]), np.arange(2)) for name, metric in METRICS.items()}
    assert [name for name, is_defined in defined.items() if not is_defined] == ["roc_auc", "average_precision", "r2"]
    assert METRICS["r2"].is_defined(np.array([1.0, 2.0]), np.empty(0))


def test_probabilities_of_large_outputs_are_finite():
    outputs = np.array([[1e30, 0], [-np.inf, 0], [0, 0]], np.float32)
    assert probabilities(outputs).tolist() == [[1, 0], [0, 1], [0.5, 0.5]]


def test_better_predictions_have_better_value():
    y = np.array([0, 1, 2, 0, 1, 2])
    good, bad = 5 * np.eye(3)[y], 5 * np.eye(3)[(y + 1) % 3]
    numbers = y[:, np.newaxis].astype(float)
    for metric in METRICS.values():
        first, second = (good, bad) if metric.task == "classification" else (numbers, numbers + 1)
        difference = metric.score(first, y) - metric.score(second, y)
        assert (difference < 0) == metric.minimizes, metric.name


def test_each_task_has_default_metric():
    assert {METRICS[name].task: name for name in DEFAULT_METRICS.values()} == dict(DEFAULT_METRICS)
