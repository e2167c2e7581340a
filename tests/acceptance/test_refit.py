"""Training of the best trial once more, on all rows but the test rows."""

from pathlib import Path

import numpy as np
import pytest
from commands import TINY, UNCONFIRMED, hpo, strict_json, write_study

from hpo import load_predictor, load_split

FOLDS = TINY.replace("split = { train = 400, validation = 100, test = 100 }", "folds = 3")
FOREST = (
    TINY[: TINY.index("[train]")]
    + '[model]\nkind = "sklearn"\nestimator = "sklearn.ensemble.RandomForestClassifier"\n'
    + "[space]\nn_estimators = { low = 5, high = 10 }\n"
)


def launch(text):
    done = hpo("launch", write_study(text), "--trials", 3, "--no-dashboard", "--workers", 2, "--refit", **UNCONFIRMED)
    assert done.returncode == 0, done.stderr
    return strict_json(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "rows"),
    [
        pytest.param(TINY, 500, id="split"),
        pytest.param(TINY.replace("[train]", '[train]\nkeep = "best"'), 500, id="best epoch"),
        pytest.param(FOLDS, 1527, id="folds"),
        pytest.param(FOREST, 500, id="estimator"),
    ],
)
def test_refit_trains_on_all_rows_but_test_rows(study, rows):
    result = launch(study)
    assert list(result)[-1] == "refit"
    assert (result["refit"]["rows"], Path("results/tiny/best.npz").is_file()) == (rows, True)
    predictor = load_predictor("results/tiny/best.npz")
    X, y = load_split("tiny.toml")["test"]
    assert predictor.score(X, y) == pytest.approx(result["refit"]["metrics"]["test_accuracy"])
    again = hpo("export", "tiny.toml", "--refit", "--model", "again.npz")
    assert strict_json(again.stdout) == result
    assert (load_predictor("again.npz").predict_proba(X) == predictor.predict_proba(X)).all()
    plain = strict_json(hpo("export", "tiny.toml", "--model", "plain.npz").stdout)
    assert plain == {key: value for key, value in result.items() if key != "refit"}
    assert not np.array_equal(load_predictor("plain.npz").predict_proba(X), predictor.predict_proba(X))


def test_refit_is_refused_for_script():
    Path("train.py").write_text("import optuna\n")
    for command in ("launch", "export"):
        done = hpo(command, "train.py", "--refit")
        assert (done.returncode, done.stdout) == (2, "")
        assert "--refit is for a study file that trains a model" in done.stderr
