"""Check of the gradients for the paper."""

import numpy as np
import pytest

from hpo.models.nets.mlp import MLP
from hpo.paper.gradients import gradient_errors

DEEP = (3, 6, 5, 4, 3)


@pytest.fixture(autouse=True)
def _without_torch(monkeypatch):
    # The import of PyTorch takes seconds.
    monkeypatch.setattr("hpo.paper.gradients.is_installed", lambda package: False)


@pytest.mark.parametrize("sizes", [(4, 10, 3), DEEP])
def test_gradients_match_central_differences(sizes):
    errors = gradient_errors(sizes)["differences"]
    assert list(errors) == [f"{letter}{layer}" for layer in range(1, len(sizes)) for letter in "Wb"]
    assert max(errors.values()) < 1e-6


def test_autograd_is_left_out_without_torch():
    assert list(gradient_errors()) == ["differences"]


@pytest.mark.parametrize("parameter", ["W1", "b1", "W2", "b2"])
def test_wrong_formula_raises_error_of_its_parameter(parameter, monkeypatch):
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
