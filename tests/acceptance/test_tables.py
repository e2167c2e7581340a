"""Launches on tables that are easily misread."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import TINY, hpo, strict_json, write_study

from hpo import load_predictor, load_split

CHANCE = 0.65


def write_table(header, labels, X=None, index=False):
    """Write ``own.csv`` of 120 random rows, sorted by class if it has an index."""
    rng = np.random.default_rng(3)
    y = np.repeat(np.arange(3), 40) if index else rng.permutation(np.repeat(np.arange(3), 40))
    X = rng.normal(size=(120, 3)) + (0 if index else y[:, np.newaxis])
    rows = [",".join([*([str(i)] * index), *(f"{v:.3f}" for v in x), labels[y[i]]]) for i, x in enumerate(X)]
    Path("own.csv").write_text("\n".join([*([header] * bool(header)), *rows]) + "\n")


def study_of(*data):
    text = TINY.replace('dataset = "digits"', "\n".join(['dataset = "own.csv"', *data])).replace("pca = 0.9", "")
    return write_study(text.replace("split = { train = 400, validation = 100, test = 100 }", ""))


def launch_table(*data):
    return hpo("launch", study_of(*data), "--trials", 2, "--no-dashboard", "--workers", 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("header", "labels"),
    [
        ("0,1,2,species", ["setosa", "versicolor", "virginica"]),
        ("a,b,c,zip", ["01234", "01235", "90210"]),
        ("a,b,c,code", ["7", "007", "8_0"]),
    ],
)
def test_predictor_has_classes_of_file(header, labels):
    write_table(header, labels)
    done = launch_table()
    assert done.returncode == 0, done.stderr
    guesses = f"120 rows, a header, label in column '{header.split(',')[-1]}': 3 classes: "
    assert guesses in done.stderr
    assert done.stderr.index(guesses) < done.stderr.index("2/2 trials")
    assert hpo("export", "tiny.toml", "--model", "model.npz").returncode == 0
    predictor = load_predictor("model.npz")
    assert predictor.classes.tolist() == sorted(labels)
    X, y = load_split("tiny.toml")["test"]
    assert predictor.score(X, y) == strict_json(done.stdout)["metrics"]["test_accuracy"]


@pytest.mark.slow
def test_index_of_sorted_noise_is_left_out():
    write_table(",a,b,c,label", "abc", index=True)
    done = launch_table()
    assert done.returncode == 0, done.stderr
    assert "left out column 1: the index of the rows; data.drop = [] keeps it" in done.stderr
    result = strict_json(done.stdout)
    assert result["data"]["features"] == 3
    assert result["metrics"]["test_accuracy"] < CHANCE


@pytest.mark.slow
def test_label_in_first_column_is_refused_until_key_names_it():
    rng = np.random.default_rng(0)
    rows = [f"{i % 3 + 1},{rng.normal() + i % 3:.3f},{rng.integers(0, 10**6)}" for i in range(90)]
    Path("own.csv").write_text("\n".join(rows))
    refused = launch_table()
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "the label, column 3, has 90 classes in 90 rows; is this a number to predict? " in refused.stderr
    assert "data.label selects another column" in refused.stderr
    done = launch_table("label = 0")
    assert done.returncode == 0, done.stderr
    assert "no header, label in column 1: 3 classes: 1 (30), 2 (30), 3 (30)" in done.stderr


def write_customers():
    """Write a semicolon-separated table with text, booleans, dates and gaps; return it."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "customer_id": rng.permutation(300) + 10_000,
            "bought": rng.choice(["yes", "no"], 300),
            "age": np.where(rng.random(300) < 0.2, np.nan, rng.integers(18, 90, 300)),
            "city": rng.choice(["Oslo", "Rome", "Bern", None], 300),
            "since": pd.Series(pd.Timestamp("2020-01-31") + pd.to_timedelta(rng.integers(0, 900, 300), "D")),
            "newsletter": rng.choice(["true", "false"], 300),
            "comment": [f"order number {i} came late" for i in range(300)],
            "spent": rng.gamma(2, 50, 300).round(2),
        }
    )
    frame.loc[frame["city"] == "Oslo", "bought"] = "yes"
    written = frame.assign(since=frame["since"].dt.strftime("%d.%m.%Y"))
    written.to_csv("own.csv", sep=";", decimal=",", index=False)
    return frame


def test_mixed_table_needs_four_lines_to_become_a_predictor():
    frame = write_customers()
    done = launch_table('label = "bought"', 'drop = ["customer_id"]', 'categorical = ["newsletter"]')
    assert done.returncode == 0, done.stderr
    for note in (
        "columns are separated by semicolons",
        "2 numeric: age (",
        "2 categorical: city (3 categories, ",
        "1 date: since",
        "left out column 'comment': free text",
    ):
        assert note in done.stderr
    assert hpo("export", "tiny.toml", "--model", "model.npz").returncode == 0
    predictor = load_predictor("model.npz")
    X, y = load_split("tiny.toml")["test"]
    assert predictor.score(X, y) == strict_json(done.stdout)["metrics"]["test_accuracy"]
    assert predictor.feature_names_in_.tolist() == ["age", "city", "since", "newsletter", "spent"]
    # The data frame has the types of pandas, and the file had text.
    shuffled = frame[["spent", "since", "bought", "city", "newsletter", "age"]]
    unseen = shuffled.assign(city=["Paris", *shuffled["city"][1:]], age=None)
    assert predictor.score(shuffled, frame["bought"]) > CHANCE
    assert np.isfinite(predictor.predict_proba(unseen)).all()
