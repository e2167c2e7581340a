"""What does not come with hpo is asked for before anything is trained, and imported by those alone who use it."""

import subprocess
import sys
from pathlib import Path

import pytest

import hpo
from hpo.config.study import Choices, StudyConfig
from hpo.errors import StudyFileError
from hpo.models import optional_dependencies as extras
from hpo.models.optional_dependencies import check_installed

FIXED = {"learning_rate": 0.1, "regularization": 0.0, "hidden_size": 4, "epochs": 9}


def study(sampler="tpe", **train):
    return StudyConfig.model_validate(
        {"study": {"name": "s", "sampler": sampler}, "data": {"dataset": "digits"}, "train": FIXED | train}
    )


def searching(*backends):
    return study().model_copy(update={"space": {"backend": Choices.model_construct(choices=backends)}})


NEEDY = [
    (study("gp"), "study.sampler: 'gp' needs PyTorch; install it with: pip install 'hpo[gp]'"),
    (study(backend="torch"), "train.backend: 'torch' needs PyTorch; install it with: pip install 'hpo[torch]'"),
    (searching("numpy", "torch"), "space.backend: 'torch' needs PyTorch; install it with: pip install 'hpo[torch]'"),
]


@pytest.mark.parametrize(("spec", "told"), NEEDY, ids=["gp", "train", "space"])
def test_what_is_not_installed_is_told_with_how_to_install_it(spec, told, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: name)
    check_installed(spec)
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(StudyFileError) as error:
        check_installed(spec)
    assert str(error.value) == told


@pytest.mark.parametrize("spec", [study(), study("cmaes"), study(backend="numpy"), searching("numpy")])
def test_who_asks_for_nothing_needs_nothing(spec, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    check_installed(spec)
    extras.warm_up(spec)


USERS = """
import sys
from hpo.models.optional_dependencies import warm_up
from hpo.config.study import StudyConfig
for backend in ("numpy", "torch"):
    warm_up(StudyConfig.model_validate_json(sys.argv[1].replace("BACKEND", backend)))
    print(backend, "torch" in sys.modules, "hpo.models.trainer" in sys.modules)
"""


def test_pytorch_is_imported_for_those_who_train_with_it():
    pytest.importorskip("torch", reason="no PyTorch: pip install 'hpo[torch]'")
    spec = study(backend="numpy").model_dump_json().replace("numpy", "BACKEND")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", USERS, spec],
        cwd=Path(hpo.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("numpy False False\ntorch True False\n", "")
