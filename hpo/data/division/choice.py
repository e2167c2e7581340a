"""Choice of the division of a study's rows."""

import json
from collections.abc import Iterator
from typing import NoReturn

import numpy as np

from hpo.config.study import StudyConfig
from hpo.data.checks import show_label
from hpo.data.division.base import Array, Division, Rows
from hpo.data.division.grouped import Grouped
from hpo.data.division.ordered import Ordered
from hpo.data.division.stratified import Stratified
from hpo.data.division.values import group_indices, ranks
from hpo.data.sources import Dataset, data_config
from hpo.errors import DataError, StudyFileError
from hpo.utils.text import count_of


def divide(config: StudyConfig, dataset: Dataset, classes: Array | None) -> Division:
    """Return the division of the rows: by their groups, by their order, or at random.

    Args:
        config: The study.
        dataset: The data set.
        classes: The class of each row; None for splits that do not keep the shares of classes.

    Raises:
        StudyFileError: if there are too few groups or values of the order.
        DataError: if a row has no valid group or value.
    """
    if dataset.group is not None:
        groups = group_indices(dataset.group, lambda *row: _refuse(config, dataset, "group", *row))
        _check_number(config, dataset, "group", groups)
        _check_official_test(config, dataset, groups)
        return Grouped(groups, classes, config.study.seed)
    if dataset.order is not None:
        values = ranks(dataset.order, lambda *row: _refuse(config, dataset, "order", *row))
        _check_number(config, dataset, "order", values)
        return Ordered(values)
    return Stratified(classes, config.study.seed)


def min_parts(config: StudyConfig) -> int:
    """Return the number of groups, or of values of the order, that are needed besides those of the test split."""
    data = data_config(config)
    if data.folds is None:
        return 2
    # The training rows of the first fold are before all validation rows.
    return data.folds + (data.order is not None)


def describe_division(config: StudyConfig, dataset: Dataset, test: Rows, validation: Rows) -> Iterator[str]:
    """Describe the splits whose sizes follow from groups or from an order, for messages."""
    if dataset.group is not None:
        yield f"no group of {_key(config, 'group')} is in two splits, so that their sizes are approximate"
    if (order := dataset.order) is not None:
        starts = f"validation from {_show(order[validation[0]])}, test from {_show(order[test[0]])}"
        yield f"ordered by {_key(config, 'order')}: {starts}; rows with the same value are in the same split"


def _show(value: object) -> str:
    """Return a value of the order for a message."""
    if isinstance(value, np.datetime64):
        return str(value.astype("datetime64[s]")).removesuffix("T00:00:00")
    return show_label(value)


def _refuse(config: StudyConfig, dataset: Dataset, key: str, row: int, problem: str) -> NoReturn:
    place = f"row {row}" if dataset.lines is None else f"line {dataset.lines[row]}"
    raise DataError(f"{dataset.name}: {place}, data.{key} = {_key(config, key)}: {problem}")


def _key(config: StudyConfig, key: str) -> str:
    return json.dumps(getattr(data_config(config), key))


def _check_number(config: StudyConfig, dataset: Dataset, key: str, parts: Rows) -> None:
    """Refuse too few groups or values of the order."""
    folds, noun = data_config(config).folds, {"group": "group", "order": "value"}[key]
    required = min_parts(config) + (dataset.test_from is None)
    found = len(np.unique(parts[: dataset.test_from]))
    if found < required:
        what = "train, validation and test" if folds is None else f"{folds} folds and a test split"
        raise StudyFileError(
            f"{config.path}: data.{key}: {_key(config, key)} has {count_of(found, noun)}; {what} need at least "
            f"{required}, because no {noun} is in two of them"
        )


def _check_official_test(config: StudyConfig, dataset: Dataset, groups: Rows) -> None:
    if dataset.test_from is not None and set(groups[: dataset.test_from]) & set(groups[dataset.test_from :]):
        problem = f"{config.path}: data.group: {_key(config, 'group')}"
        raise StudyFileError(f"{problem} has a group that is in the official test set and before it; remove this key")
