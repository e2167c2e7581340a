"""The command ``python -m hpo.export`` and the predictor that it writes."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import TINY, hpo, strict_json, write_study

from hpo import load_predictor, load_split


@pytest.fixture
def launched():
    """The output of a launch of three trials."""
    done = hpo("launch", write_study(), "--trials", 3, "--no-dashboard", "--workers", 2)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_export_prints_json_of_launch(launched):
    done = hpo("export", "tiny.toml")
    assert (done.returncode, done.stdout) == (0, launched), done.stderr
    assert hpo("export", "tiny.toml", "--output", "again.json").stdout == ""
    assert Path("again.json").read_text() == launched


def test_predictor_reproduces_exported_accuracies(launched):
    assert hpo("export", "tiny.toml", "--model", "model.npz").returncode == 0
    predictor = load_predictor("model.npz")
    metrics = strict_json(launched)["metrics"]
    for part, (X, y) in load_split("tiny.toml").items():
        assert predictor.score(X, y) == metrics[f"{part}_accuracy"]
    assert set(predictor.predict(X)) <= set(range(10))
    with np.load("model.npz", allow_pickle=False) as arrays:
        assert all(array.dtype != object for array in arrays.values())


def test_export_of_other_trial_prints_its_json(launched):
    best = strict_json(launched)
    for number in range(3):
        done = hpo("export", "tiny.toml", "--trial", number)
        exported = strict_json(done.stdout)
        assert (done.returncode, exported["trial"], list(exported)) == (0, number, list(best)), done.stderr
        assert exported["metrics"]["validation_accuracy"] <= best["metrics"]["validation_accuracy"]
        assert (exported == best) == (number == best["trial"])
    done = hpo("export", "tiny.toml", "--trial", 3)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "hpo: the study 'tiny' has no trial 3; its trials are 0 to 2\n"


@pytest.mark.slow
def test_text_labels_are_predicted_as_text():
    rng = np.random.default_rng(0)
    rows = [f"{x:.3f},{y:.3f},{'left' if x < 0 else 'right'}" for x, y in rng.normal(size=(300, 2))]
    Path("points.csv").write_text("\n".join(["x,y,side", *rows]))
    text = write_study().read_text().replace('dataset = "digits"', 'dataset = "points.csv"').replace("pca = 0.9", "")
    text = text.replace("train = 400, validation = 100, test = 100", "train = 0.6, validation = 0.2, test = 0.2")
    done = hpo("launch", write_study(text), "--trials", 3, "--no-dashboard")
    assert done.returncode == 0, done.stderr
    assert strict_json(done.stdout)["data"]["pca"] is None
    assert hpo("export", "tiny.toml", "--model", "model.npz").returncode == 0
    predictor = load_predictor("model.npz")
    assert list(predictor.predict([[-2.0, 0.0], [2.0, 0.0]])) == ["left", "right"]


@pytest.mark.slow
def test_data_are_recognized_by_content_and_not_needed_by_export():
    rng = np.random.default_rng(0)
    rows = [f"{x:.3f},{y:.3f},{'left' if x < 0 else 'right'}" for x, y in rng.normal(size=(300, 2))]
    text = (
        TINY.replace("pca = 0.9", "").replace("400, validation = 100", "200, validation = 50").replace("100 }", "50 }")
    )
    for place in ("anna", "ben"):
        folder = Path(place)
        folder.mkdir()
        (folder / "points.csv").write_text("\n".join(["x,y,side", *rows]))
        dataset = str((folder / "points.csv").absolute())
        (folder / "tiny.toml").write_text(text.replace('"digits"', json.dumps(dataset)))
    done = hpo("launch", "anna/tiny.toml", "--trials", 2, "--no-dashboard", "--confirm", 0)
    assert done.returncode == 0, done.stderr
    joined = hpo("launch", "ben/tiny.toml", "--trials", 2, "--no-dashboard", "--confirm", 0)
    assert (joined.returncode, joined.stdout) == (0, done.stdout), joined.stderr

    Path("anna/points.csv").unlink()
    assert hpo("export", "anna/tiny.toml", "--model", "model.npz").stdout == done.stdout
    recorded = hpo("export", "anna/tiny.toml", HPO_DATA_DIR="no-prepared-copy")
    assert recorded.returncode == 0, recorded.stderr
    assert "metrics that were not recorded are null" in recorded.stderr
    complete, without_data = strict_json(done.stdout), strict_json(recorded.stdout)
    assert list(without_data) == list(complete)
    assert without_data["params"] == complete["params"]
    assert without_data["data"]["fingerprint"] == complete["data"]["fingerprint"]
    assert without_data["metrics"] == dict.fromkeys(complete["metrics"]) | {
        "validation_accuracy": pytest.approx(complete["metrics"]["validation_accuracy"])
    }
    refused = hpo("export", "anna/tiny.toml", "--model", "other.npz", HPO_DATA_DIR="no-prepared-copy")
    assert (refused.returncode, refused.stdout, Path("other.npz").exists()) == (1, "", False)
    assert "leave out --model" in refused.stderr
    again = hpo("launch", "anna/tiny.toml", "--no-dashboard", HPO_DATA_DIR="no-prepared-copy")
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert "no file " in again.stderr
    assert "a result can be exported: python -m hpo.export" in again.stderr
    elsewhere = hpo("launch", "anna/tiny.toml", "--storage", "sqlite:///other.db", HPO_DATA_DIR="no-prepared-copy")
    assert "hpo.export" not in elsewhere.stderr
    assert not Path("other.db").exists()

    Path("ben/points.csv").write_text("\n".join(["x,y,side", *reversed(rows)]))
    other = hpo("export", "ben/tiny.toml")
    assert other.returncode == 1
    assert "the data (were " in other.stderr
    assert "data.dataset (was " in other.stderr
