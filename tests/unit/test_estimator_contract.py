"""The contract of models, for an estimator of each budget."""

import numpy as np
import pytest
from estimators import CLASSIFIERS

from hpo.data.division.splits import Split
from hpo.data.task import Task
from hpo.models.base import Array, Model
from hpo.models.estimators.model import EstimatorModel
from hpo.testing.models import EPOCHS, ModelContract

pytestmark = pytest.mark.slow


class EstimatorContract(ModelContract):
    """The contract for an estimator."""

    name: str

    def make_model(self, train: Split, task: Task, classes: Array, rng: np.random.Generator) -> Model:
        """Return an untrained model of the estimator."""
        return EstimatorModel(CLASSIFIERS[self.name](EPOCHS, int(rng.integers(2**31))), train, task, classes)


class TestHistogramBoosting(EstimatorContract):
    """An ensemble that grows."""

    name = "histogram boosting"


class TestForest(EstimatorContract):
    """An ensemble of trees whose memory has padding."""

    name = "forest"


class TestLinearModel(EstimatorContract):
    """An estimator with partial fits, without probabilities."""

    name = "linear"


@pytest.mark.slow
class TestNet(EstimatorContract):
    """An estimator with partial fits and a random state of its own."""

    name = "net"


class TestOneStep(EstimatorContract):
    """An estimator that is fitted at once, again in each epoch."""

    name = "one step"


@pytest.mark.slow
class TestXGBoost(EstimatorContract):
    """An estimator of another package."""

    name = "xgboost"
