"""Lines that a launch prints about its data."""

from pathlib import Path

import numpy as np
import pytest
from data_files import npz_config, write_npz

from hpo.data.prepared.cache import prepare
from hpo.tuning.banner import banner_lines


@pytest.fixture(autouse=True)
def _own_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path / "data"))


def lines(folder, n=120, **data):
    write_npz(folder, n=n)
    config = npz_config(folder, **data)
    return banner_lines(config, prepare(config))


def test_first_line_has_sizes(tmp_path):
    assert lines(tmp_path)[0].startswith("data own.npz: 84/18/18 rows, 5 features, PCA at 90% of the variance keeps ")
    assert lines(tmp_path, folds=5)[0].startswith("data own.npz: 5 folds of about 82/20 rows, 18 test rows, 5 features")
    repeated = lines(tmp_path, folds=5, repeats=2, split={"test": 20}, pca=0.0)[0]
    assert repeated == "data own.npz: 2 x 5 folds of about 80/20 rows, 20 test rows, 5 features"


def test_windows_of_order_have_range_of_sizes(tmp_path):
    X, y = write_npz(tmp_path)
    np.savez(tmp_path / "own.npz", X=X, y=y, day=np.arange(120))
    config = npz_config(tmp_path, folds=4, order="day", split={"test": 20})
    assert banner_lines(config, prepare(config))[0].startswith("data own.npz: 4 folds of about 20-80/20 rows, 20 test")


FEW = "; these are few, so the best trial is partly luck"


@pytest.mark.parametrize(
    ("n", "keys", "expected"),
    [
        (
            120,
            {},
            f"18 validation rows: one standard error of an accuracy of 0.9 is 0.081{FEW}; data.folds = 5 uses 102 rows",
        ),
        (
            120,
            {"folds": 5, "repeats": 3},
            f"102 validation rows: one standard error of an accuracy of 0.9 is 0.031{FEW}",
        ),
        (2000, {}, "300 validation rows: one standard error of an accuracy of 0.9 is 0.018"),
    ],
)
def test_last_line_has_rows_of_choice(tmp_path, n, keys, expected):
    assert lines(tmp_path, n, **keys)[-1] == f"the choice rests on {expected}"


def test_choice_of_regression_has_error_of_mean(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(Path(tmp_path, "own.npz"), X=rng.normal(size=(2000, 2)), y=rng.normal(size=2000))
    config = npz_config(tmp_path)
    expected = "the choice rests on 300 validation rows: one standard error of a mean over them is 0.06 of a standard "
    assert banner_lines(config, prepare(config))[-1] == f"{expected}deviation"
