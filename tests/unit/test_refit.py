"""Training of a finished trial on all rows but the test rows."""

from types import SimpleNamespace

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits
from workers import make_config

from hpo.models.trainer import Epoch
from hpo.tuning import refit


class RecordingTrainer:
    """Trainer that records the threads of BLAS in each epoch."""

    best_epoch = None

    def __init__(self):
        self.threads = set()

    def epochs(self):
        np.ones((9, 9)) @ np.ones((9, 9))
        self.threads |= {pool["num_threads"] for pool in threadpool_info()}
        yield Epoch(1, 0.5)

    def fitted(self):
        return ["model"]


def test_refit_trains_with_one_thread(monkeypatch):
    trainer = RecordingTrainer()
    monkeypatch.setattr(refit, "prepare", lambda *_, **__: None)
    monkeypatch.setattr(refit, "_make_trainer", lambda *_: trainer)
    params = {"learning_rate": 0.1, "regularization": 0.0, "hidden_size": 8, "epochs": 10}
    with threadpool_limits(2):
        trained = refit.refit_trial(make_config(), None, SimpleNamespace(params=params))
    assert (trained.model, trained.steps, trainer.threads) == ("model", 10, {1})
