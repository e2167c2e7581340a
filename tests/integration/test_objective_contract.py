"""The contract of an objective, for the training of models."""

from importlib.util import find_spec

import pytest
from workers import make_config

from hpo.data.prepared.cache import prepare
from hpo.runner import training_objective
from hpo.runner.training_objective import TrainingObjective
from hpo.testing.objectives import ObjectiveContract


class TestTrainingObjective(ObjectiveContract):
    backend = "numpy"

    def make_objective(self):
        config = make_config(train={"backend": self.backend, "dropout": 0.1})
        return TrainingObjective.from_config(config, prepare(config))


@pytest.mark.skipif(find_spec("torch") is None, reason="no PyTorch: pip install 'hpo[torch]'")
class TestTorchTrainingObjective(TestTrainingObjective):
    backend = "torch"


def test_setup_warms_up_backend(monkeypatch):
    config = make_config()
    objective = TrainingObjective.from_config(config, prepare(config))
    warmed = []
    monkeypatch.setattr(training_objective, "warm_up", warmed.append)
    objective.setup()
    assert warmed == [config]
