"""Scoring of a saved net in another process."""

import pytest
from experiment_fakes import FakeRunner

from hpo.paper.experiments import saved


@pytest.mark.parametrize(("accuracy", "remark"), [(0.6, "the same to the last digit"), (0.5, "they differ by +0.09")])
def test_saved_net_is_scored_in_new_process(accuracy, remark):
    (row,) = saved(FakeRunner(test_accuracy=accuracy))
    assert row.experiment and row.published and row.method
    assert row.ours == f"test accuracy {accuracy} when saved, 0.6 when loaded"
    assert row.remark.startswith(remark)
    assert "trial 5 of `cifar10_deep`" in row.method
