"""Training, validation and test split of a data set."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpo.config.loader import find_study, load_config
from hpo.config.study import DataConfig, SplitConfig, StudyConfig
from hpo.data.checks import are_decimals, check_classes, show_label
from hpo.data.division.base import Division, Drawn, Rows
from hpo.data.division.choice import describe_division, divide, min_parts
from hpo.data.division.stratified import Stratified
from hpo.data.metrics import METRICS, TaskName
from hpo.data.prepared.folders import translate_disk_errors
from hpo.data.sources import Array, Dataset, data_config, find_source
from hpo.data.task import TASKS, Task
from hpo.errors import DataError, StudyFileError


class Split(NamedTuple):
    """Model inputs and targets of one split.

    The last column of the inputs is the constant 1 for the bias. The n examples may be followed by augmented copies of
    all examples in the same order. X then has a multiple of n rows.

    Attributes:
        X: The inputs, float32 (n, k + 1).
        y: The targets (n,): intp indices of the classes, or float64 numbers.
    """

    X: NDArray[np.float32]
    y: Array

    @property
    def features(self) -> NDArray[np.float32]:
        """Inputs (n, k) without augmented copies and without the constant."""
        return self.X[: len(self.y), :-1]


class SplitSizes(NamedTuple):
    """Number of rows in each split."""

    train: int
    validation: int
    test: int


class SplitIndices(NamedTuple):
    """Row numbers of each split."""

    train: NDArray[np.intp]
    validation: NDArray[np.intp]
    test: NDArray[np.intp]


class Draw(NamedTuple):
    """Splits of a data set.

    Attributes:
        folds: The rows of each split in each fold; a single fold without cross-validation.
        notes: The guesses about the splits, for messages.
        reading: The ways in which earlier versions of hpo did not draw the splits.
    """

    folds: tuple[SplitIndices, ...]
    notes: tuple[str, ...]
    reading: tuple[str, ...]


class EncodedLabels(NamedTuple):
    """Labels of a data set as the task encodes them.

    Attributes:
        task: The task.
        y: The targets (n,).
        classes: The classes, empty without classes.
    """

    task: Task
    y: Array
    classes: Array


def load_split(study: str) -> dict[str, tuple[Array, Array]]:
    """Load the raw splits of a study by its name or by the path of its study file.

    Returns:
        Raw features (n, d) and original labels (n,) by "train", "validation" and "test". The features are a data frame
        if the data are a table with other columns than numbers, or with missing values.

    Raises:
        StudyFileError: if the study file is missing or invalid.
        DataError: if the data are missing or unusable.
    """
    return raw_splits(load_config(find_study(study)))


def raw_splits(config: StudyConfig) -> dict[str, tuple[Array, Array]]:
    """Load the raw splits of the first fold of a study, for example to check an exported predictor.

    Returns:
        Raw features (n, d) and original labels (n,) by "train", "validation" and "test". The features are a data frame
        if the data are a table with other columns than numbers, or with missing values.

    Raises:
        StudyFileError: if the data set or the split is not allowed.
        DataError: if the data are missing or unusable.
    """
    with translate_disk_errors():
        dataset = find_source(config).load()
    indices = draw_splits(config, dataset, encode_labels(config, dataset)).folds[0]
    schema = dataset.schema
    return {
        name: (dataset.X[rows] if schema is None else schema.frame(dataset.X[rows]), dataset.labels[rows])
        for name, rows in indices._asdict().items()
    }


def join_splits(folds: Sequence[SplitIndices]) -> SplitIndices:
    """Return a training split with the rows of all training and validation splits, and an empty validation split."""
    rows = np.unique(np.concatenate([indices for fold in folds for indices in (fold.train, fold.validation)]))
    return SplitIndices(rows, rows[:0], folds[0].test)


def encode_labels(config: StudyConfig, dataset: Dataset) -> EncodedLabels:
    """Encode the labels of a data set for the task of a study.

    Raises:
        DataError: if the task cannot use the labels, or if there are too many classes.
    """
    task = _find_task(config, dataset)
    try:
        labels = EncodedLabels(task, *task.encode(dataset.labels))
    except ValueError as error:
        raise DataError(f"{dataset.name}: {error}") from None
    if len(labels.classes):
        # An archive has no other labels than y.
        is_chosen = data_config(config).label is not None or not dataset.is_table
        check_classes(dataset, labels.classes, is_chosen, is_task_given=data_config(config).task is not None)
    return labels


def named_task(config: StudyConfig) -> TaskName | None:
    """Return the task that a study file names by itself or by its metric, None if the labels decide."""
    if (name := data_config(config).task) is not None:
        return name
    metric = METRICS.get(config.study.metric or "")
    return None if metric is None else metric.task


def _find_task(config: StudyConfig, dataset: Dataset) -> Task:
    return TASKS[named_task(config) or ("regression" if are_decimals(dataset.labels) else "classification")]


def draw_splits(config: StudyConfig, dataset: Dataset, labels: EncodedLabels) -> Draw:
    """Draw the splits of a study from the rows of its data set.

    Raises:
        StudyFileError: if the data set has too few rows, groups or times.
        DataError: if a row has no valid group or time, or if a training split has one class.
    """
    sizes = split_sizes(config, len(labels.y), dataset.test_from)
    division = divide(config, dataset, labels.task.stratify(labels.y))
    folds = tuple(_draw_folds(config, sizes, dataset.test_from, division, labels))
    for number, fold in enumerate(folds):
        _check_classes(dataset, labels, fold, f" of fold {number + 1}" if len(folds) > 1 else "")
    unused = len(labels.y) - len(np.unique(np.concatenate([rows for fold in folds for rows in fold])))
    notes = [f"{unused} of {len(labels.y)} rows are unused; data.split with fractions that add up to 1.0 uses all"] * (
        unused > 0
    )
    if isinstance(division, Stratified):
        reading = ("stratified without small classes",) * division.is_partial
        return Draw(folds, (*notes, *division.notes), reading)
    return Draw(folds, (*notes, *describe_division(config, dataset, folds[0].test, folds[0].validation)), ())


def _draw_folds(
    config: StudyConfig, sizes: SplitSizes, test_from: int | None, division: Division, labels: EncodedLabels
) -> Iterator[SplitIndices]:
    data, n_rows = data_config(config), len(labels.y)
    if data.folds is None:
        yield _split_rows(n_rows, sizes, test_from, division)
        return
    test, rest = _draw_test(n_rows, sizes, test_from, division, min_parts(config))
    if isinstance(division, Stratified):
        _check_folds(config, labels, rest, data.folds)
    for train, validation in division.folds(rest, data.folds, data.repeats):
        yield SplitIndices(train, validation, test)


def _check_folds(config: StudyConfig, labels: EncodedLabels, rows: Rows, n_folds: int) -> None:
    """Refuse more folds than there are rows, or rows of a class."""
    problem = f"{config.path}: data.folds: {n_folds} folds need {n_folds} rows"
    if len(rows) < n_folds:
        raise StudyFileError(f"{problem}, and {len(rows)} are not in the test split; at most {len(rows)} are allowed")
    if len(labels.classes):
        counts = np.bincount(labels.y[rows], minlength=len(labels.classes))
        if (count := int(counts.min())) < n_folds:
            name = show_label(labels.classes[counts.argmin()])
            fewer = f"set data.folds = {count}, or " if count > 1 else ""
            raise StudyFileError(
                f"{problem} of each class, and class {name} has {count} outside of the test split; {fewer}"
                "remove or rename the rows of this class"
            )


def _check_classes(dataset: Dataset, labels: EncodedLabels, fold: SplitIndices, of_fold: str) -> None:
    """Refuse training rows of a single class."""
    if len(labels.classes) and len(found := np.unique(labels.y[fold.train])) < 2:
        name = show_label(labels.classes[found[0]])
        raise DataError(
            f"{dataset.name}: all {len(fold.train)} training rows{of_fold} have the class {name}; "
            "at least two classes are required; add rows of other classes"
        )


def split_sizes(config: StudyConfig, n_rows: int, test_from: int | None) -> SplitSizes:
    """Return the number of rows in each split.

    Fractions refer to all rows. They use all rows if they add up to 1. With folds, the size of the test split is given,
    and train and validation are those of an average fold.

    Args:
        config: The study, which has the counts or the fractions.
        n_rows: The number of rows of the data set.
        test_from: The first row of the official test set, if there is one.

    Raises:
        StudyFileError: if the data set has too few rows.
    """
    data = data_config(config)
    sizes = _count_rows(data.split, n_rows) if data.folds is None else _count_fold(data, n_rows, test_from)
    counts = ", ".join(f"{name} = {size}" for name, size in sizes._asdict().items())
    problem = f"{config.path}: data.split: {counts} rows"
    if min(sizes) < 1:
        raise StudyFileError(f"{problem} of {n_rows}; at least 1 each is required")
    if test_from is None and sum(sizes) > n_rows:
        raise StudyFileError(f"{problem}; at most {n_rows} together are allowed")
    if test_from is not None and (sizes.train + sizes.validation > test_from or sizes.test > n_rows - test_from):
        raise StudyFileError(
            f"{problem}; at most {test_from} together are allowed for train and validation, "
            f"and {n_rows - test_from} for test, because the data set has an official test set"
        )
    return sizes


def _count_fold(data: DataConfig, n_rows: int, test_from: int | None) -> SplitSizes:
    """Return the sizes of an average fold, whose train and validation use all rows but the test rows."""
    assert data.folds is not None
    # The test split is that of the study without folds.
    test = data.split.test if isinstance(data.split.test, int) else _count_rows(data.split, n_rows).test
    rest = n_rows - test if test_from is None else test_from
    # The folds of an order have one window more, the training rows of the first fold.
    validation = max(1, rest // (data.folds + (data.order is not None)))
    return SplitSizes(rest - validation, validation, test)


def _count_rows(split: SplitConfig, n_rows: int) -> SplitSizes:
    sizes = (split.train, split.validation, split.test)
    if isinstance(split.train, int):
        return SplitSizes(*map(int, sizes))
    ends = np.rint(np.cumsum(sizes) * n_rows).astype(int)
    return SplitSizes(*np.diff(ends, prepend=0).tolist())


def split_indices(
    n_rows: int, sizes: SplitSizes, seed: int, test_from: int | None = None, groups: Array | None = None
) -> SplitIndices:
    """Draw the rows of each split at random.

    The test split is drawn first, so that it stays the same if validation rows become training rows.

    Args:
        n_rows: The number of rows of the data set.
        sizes: The number of rows in each split.
        seed: The seed.
        test_from: The first row of the official test set. The test split is drawn from it, the other splits from the
            rows before it.
        groups: The group of each row (n_rows,). Each split has its share of each group that is large enough.
    """
    return _split_rows(n_rows, sizes, test_from, Stratified(groups, seed))


def _split_rows(n_rows: int, sizes: SplitSizes, test_from: int | None, division: Division) -> SplitIndices:
    test, rest = _draw_test(n_rows, sizes, test_from, division, min_left=2)
    validation, rest = division.draw(rest, sizes.validation, 1)
    # Groups and equal times can leave fewer or more rows than the training split has.
    uses_all = sizes.train + sizes.validation == (n_rows - sizes.test if test_from is None else test_from)
    train, _ = division.draw(rest, len(rest) if uses_all else min(sizes.train, len(rest)), 0)
    return SplitIndices(train, validation, test)


def _draw_test(n_rows: int, sizes: SplitSizes, test_from: int | None, division: Division, min_left: int) -> Drawn:
    """Draw the test rows; return them and the rows for the other splits."""
    rows = np.arange(n_rows)
    if test_from is None:
        return division.draw(rows, sizes.test, min_left)
    return Drawn(division.draw(rows[test_from:], sizes.test, 0).drawn, rows[:test_from])
