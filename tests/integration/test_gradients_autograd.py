"""Check of the gradients for the paper against PyTorch's autograd."""

import pytest

from hpo.paper.gradients import gradient_errors

pytest.importorskip("torch", reason="no PyTorch: pip install 'hpo[torch]'")


@pytest.mark.parametrize("sizes", [(4, 10, 3), (3, 6, 5, 4, 3)])
def test_gradients_match_autograd(sizes):
    assert max(gradient_errors(sizes)["autograd"].values()) < 1e-12
