"""Data and trainings of nets for tests."""

import numpy as np

from hpo.data.division.splits import Split
from hpo.data.task import Classification
from hpo.models.nets.hyperparameters import Hyperparameters
from hpo.models.trainer import make_trainer

N_CLASSES = 3


def make_split(n=50, features=4, seed=0, variants=1):
    """Return data whose columns have different variances and a mean that depends on the class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, N_CLASSES, n)
    X = rng.normal(size=(variants * n, features)) * np.arange(1, features + 1) + np.tile(y, variants)[:, np.newaxis]
    return Split(with_constant(X), y)


def make_numbered_split(n, variants=1):
    """Return data whose only feature is the number of the row."""
    return Split(with_constant(np.arange(variants * n)), np.arange(n) % N_CLASSES)


def with_constant(X):
    return np.column_stack([X, np.ones(len(X))]).astype(np.float32)


def make_net_trainer(split=None, seed=(0, 0), validation=None, **hyperparameters):
    defaults = {"learning_rate": 0.1, "regularization": 1e-3, "hidden_size": 5, "epochs": 4, "batch_size": 16}
    return make_trainer(
        Hyperparameters.model_validate(defaults | hyperparameters),
        [split or make_split()],
        Classification(),
        np.arange(N_CLASSES),
        seed,
        validation=None if validation is None else [validation],
    )


def net_weights(trainer):
    """Return the weights and biases of the only net."""
    (net,) = trainer.fitted()
    return net.weights


def score(trainer, split):
    """Return the score of the only net."""
    (value,) = trainer.scores([split])
    return value


def weight_bytes(trainer):
    return b"".join(array.tobytes() for layer in net_weights(trainer) for array in layer)
