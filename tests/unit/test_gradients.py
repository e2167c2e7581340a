"""The gradients derived by hand, beside those of others."""

from importlib.util import find_spec

import numpy as np
import pytest

from hpo.models.mlp import MLP
from hpo.paper.gradients import gradient_errors

DEEP = (3, 6, 5, 4, 3)


@pytest.mark.parametrize("sizes", [(4, 10, 3), DEEP])
def test_every_formula_is_that_of_finite_differences(sizes):
    errors = gradient_errors(sizes)["differences"]
    assert list(errors) == [f"{letter}{layer}" for layer in range(1, len(sizes)) for letter in "Wb"]
    assert max(errors.values()) < 1e-6


@pytest.mark.skipif(find_spec("torch") is None, reason="no PyTorch: pip install 'hpo[torch]'")
@pytest.mark.parametrize("sizes", [(4, 10, 3), DEEP])
def test_every_formula_is_that_of_autograd(sizes):
    assert max(gradient_errors(sizes)["autograd"].values()) < 1e-12


def test_without_pytorch_there_is_no_autograd(monkeypatch):
    monkeypatch.setattr("hpo.paper.gradients.has_torch", lambda: False)
    assert list(gradient_errors()) == ["differences"]


@pytest.mark.parametrize("parameter", ["W1", "b1", "W2", "b2"])
def test_a_wrong_formula_shows_where_it_is(parameter, monkeypatch):
    right = MLP.step

    def wrong(network, *arguments):
        before = network.state()
        cross_entropy = right(network, *arguments)
        array = dict(zip("Wb", (network.weights, network.biases), strict=True))[parameter[0]][int(parameter[1]) - 1]
        array += 1e-3 * np.linalg.norm(network.state() - before)
        return cross_entropy

    monkeypatch.setattr(MLP, "step", wrong)
    errors = gradient_errors()["differences"]
    assert {name for name, error in errors.items() if error > 1e-6} == {parameter}
