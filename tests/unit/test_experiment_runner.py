"""Variants of a study, and its training time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.config.loader import find_study, load_config, with_overrides
from hpo.config.study import StudyConfig
from hpo.models.nets.hyperparameters import max_epochs
from hpo.paper.runner import busy_seconds, quick_version

SHIPPED = ["cifar10_random_grid", "cifar10_raw", "cifar10_deep"]


def shipped(name):
    return load_config(find_study(name))


@pytest.mark.parametrize("name", ["toy", *SHIPPED])
def test_study_without_changes_is_its_file(name):
    assert with_overrides(shipped(name), name, {}) == shipped(name)
    assert with_overrides(shipped(name), name, {}).settings() == shipped(name).settings()


def test_changes_apply_to_their_tables():
    before = shipped("cifar10_deep")
    after = with_overrides(before, "other", {"trials": 3, "backend": "torch"})
    assert (after.study.name, after.study.trials, after.train["backend"]) == ("other", 3, "torch")
    assert (after.space, after.data) == (before.space, before.data)
    assert "backend" not in before.train


@pytest.mark.parametrize("name", SHIPPED)
def test_quick_version_is_small_and_has_other_name(name):
    before, after = shipped(name), quick_version(shipped(name))
    assert after.study.name == f"{name}_quick"
    assert 1 <= after.study.trials <= before.study.trials
    assert 1 <= max_epochs(after) <= max_epochs(before) / 4
    assert after.data.split.train < before.data.split.train
    assert after.settings().keys() == before.settings().keys()
    assert StudyConfig.model_validate(after.model_dump() | {"path": after.path}) == after


spans = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)).map(lambda span: (span[0], sum(span))))


@given(spans)
def test_time_of_parallel_trials_is_counted_once(spans):
    assert busy_seconds(spans) == len({second for start, end in spans for second in range(start, end)})
