"""Seam of the models: protocols, and the registry of the backends of a study."""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hpo.config.study import StudyConfig
from hpo.data.division.splits import Split
from hpo.data.task import Task
from hpo.errors import StudyFileError
from hpo.models.fitted import FittedModel
from hpo.models.nets.hyperparameters import Hyperparameters

Array = NDArray[Any]


class RefusalError(Exception):
    """A model refuses its hyperparameters or the data. The message is one line."""


class Model(Protocol):
    """Model that trains in epochs. It holds its training split and its random generator."""

    def fit_epoch(self, on_step: Callable[[], None]) -> float:
        """Train for one epoch; return the mean training loss.

        Args:
            on_step: Called after each step, such as a batch. Its exceptions pass, and leave the model unusable until
                the next `load_state_dict`.
        """
        ...

    def predict(self, X: Array) -> Array:
        """Return the outputs (n, n_outputs) for inputs (n, k + 1) as in `Split.X`. The model does not change."""
        ...

    def state_dict(self) -> dict[str, Array]:
        """Return copies of all arrays that training changes. The state of the random generator is not part of them."""
        ...

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Restore arrays that `state_dict` returned. They may be read-only and unaligned."""
        ...

    def is_finite(self) -> bool:
        """Return whether all weights are finite."""
        ...

    def fitted(self) -> FittedModel:
        """Return a copy that predicts the same from inputs without the constant column."""
        ...


class ModelType(Protocol):
    """Factory of the models of a backend. It can be imported without the packages that the model requires."""

    @property
    def requires(self) -> tuple[str, ...]:
        """Packages that have to be installed in addition to hpo's own dependencies."""
        ...

    def build(
        self, hyperparameters: Hyperparameters, train: Split, task: Task, classes: Array, rng: np.random.Generator
    ) -> Model:
        """Return an untrained model, which takes all its random numbers from ``rng``.

        Raises:
            ValueError: if the training split is not valid for the model.
        """
        ...

    def warm_up(self) -> None:
        """Import the required packages, and trigger their initialization at the first use."""
        ...


# Backends by their name in a study file, as "module:attribute". A backend is imported when it is used.
MODELS: dict[str, str] = {
    "numpy": "hpo.models.nets.net:NUMPY_NET",
    "torch": "hpo.models.nets.net:TORCH_NET",
}

_TITLES = {"torch": "PyTorch"}


def model_type(name: str) -> ModelType:
    """Import a backend."""
    module, attribute = MODELS[name].split(":")
    backend: ModelType = getattr(import_module(module), attribute)
    return backend


def is_installed(package: str) -> bool:
    """Return whether a package is installed, without an import of the package."""
    return find_spec(package) is not None


def check_installed(config: StudyConfig) -> None:
    """Check that the packages are installed that the sampler and the backends of a study require.

    Raises:
        StudyFileError: if a package is missing.
    """
    check_sampler_installed(config)
    table = "space" if "backend" in config.space else "train"
    for name in _backends(config):
        for package in model_type(name).requires:
            if not is_installed(package):
                title = _TITLES.get(package, package)
                key = config.key(table, "backend")
                raise StudyFileError(f"{key}: '{name}' needs {title}; install it with: pip install 'hpo[{package}]'")


def check_sampler_installed(config: StudyConfig) -> None:
    """Check that the package is installed that the sampler of a study requires.

    Raises:
        StudyFileError: if it is missing.
    """
    if config.study.sampler == "gp" and not is_installed("torch"):
        raise StudyFileError("study.sampler: 'gp' needs PyTorch; install it with: pip install 'hpo[gp]'")


def warm_up(config: StudyConfig) -> None:
    """Warm up the backends of a study."""
    for name in _backends(config):
        model_type(name).warm_up()


def _backends(config: StudyConfig) -> list[str]:
    return [str(name) for name in config.values("backend")]
