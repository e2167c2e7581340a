"""Check of the gradients for the paper against PyTorch's autograd."""

import pytest
from experiment_fakes import FakeRunner

from hpo.paper.experiments import RUN
from hpo.paper.gradients import gradient_errors

pytest.importorskip("torch", reason="no PyTorch: pip install 'hpo[torch]'")


@pytest.mark.parametrize("sizes", [(4, 10, 3), (3, 6, 5, 4, 3)])
def test_gradients_match_autograd(sizes):
    assert max(gradient_errors(sizes)["autograd"].values()) < 1e-12


def test_row_has_errors_of_autograd():
    (row,) = RUN["gradients"](FakeRunner())
    assert row.published and row.method
    assert row.ours.count("autograd") == 1
