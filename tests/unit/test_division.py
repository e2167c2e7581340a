"""Splits and folds of rows at random, by groups and by time."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest
from data_files import error_of, make_config
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hpo.data.division.grouped import Grouped
from hpo.data.division.ordered import Ordered
from hpo.data.division.splits import draw_splits, encode_labels
from hpo.data.division.values import ranks
from hpo.data.sources import Dataset
from hpo.errors import DataError, StudyFileError

N = 120
LABELS = np.array(["a", "b", "c"])[np.arange(N) % 3]
TIMES = [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=day) for day in range(N)]


def draw(labels=LABELS, group=None, order=None, test_from=None, lines=None, seed=0, **data):
    """Return the drawn splits of a data set."""
    keys = {"group": "patient"} if group is not None else {"order": "date"} if order is not None else {}
    config = make_config("own.csv", **keys, **data)
    config = config.model_copy(update={"study": config.study.model_copy(update={"seed": seed})})
    group, order = (None if values is None else np.array(values) for values in (group, order))
    X = np.arange(len(labels), dtype=float)[:, None]
    dataset = Dataset("own.csv", X, np.array(labels), test_from, lines=lines, group=group, order=order)
    return draw_splits(config, dataset, encode_labels(config, dataset))


def flat(folds):
    return [rows.tolist() for fold in folds for rows in fold]


@given(st.integers(2, 6), st.integers(1, 3), st.integers(0, 2**32 - 1), st.booleans())
@settings(deadline=None, max_examples=30)
def test_folds_divide_all_rows_but_test_rows(folds, repeats, seed, classes):
    labels = LABELS if classes else np.linspace(0.1, 1.0, N)
    drawn = draw(labels, folds=folds, repeats=repeats, seed=seed).folds
    assert len(drawn) == folds * repeats
    test = drawn[0].test
    assert len(test) == 18
    rest = sorted(set(range(N)) - set(test.tolist()))
    for repeat in range(repeats):
        chosen = drawn[repeat * folds : (repeat + 1) * folds]
        assert sorted(np.concatenate([fold.validation for fold in chosen]).tolist()) == rest
    for train, validation, own_test in drawn:
        assert (own_test == test).all()
        assert sorted([*train.tolist(), *validation.tolist()]) == rest
        assert abs(len(validation) - len(rest) / folds) < 1
        if classes:
            assert np.ptp(np.unique(LABELS[validation], return_counts=True)[1]) <= 1
    assert flat(drawn) == flat(draw(labels, folds=folds, repeats=repeats, seed=seed).folds)


def test_repeats_and_seeds_have_other_folds():
    first, second = draw(folds=2, repeats=2).folds[::2]
    assert set(first.validation.tolist()) != set(second.validation.tolist())
    other = draw(folds=2, seed=1).folds[0]
    assert set(first.test.tolist()) != set(other.test.tolist())
    assert (draw(folds=2).folds[0].validation == first.validation).all()


def test_folds_keep_test_split():
    assert (draw(folds=5).folds[0].test == draw().folds[0].test).all()
    assert len(draw(folds=5, split={"test": 30}).folds[0].test) == 30
    for n in (15, 25, 45, 105):
        with_folds, without = (draw(LABELS[:n], split={"test": 0.1}, **keys) for keys in ({"folds": 2}, {}))
        assert with_folds.folds[0].test.tolist() == without.folds[0].test.tolist()
    assert len(draw(folds=5, split={"test": 0.5}).folds[0].test) == 60


def test_folds_use_rows_before_official_test_set():
    for train, validation, test in draw(folds=4, test_from=100, split={"test": 20}).folds:
        assert sorted([*train, *validation]) == list(range(100))
        assert min(test) >= 100


GROUPS = st.lists(st.integers(0, 11), min_size=40, max_size=80)


@given(GROUPS, st.sampled_from([None, 2, 3]), st.integers(0, 2**32 - 1), st.booleans())
@settings(deadline=None, max_examples=60)
def test_no_group_is_in_two_splits(groups, folds, seed, official):
    test_from = 30 if official else None
    if official:
        groups = [group + 12 * (row >= 30) for row, group in enumerate(groups)]
    assume(len(set(groups[:test_from])) >= 5)
    split = {"test": 10} if folds else {}
    split |= {"train": 20, "validation": 8, "test": 10} if official and not folds else {}
    labels = np.random.default_rng(0).normal(size=len(groups))
    for fold in draw(labels, group=groups, folds=folds, seed=seed, split=split, test_from=test_from).folds:
        sets = [{groups[row] for row in rows} for rows in fold]
        assert all(sets)
        assert sum(map(len, sets)) == len(set.union(*sets))
        if folds:
            used = {row for rows in fold[:2] for row in rows.tolist()}
            assert len(used) == (30 if official else len(groups) - len(fold.test))


def test_groups_give_about_wanted_sizes_and_shares():
    groups = np.repeat(np.arange(60), 2)
    drawn = draw(group=groups).folds[0]
    assert [len(rows) for rows in drawn] == [84, 18, 18]
    for rows in drawn:
        assert np.ptp(np.unique(LABELS[rows], return_counts=True)[1]) <= 4


def test_folds_of_groups_are_stratified():
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 2, 40).repeat(3)
    for train, validation in Grouped(np.arange(40).repeat(3), classes, 0).folds(np.arange(N), 4, 1):
        assert abs(classes[train].mean() - classes[validation].mean()) < 0.1


ORDERS = st.lists(st.integers(0, 30), min_size=40, max_size=80)


@given(ORDERS, st.sampled_from([None, 2, 4]), st.booleans())
@settings(deadline=None, max_examples=60)
def test_splits_follow_time(order, folds, official):
    test_from = 30 if official else None
    assume(len(set(order[:test_from])) >= 6)
    labels = np.random.default_rng(0).normal(size=len(order))
    split = {"test": 10} if folds or official else {}
    split |= {"train": 20, "validation": 8, "test": 10} if official and not folds else {}
    trains = []
    for train, validation, test in draw(labels, order=order, folds=folds, split=split, test_from=test_from).folds:
        assert max(order[row] for row in train) < min(order[row] for row in validation)
        if not official:
            assert max(order[row] for row in validation) < min(order[row] for row in test)
        trains.append(set(train.tolist()))
    assert all(first < second for first, second in pairwise(trains))


def test_distinct_times_give_wanted_sizes():
    order = np.random.default_rng(0).permutation(N)
    train, validation, test = draw(order=order).folds[0]
    assert [len(train), len(validation), len(test)] == [84, 18, 18]
    assert sorted(order[test]) == list(range(102, 120))
    assert sorted(order[validation]) == list(range(84, 102))
    sizes = [(len(fold.train), len(fold.validation)) for fold in draw(order=order, folds=5).folds]
    assert sizes == [(17, 17), (34, 17), (51, 17), (68, 17), (85, 17)]


def test_unused_rows_of_time_order_are_oldest():
    order = np.arange(N)[::-1]
    drawn = draw(order=order, split={"train": 50, "validation": 10, "test": 10})
    assert sorted(order[drawn.folds[0].train]) == list(range(50, 100))
    assert drawn.notes[0].startswith("50 of 120 rows are unused")


def test_notes_name_first_values_of_splits():
    notes = draw(order=[time.date().isoformat() for time in TIMES]).notes
    assert notes == (
        "ordered by \"date\": validation from '2024-03-25', test from '2024-04-12'; "
        "rows with the same value are in the same split",
    )
    for unit in ("us", "ns"):
        order = np.array([time.replace(tzinfo=None) for time in TIMES], f"datetime64[{unit}]")
        assert 'ordered by "date": validation from 2024-03-25, test from 2024-04-12;' in draw(order=order).notes[0]
        assert "validation from 2024-03-25T08:00:00, test" in draw(order=order + np.timedelta64(8, "h")).notes[0]
    assert draw(group=np.arange(N)).notes == (
        'no group of "patient" is in two splits, so that their sizes are approximate',
    )


@given(st.lists(st.integers(0, N - 1), min_size=2, max_size=30))
def test_numbers_and_times_have_ranks_of_their_order(values):
    expected = np.unique(values, return_inverse=True)[1].tolist()
    days = [TIMES[value] for value in values]
    naive = [day.replace(tzinfo=None) for day in days]
    for column in (
        np.array(values),
        np.array([f" {value}" for value in values]),
        np.array([f"{value}.5" for value in values]),
        np.array([str(value + 10**18) for value in values]),
        np.array([day.date().isoformat() for day in days]),
        np.array([day.isoformat() for day in days]),
        np.array(naive, "datetime64[s]"),
        np.array(days, object),
    ):
        assert ranks(column, error_of).tolist() == expected


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (["1", "", "3", "nan"], 'line 11, data.order = "date": the value is missing (2 in all); fill in or remove '),
        ([1.0, 2.0, np.nan, 4.0], 'line 12, data.order = "date": the value is missing (1 in all); fill in or remove'),
        (np.array(["2024-01-01", "NaT"], "M8[D]").repeat(2), 'line 12, data.order = "date": the value is missing (2 '),
        (["1", "2", "3", "x"], "line 13, data.order = \"date\": 'x' is neither a number nor a time such as 2024-01-31"),
        (["2024-01-31", "1.2.2024", "1", "2"], "line 11, data.order = \"date\": '1.2.2024' is neither a number nor a"),
        (
            ["2024-01-31T08:00", "2024-01-31T08:00Z", "2024-01-31T08:00", "2024-01-31T09:00"],
            "line 11, data.order = \"date\": '2024-01-31T08:00Z' cannot be compared, because only some of the times",
        ),
    ],
)
def test_invalid_order_names_row(values, problem):
    message = error_of(
        draw, [0, 1, 0, 1], order=values, lines=np.arange(10, 14), split={"train": 2, "validation": 1, "test": 1}
    )
    assert message.startswith(f"own.csv: {problem}")


def test_missing_group_names_row():
    message = error_of(draw, group=["a", *[""] * (N - 1)])
    assert message == 'own.csv: row 1, data.group = "patient": the value is missing (119 in all); give each row a group'


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"group": ["a"] * N},
            'data.group: "patient" has 1 group; train, validation and test need at least 3, because no group is in two '
            "of them",
        ),
        (
            {"group": ["a", "b", "c"] * 40, "folds": 3},
            'data.group: "patient" has 3 groups; 3 folds and a test split need at least 4, because no group is in two '
            "of them",
        ),
        (
            {"order": [7] * N},
            'data.order: "date" has 1 value; train, validation and test need at least 3, because no value is in two of '
            "them",
        ),
        (
            {"order": [7, 8, 9] * 40, "folds": 2},
            'data.order: "date" has 3 values; 2 folds and a test split need at least 4, because no value is in two of '
            "them",
        ),
        (
            {"labels": LABELS[:9], "folds": 9},
            "data.folds: 9 folds need 9 rows, and 8 are not in the test split; at most 8 are allowed",
        ),
        (
            {"labels": ["a", "b"] * 58 + ["c"] * 5, "folds": 5},
            "data.folds: 5 folds need 5 rows of each class, and class 'c' has 4 outside of the test split; set "
            "data.folds = 4, or remove or rename the rows of this class",
        ),
        (
            {"group": np.arange(N) % 50, "test_from": 60, "folds": 5},
            'data.group: "patient" has a group that is in the official test set and before it; remove this key',
        ),
    ],
)
def test_impossible_division_is_refused(keys, message):
    assert error_of(draw, **keys, error=StudyFileError) == f"study.toml: {message}"


def test_training_rows_of_one_class_are_refused():
    message = error_of(draw, ["a"] * 60 + ["b"] * 60, order=np.arange(N), folds=5, error=DataError)
    assert message == (
        "own.csv: all 17 training rows of fold 1 have the class 'a'; "
        "at least two classes are required; add rows of other classes"
    )


def test_equal_times_are_not_divided():
    rows = np.arange(10)
    drawn, rest = Ordered(np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])).draw(rows, 5, 1)
    assert (drawn.tolist(), rest.tolist()) == ([4, 5, 6, 7, 8, 9], [0, 1, 2, 3])
