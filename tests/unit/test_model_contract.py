"""Contract of the models: the net in NumPy, and a model of a few lines that only this test knows."""

import numpy as np
from net_contract import NetContract

from hpo.data.metrics import METRICS
from hpo.models.fitted import FittedNet
from hpo.models.trainer import Learner, Trainer
from hpo.testing.models import CLASSES, ModelContract, make_split


class TestNumpyNet(NetContract):
    backend = "numpy"


class MajorityModel:
    """Prediction of the most frequent class so far. A step counts the class of a random example."""

    def __init__(self, train, n_outputs, rng):
        self._train, self._rng = train, rng
        self._counts = np.zeros(n_outputs)

    def fit_epoch(self, on_step):
        for label in self._rng.choice(self._train.y, 10):
            self._counts[label] += 1
            on_step()
        return 1 - self._counts.max() / self._counts.sum()

    def predict(self, X):
        return np.tile(self._counts, (len(X), 1))

    def state_dict(self):
        return {"counts": self._counts.copy()}

    def load_state_dict(self, state):
        self._counts = state["counts"].copy()

    def is_finite(self):
        return True

    def fitted(self):
        return FittedNet([(np.zeros((self._train.features.shape[1], len(self._counts))), self._counts.copy())])


class TestMajorityModel(ModelContract):
    def make_model(self, train, task, classes, rng):
        return MajorityModel(train, task.n_outputs(classes), rng)


def test_trainer_trains_majority_model():
    train, rng = make_split(n=30), np.random.default_rng(0)
    majority = np.bincount(train.y).argmax()
    trainer = Trainer([Learner(MajorityModel(train, len(CLASSES), rng), rng)], 50, METRICS["accuracy"])
    assert [epoch.number for epoch in trainer.epochs()] == list(range(1, 51))
    assert trainer.scores([train]) == [(train.y == majority).mean()]
