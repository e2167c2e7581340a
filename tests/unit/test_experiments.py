"""Rows of the table, from fake studies."""

from types import SimpleNamespace

import pytest
from experiment_fakes import FakeRunner

from hpo.paper import experiments, gradients
from hpo.paper.experiments import RUN

# This experiment starts a process, see tests/integration/test_saved_net.py.
# tests/integration/test_gradients_autograd.py imports PyTorch for the gradients.
IN_PROCESS = [name for name in RUN if name not in ("saved", "gradients")]


@pytest.fixture(params=[True, False], ids=["torch", "no torch"])
def has_torch(request, monkeypatch):
    monkeypatch.setattr(experiments, "is_installed", lambda _: request.param)
    return request.param


def rows_of(name, runner=None):
    return list(RUN[name](runner or FakeRunner()))


def test_gradients_have_figures_without_torch(monkeypatch):
    monkeypatch.setattr(gradients, "is_installed", lambda _: False)
    monkeypatch.setattr(experiments, "is_installed", lambda _: False)
    (row,) = rows_of("gradients")
    assert row.published and row.method
    assert "autograd: " in row.ours


@pytest.mark.parametrize("name", IN_PROCESS)
def test_experiment_has_published_and_our_figures(name, has_torch):
    for row in rows_of(name):
        assert row.experiment and row.published and row.ours and row.method


@pytest.mark.parametrize("name", ["raw", "random-grid", "best", "deep"])
def test_row_has_differences(name, has_torch):
    for row in rows_of(name):
        assert "validation +0." in row.remark or "validation -0." in row.remark


def test_difference_is_ours_minus_published():
    (row,) = rows_of("random-grid")
    assert row.ours == "training 0.700; validation 0.500; test 0.600"
    assert row.remark.startswith("training +0.073; validation -0.051; test +0.049<br>")


def test_best_parameters_are_enqueued_as_one_trial():
    runner = FakeRunner()
    rows_of("best", runner)
    parameters = {"learning_rate": 0.002239034272168369, "regularization": 0.00015834527427829734}
    expected = [parameters | {"hidden_size": 330, "epochs": 412}]
    as_in_our_grid, plain = runner.calls
    assert as_in_our_grid == ("cifar10_random_grid", "cifar10_report", expected, {"trials": 1})
    assert plain[2:] == (expected, {"trials": 1, "momentum": 0.0, "learning_rate_decay": 1.0})


def test_rows_without_pytorch_name_package(monkeypatch):
    monkeypatch.setattr(experiments, "is_installed", lambda _: False)
    for name in ("torch", "deep"):
        runner = FakeRunner()
        for row in rows_of(name, runner):
            assert "pip install 'hpo[torch]'" in row.ours + row.method
        assert all("backend" not in changes for *_, changes in runner.calls)


def test_rows_with_pytorch_have_both_backends(monkeypatch):
    monkeypatch.setattr(experiments, "is_installed", lambda _: True)
    for name in ("torch", "deep"):
        runner = FakeRunner()
        for row in rows_of(name, runner):
            assert "NumPy: " in row.ours
            assert "PyTorch: " in row.ours
        assert {"backend": "torch"}.items() <= runner.calls[-1][-1].items()


@pytest.mark.parametrize(("collapsed", "said"), [(True, "the collapse is shown"), (False, "the collapse is refuted")])
def test_collapse_is_shown_or_refuted(collapsed, said, has_torch):
    strong, weak = rows_of("deep", FakeRunner(collapsed=collapsed))
    assert said in strong.remark
    assert "collapse" not in weak.remark


def test_components_of_official_files_have_no_remark():
    runner = FakeRunner()
    assert "-19: " in rows_of("pca", runner)[0].remark
    runner.prepare = lambda study: SimpleNamespace(components=216, features=3072, sizes=SimpleNamespace(train=49000))
    assert rows_of("pca", runner)[0].remark == ""
