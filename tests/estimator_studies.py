"""Study files with estimators, and a small table."""

from pathlib import Path

import numpy as np

BOOSTING = """
[study]
name = "boosting"
trials = 6
sampler = "random"

[data]
dataset = "own.csv"

[model]
kind = "sklearn"
estimator = "sklearn.ensemble.HistGradientBoostingClassifier"

[train]
max_depth = "none"

[space]
learning_rate  = { low = 0.05, high = 1, log = true }
max_iter       = { low = 10, high = 40 }
max_leaf_nodes = { choices = [4, 8] }
"""

SEVERAL = """
[study]
name = "several"
trials = 9
sampler = "random"

[data]
dataset = "own.csv"

[model]
kind = ["mlp", "forest", "linear"]

[model.forest]
estimator = "sklearn.ensemble.RandomForestClassifier"

[model.linear]
estimator = "sklearn.linear_model.SGDClassifier"

[train.mlp]
batch_size = 20
epochs = 20

[space.mlp]
learning_rate  = { low = 1e-3, high = 1e-1, log = true }
regularization = { low = 1e-7, high = 1e-2, log = true }
hidden_size    = { low = 8, high = 16 }

[train.forest]
n_estimators = 20

[space.forest]
max_features = { low = 0.3, high = 1 }
bootstrap    = { choices = [true, false] }

[train.linear]
loss = "log_loss"
max_iter = 15

[space.linear]
alpha = { low = 1e-5, high = 1e-1, log = true }
"""


def write_table(rows: int = 150) -> None:
    """Write a table with two classes, whose features interact."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(rows, 3))
    labels = np.where(X[:, 0] * X[:, 1] + X[:, 2] + rng.normal(0, 0.2, rows) > 0, "yes", "no")
    lines = [",".join([*(f"{value:.4f}" for value in row), label]) for row, label in zip(X, labels, strict=True)]
    Path("own.csv").write_text("a,b,c,label\n" + "\n".join(lines) + "\n")
