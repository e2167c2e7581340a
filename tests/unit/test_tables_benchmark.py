"""Study files and the output of ``benchmarks.tables``."""

import json

import numpy as np
import pandas as pd
import pytest

from benchmarks import tables
from benchmarks.table_data import LABEL, TABLES, Table
from benchmarks.table_models import make, names
from benchmarks.tables import CONTESTANTS, OURS, Cell, Limits, markdown, measure
from hpo.config.loader import load_config
from hpo.models.kinds.registry import check_models

RNG = np.random.default_rng(0)


def small_table(task="classification", **options):
    """Return a table of 60 rows with a number and a text, of which the first determines the label."""
    number = RNG.normal(size=60).round(3)
    label = (number > 0).astype(int) if task == "classification" else number
    rows = pd.DataFrame({"number": number, "text": np.tile(["a", "b"], 30), LABEL: label})
    return Table("small", lambda: rows, task, **options)


@pytest.fixture(autouse=True)
def _own_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path / "data"))


@pytest.mark.parametrize("contestant", OURS)
@pytest.mark.parametrize("name", TABLES)
def test_study_files_are_valid(name, contestant, tmp_path):
    table = Table(name, small_table().load, TABLES[name].task, data=TABLES[name].data, net=TABLES[name].net)
    config = load_config(Cell(table, 3, tmp_path).study_file(contestant))
    check_models(config, table.task)
    assert config.study.seed == 3
    prefix = {"hpo mlp": "", "hpo both": "mlp."}.get(contestant)
    for key, ends in table.net.items() if prefix is not None else ():
        assert config.space[prefix + key].ends == (ends["low"], ends["high"])


def test_all_contestants_have_same_test_rows(tmp_path):
    cell = Cell(small_table(), 0, tmp_path)
    assert sorted([*cell.train_rows, *cell.splits.test]) == list(range(60))
    rows = [Cell(small_table(), seed, tmp_path).splits.test.tolist() for seed in (0, 1)]
    assert rows[0] == cell.splits.test.tolist()
    assert rows[0] != rows[1]


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_default_of_each_model_is_fitted(task, tmp_path):
    cell = Cell(small_table(task), 0, tmp_path)
    record = measure(cell, "linear", Limits(1, 1), [])
    assert record["value"] > 0.8
    assert (record["metric"], record["seconds"]) == (cell.table.metric, None)
    assert [type(make(name, task, 0)[-1]).__name__[:3] for name in names(100)] == [
        "Log" if task == "classification" else "Rid",
        "Ran",
        "His",
        "SVC" if task == "classification" else "SVR",
        "MLP",
    ]


def test_large_table_has_no_svm():
    assert "svm" in names(20_000)
    assert "svm" not in names(20_001)


def record(contestant, seed, value):
    return {"table": "iris", "contestant": contestant, "seed": seed, "value": value}


def test_markdown_marks_best_and_equal_means():
    values = {"hpo mlp": [0.9, 1.0], "optuna": [0.9, 0.9], "linear": [0.5, 0.5], "svm": [None, 0.75]}
    records = [record(name, seed, value) for name, found in values.items() for seed, value in enumerate(found)]
    assert markdown(records).splitlines() == [
        "| table (metric) | hpo mlp | optuna | linear | svm |",
        "| --- | --- | --- | --- | --- |",
        "| iris (accuracy) | **0.950 ± 0.050** | *0.900 ± 0.000* | 0.500 ± 0.000 | 0.750 (1 seed) |",
    ]


def test_known_results_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "measure", lambda cell, contestant, *_: record(contestant, cell.seed, 0.5))
    monkeypatch.setattr(tables, "TABLES", {"iris": small_table()})
    cell, known = Cell(small_table(), 0, tmp_path), [record("linear", 0, 0.9) | {"table": "small"}]
    measured = [found["contestant"] for found in tables._measure_missing(cell, CONTESTANTS, Limits(1, 1), known)]
    assert measured == [name for name in CONTESTANTS if name != "linear"]


def test_study_file_is_toml(tmp_path):
    net = {"epochs": {"low": 1, "high": 2}}
    text = Cell(small_table(net=net), 0, tmp_path).study_file("hpo both").read_text()
    assert "mlp = {epochs = {low = 1, high = 2}}" in text
    assert json.dumps(str(tmp_path / "small.csv")) in text
