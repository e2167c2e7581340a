"""Launches that predict a number."""

from pathlib import Path

import numpy as np
import optuna
import pytest
from commands import hpo, strict_json, write_study
from sklearn.metrics import r2_score, root_mean_squared_error

from hpo import load_predictor, load_split

STUDY = """
[study]
name = "house"
trials = 12
metric = "rmse"

[data]
dataset = "own.csv"
task = "regression"

[train]
batch_size = 20
optimizer = "adam"

[space]
learning_rate  = { low = 1e-3, high = 1e-1, log = true }
regularization = { low = 1e-7, high = 1e-2, log = true }
hidden_size    = { low = 16, high = 64 }
epochs         = { low = 25, high = 50 }
"""


def write_table():
    """Write a table whose target is a linear function in units far from 1."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(150, 3))
    y = 5000 + 800 * X[:, 0] - 300 * X[:, 1] + rng.normal(0, 20, 150)
    rows = [",".join(f"{value:.4f}" for value in [*row, target]) for row, target in zip(X, y, strict=True)]
    Path("own.csv").write_text("a,b,c,price\n" + "\n".join(rows) + "\n")


@pytest.fixture
def launched():
    """JSON of a launch, and the complete trials of its study."""
    write_table()
    done = hpo("launch", write_study(STUDY, "house.toml"), "--no-dashboard", "--workers", 2, "--confirm", 2)
    assert done.returncode == 0, done.stderr
    study = optuna.load_study(study_name="house", storage="sqlite:///hpo.db")
    assert study.direction == optuna.study.StudyDirection.MINIMIZE
    return strict_json(done.stdout), study.get_trials(states=[optuna.trial.TrialState.COMPLETE]), done.stderr


@pytest.mark.slow
def test_launch_minimizes_error_of_number(launched):
    result, complete, stderr = launched
    assert (result["metric"], result["study"]) == ("rmse", "house")
    confirmed = {entry["trial"]: entry["mean"] for entry in result["confirmation"]["trials"]}
    assert result["trial"] == min(confirmed, key=confirmed.get)
    assert min(complete, key=lambda trial: trial.value).number in confirmed
    (winner,) = (trial for trial in complete if trial.number == result["trial"])
    assert result["metrics"]["validation_rmse"] == pytest.approx(winner.value, rel=1e-4)
    # The noise of the target has a standard deviation of 20, the target one of 850.
    assert result["metrics"]["test_rmse"] < 100
    assert "best " in stderr


@pytest.mark.slow
def test_exported_predictor_returns_numbers(launched):
    result, _, _ = launched
    again = hpo("export", "house.toml", "--model", "model.npz")
    assert strict_json(again.stdout) == result
    predictor = load_predictor("model.npz")
    X, y = load_split("house.toml")["test"]
    predicted = predictor.predict(X)
    assert root_mean_squared_error(y, predicted) == pytest.approx(result["metrics"]["test_rmse"])
    assert predictor.score(X, y) == pytest.approx(r2_score(y, predicted))
    with pytest.raises(ValueError, match="no probabilities"):
        predictor.predict_proba(X)
