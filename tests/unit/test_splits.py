"""Sizes and rows of the splits."""

import numpy as np
import pytest
from data_files import error_of, make_config
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo.data.division.splits import SplitSizes, load_split, raw_splits, split_indices, split_sizes
from hpo.errors import DataError, StudyFileError

SPLITS = ("train", "validation", "test")


@st.composite
def draws(draw):
    """Draw groups, sizes, seed and the first official test row of possible splits. Groups can be too small."""
    n = draw(st.integers(3, 60))
    groups = np.array(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), np.intp)
    test_from = draw(st.none() | st.integers(2, n - 1))
    test = draw(st.integers(1, n - (test_from or 2)))
    validation = draw(st.integers(1, (test_from or n - test) - 1))
    train = draw(st.integers(1, (test_from or n - test) - validation))
    return groups, SplitSizes(train, validation, test), draw(st.integers(0, 2**32 - 1)), test_from


def indices_of(case, stratified=True):
    groups, sizes, seed, test_from = case
    return split_indices(len(groups), sizes, seed, test_from, groups if stratified else None)


def config_of(**split):
    return make_config("digits", split=split)


@given(draws(), st.booleans())
@settings(deadline=None)
def test_splits_are_disjoint_and_repeatable(case, stratified):
    groups, sizes, _, _ = case
    indices = indices_of(case, stratified)
    assert SplitSizes(*map(len, indices)) == sizes
    rows = np.concatenate(indices)
    assert len(set(rows.tolist())) == sum(sizes)
    assert rows.min() >= 0
    assert rows.max() < len(groups)
    for first, second in zip(indices, indices_of(case, stratified), strict=True):
        assert (first == second).all()


@given(draws().filter(lambda case: case[3] is not None))
@settings(deadline=None)
def test_official_test_set_is_only_test_split(case):
    train, validation, test = indices_of(case)
    assert test.min() >= case[3]
    assert max(train.max(), validation.max()) < case[3]


@given(st.lists(st.integers(12, 40), min_size=2, max_size=4), st.integers(0, 2**32 - 1), st.booleans())
@settings(deadline=None)
def test_split_has_share_of_each_group(counts, seed, all_rows):
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    n = len(groups)
    sizes = SplitSizes(n - 2 * (n // 4), n // 4, n // 4) if all_rows else SplitSizes(n // 2, n // 6, n // 6)
    indices = split_indices(n, sizes, seed, groups=groups)
    shares = np.array(counts) / n
    # Each split is drawn from the rows that the previous draw left, so rounding errors add up.
    for rounding, rows in enumerate((indices.test, indices.validation, indices.train), start=1):
        drawn = np.bincount(groups[rows], minlength=len(counts))
        assert np.abs(drawn - shares * len(rows)).max() <= rounding


def test_seed_changes_each_split():
    sizes = SplitSizes(60, 20, 20)
    groups = np.arange(100) % 2
    for first, second in zip(*(split_indices(100, sizes, seed, groups=groups) for seed in (0, 1)), strict=True):
        assert (first != second).any()


def test_test_split_is_independent_of_validation_size():
    groups = np.arange(100) % 3
    before = split_indices(100, SplitSizes(60, 20, 20), 0, groups=groups).test
    assert (split_indices(100, SplitSizes(70, 10, 20), 0, groups=groups).test == before).all()


@given(
    st.integers(20, 10_000),
    st.sampled_from([(0.7, 0.15, 0.15), (0.8, 0.1, 0.1), (0.34, 0.33, 0.33), (0.5, 0.2, 0.1)]),
)
def test_fractions_refer_to_all_rows(n, fractions):
    sizes = split_sizes(config_of(**dict(zip(SPLITS, fractions, strict=True))), n, None)
    assert np.abs(np.array(sizes) - np.array(fractions) * n).max() <= 1
    assert sum(sizes) <= n
    if sum(fractions) == pytest.approx(1):
        assert sum(sizes) == n


@pytest.mark.parametrize(
    ("split", "test_from", "expected"),
    [
        ({"train": 80, "validation": 11, "test": 10}, None, "; at most 100 together are allowed"),
        ({"train": 80, "validation": 1, "test": 1}, 80, "; at most 80 together are allowed for train and validation, "),
        ({"train": 1, "validation": 1, "test": 21}, 80, "and 20 for test, because the data set has an official test"),
        ({"train": 0.99, "validation": 0.004, "test": 0.004}, None, " of 100; at least 1 each is required"),
    ],
)
def test_too_large_split_is_refused(split, test_from, expected):
    message = error_of(split_sizes, config_of(**split), 100, test_from, error=StudyFileError)
    assert message.startswith("study.toml: data.split: train = ")
    assert expected in message


def test_raw_rows_keep_their_labels(tmp_path):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(120, 5)), rng.integers(0, 3, 120)
    np.savez("own.npz", X=X, y=y)
    label_of = {row.tobytes(): label for row, label in zip(X, y, strict=True)}
    splits = raw_splits(make_config("own.npz"))
    assert sorted(splits) == sorted(SPLITS)
    for rows, labels in splits.values():
        assert [label_of[row.tobytes()] for row in rows] == labels.tolist()


def test_load_split_finds_study_by_name():
    splits = load_split("digits")
    assert [len(splits[name][0]) for name in SPLITS] == [1197, 300, 300]


def test_raw_rows_of_missing_file_are_refused():
    assert "no file" in error_of(raw_splits, make_config("own.npz"), error=DataError)
