"""How a study becomes another one, and how long it took."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.config.study import find_study, load_config
from hpo.paper.runner import covered, derived, quick_version

SHIPPED = ["cifar10_random_grid", "cifar10_raw", "cifar10_deep"]


def shipped(name):
    return load_config(find_study(name))


@pytest.mark.parametrize("name", ["toy", *SHIPPED])
def test_without_a_change_a_study_is_the_one_of_its_file(name):
    assert derived(shipped(name), name, {}) == shipped(name)
    assert derived(shipped(name), name, {}).settings() == shipped(name).settings()


def test_changes_go_where_they_belong():
    before = shipped("cifar10_deep")
    after = derived(before, "other", {"trials": 3, "backend": "torch"})
    assert (after.study.name, after.study.trials, after.train["backend"]) == ("other", 3, "torch")
    assert (after.space, after.data) == (before.space, before.data)
    assert "backend" not in before.train


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shortened_study_is_a_small_one_of_another_name(name):
    before, after = shipped(name), quick_version(shipped(name))
    assert after.study.name == f"{name}_quick"
    assert 1 <= after.study.trials <= before.study.trials
    assert 1 <= after.max_epochs <= before.max_epochs / 4
    assert after.data.split.train < before.data.split.train
    assert after.settings().keys() == before.settings().keys()
    assert after.model_validate(after.model_dump()) == after


spans = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)).map(lambda span: (span[0], sum(span))))


@given(spans)
def test_time_is_counted_once_however_many_trials_were_on_their_way(spans):
    assert covered(spans) == len({second for start, end in spans for second in range(start, end)})
