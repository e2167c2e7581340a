"""Registry of the backends, and the check of their packages."""

import pytest

from hpo.config.study import Choices, StudyConfig
from hpo.errors import StudyFileError
from hpo.models import base
from hpo.models.base import MODELS, check_installed, is_installed, model_type, warm_up
from hpo.models.nets.hyperparameters import Hyperparameters

FIXED = {"learning_rate": 0.1, "regularization": 0.0, "hidden_size": 4, "epochs": 9}


def make_config(sampler="tpe", **train):
    return StudyConfig.model_validate(
        {"study": {"name": "s", "sampler": sampler}, "data": {"dataset": "digits"}, "train": FIXED | train}
    )


def make_search(*backends):
    return make_config().model_copy(update={"space": {"backend": Choices.model_construct(choices=backends)}})


NEED_TORCH = [
    (make_config("gp"), "study.sampler: 'gp' needs PyTorch; install it with: pip install 'hpo[gp]'"),
    (make_config(backend="torch"), "train.backend: 'torch' needs PyTorch; install it with: pip install 'hpo[torch]'"),
    (
        make_search("numpy", "torch"),
        "space.backend: 'torch' needs PyTorch; install it with: pip install 'hpo[torch]'",
    ),
]


@pytest.mark.parametrize(("config", "message"), NEED_TORCH, ids=["gp", "train", "space"])
def test_missing_package_is_refused_with_command(config, message, monkeypatch):
    monkeypatch.setattr(base, "find_spec", lambda name: name)
    check_installed(config)
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(StudyFileError) as error:
        check_installed(config)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "config", [make_config(), make_config("cmaes"), make_config(backend="numpy"), make_search("numpy")]
)
def test_default_study_needs_no_package(config, monkeypatch):
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    check_installed(config)
    warm_up(config)


def test_is_installed_finds_packages():
    assert is_installed("numpy")
    assert not is_installed("no_such_package")


def test_registry_has_each_allowed_backend():
    for name in MODELS:
        assert Hyperparameters(**FIXED, backend=name).backend == name
        assert isinstance(model_type(name).requires, tuple)
    with pytest.raises(ValueError, match="'numpy' or 'torch'"):
        Hyperparameters(**FIXED, backend="no such backend")
