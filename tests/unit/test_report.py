"""The rows of the table, from studies that are played."""

from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from hpo.data.preprocessing import fit_preprocessor
from hpo.models.predictor import Predictor
from hpo.paper import experiments as report
from hpo.paper.experiments import EXPERIMENTS, LAYERS
from hpo.paper.runner import Measured

METRICS = {"train_accuracy": 0.7, "validation_accuracy": 0.5, "test_accuracy": 0.6, "train_loss": 1.0}


class Constant:
    """A predictor whose labels are all the same."""

    def save(self, path):
        X = np.random.default_rng(0).normal(size=(9, 2))
        layers = [(np.zeros((2, 2), np.float32), np.array([1, 0], np.float32))]
        preprocessor = fit_preprocessor(X, "feature", 0.0)
        Predictor(np.array([3, 4]), preprocessor, layers).save(path)


@dataclass
class FakeRunner:
    """A study of one net, whatever is asked for."""

    name: str
    metrics: dict
    effort = "`played`, 1 trial in 0.1 s"

    def best(self):
        return Measured(0, self.metrics, Constant())

    def trial_with(self, **settings):
        collapsed = self.metrics.get("collapsed") and settings["hidden_layers"] == LAYERS[-1]
        return Measured(5, self.metrics | ({"validation_accuracy": 0.1} if collapsed else {}), Constant())

    def test(self):
        return np.ones((10, 2)), np.array([3] * 6 + [4] * 4)


class PlayedLab:
    def __init__(self, **metrics):
        self.metrics = METRICS | metrics
        self.asked = []

    @contextmanager
    def trained(self, study, name=None, enqueued=(), **changes):
        self.asked.append((study, name, list(enqueued), changes))
        yield FakeRunner(name or study, self.metrics)

    def prepared(self, study):
        return SimpleNamespace(components=197, features=3072, sizes=SimpleNamespace(train=49000))


@pytest.fixture(params=[True, False], ids=["torch", "no torch"])
def has_torch(request, monkeypatch):
    monkeypatch.setattr(report, "has_torch", lambda: request.param)
    return request.param


def rows_of(name, lab=None):
    return list(EXPERIMENTS[name](lab or PlayedLab()))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_what_the_report_says_and_what_we_get(name, has_torch):
    for row in rows_of(name):
        assert row.experiment and row.theirs and row.ours and row.how


@pytest.mark.parametrize("name", ["raw", "random-grid", "best", "deep"])
def test_a_row_says_by_how_much_it_differs(name, has_torch):
    for row in rows_of(name):
        assert "validation +0." in row.remark or "validation -0." in row.remark


def test_a_difference_is_ours_less_theirs():
    (row,) = rows_of("random-grid")
    assert row.ours == "training 0.700; validation 0.500; test 0.600"
    assert row.remark.startswith("training +0.073; validation -0.051; test +0.049<br>")


def test_the_best_parameters_are_enqueued_as_one_trial():
    lab = PlayedLab()
    rows_of("best", lab)
    parameters = {"learning_rate": 0.002239034272168369, "regularization": 0.00015834527427829734}
    expected = [parameters | {"hidden_size": 330, "epochs": 412}]
    as_in_our_grid, plain = lab.asked
    assert as_in_our_grid == ("cifar10_random_grid", "cifar10_report", expected, {"trials": 1})
    assert plain[2:] == (expected, {"trials": 1, "momentum": 0.0, "learning_rate_decay": 1.0})


def test_without_pytorch_its_rows_say_what_to_install(monkeypatch):
    monkeypatch.setattr(report, "has_torch", lambda: False)
    for name in ("torch", "deep"):
        lab = PlayedLab()
        for row in rows_of(name, lab):
            assert "pip install 'hpo[torch]'" in row.ours + row.how
        assert all("backend" not in changes for *_, changes in lab.asked)


def test_with_pytorch_both_backends_are_shown(monkeypatch):
    monkeypatch.setattr(report, "has_torch", lambda: True)
    for name in ("torch", "deep"):
        lab = PlayedLab()
        for row in rows_of(name, lab):
            assert "NumPy: " in row.ours
            assert "PyTorch: " in row.ours
        assert {"backend": "torch"}.items() <= lab.asked[-1][-1].items()


@pytest.mark.parametrize(("collapsed", "said"), [(True, "the collapse is shown"), (False, "the collapse is refuted")])
def test_the_collapse_is_shown_or_refuted(collapsed, said, has_torch):
    much, little = rows_of("deep", PlayedLab(collapsed=collapsed))
    assert said in much.remark
    assert "collapse" not in little.remark


def test_components_of_the_official_files_need_no_explanation():
    lab = PlayedLab()
    assert "-19: " in rows_of("pca", lab)[0].remark
    lab.prepared = lambda study: SimpleNamespace(components=216, features=3072, sizes=SimpleNamespace(train=49000))
    assert rows_of("pca", lab)[0].remark == ""


@pytest.mark.parametrize(("accuracy", "said"), [(0.6, "the same to the last digit"), (0.5, "they differ by +0.09")])
def test_a_saved_net_is_scored_by_another_process(accuracy, said):
    (row,) = rows_of("saved", PlayedLab(test_accuracy=accuracy))
    assert row.ours == f"test accuracy {accuracy} when saved, 0.6 when loaded"
    assert row.remark.startswith(said)
    assert "trial 5 of `cifar10_deep`" in row.how
