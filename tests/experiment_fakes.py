"""Fake studies for the experiments of the report."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from hpo.data.prepared.preprocessing import Preprocessor
from hpo.models.fitted import FittedNet
from hpo.models.predictor import Member, Predictor
from hpo.paper.experiments import LAYERS
from hpo.paper.runner import TrialResult

METRICS = {"train_accuracy": 0.7, "validation_accuracy": 0.5, "test_accuracy": 0.6, "train_loss": 1.0}


class Constant:
    """Predictor with the same label for each row."""

    def save(self, path):
        X = np.random.default_rng(0).normal(size=(9, 2))
        layers = [(np.zeros((2, 2), np.float32), np.array([1, 0], np.float32))]
        preprocessor = Preprocessor.fit(X, "feature", 0.0)
        Predictor(np.array([3, 4]), (Member(preprocessor, FittedNet(layers)),)).save(path)


@dataclass
class FakeStudy:
    """Trained study with the same metrics for each trial."""

    name: str
    metrics: dict
    cost_summary = "`fake`, 1 trial in 0.1 s"

    def best(self):
        return TrialResult(0, self.metrics, Constant())

    def trial_with(self, **settings):
        collapsed = self.metrics.get("collapsed") and settings["hidden_layers"] == LAYERS[-1]
        return TrialResult(5, self.metrics | ({"validation_accuracy": 0.1} if collapsed else {}), Constant())

    def test_split(self):
        return np.ones((10, 2)), np.array([3] * 6 + [4] * 4)


class FakeRunner:
    def __init__(self, **metrics):
        self.metrics = METRICS | metrics
        self.calls = []

    def train(self, study, name=None, enqueued=(), **changes):
        self.calls.append((study, name, list(enqueued), changes))
        return FakeStudy(name or study, self.metrics)

    def prepare(self, study):
        return SimpleNamespace(components=197, features=3072, sizes=SimpleNamespace(train=49000))
