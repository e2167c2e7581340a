"""Registry of the kinds of models, and the models of a study."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from hpo.config.study import MODEL, StudyConfig
from hpo.data.metrics import TaskName
from hpo.errors import StudyFileError
from hpo.models.base import check_sampler_installed
from hpo.models.kinds.kind import ModelKind, TrainingData
from hpo.models.trainer import Trainer

# Kinds by their name in a study file, as "module:attribute". A kind is imported when it is used.
KINDS: dict[str, str] = {
    "mlp": "hpo.models.nets.kind:MLP",
    "mlp-torch": "hpo.models.nets.kind:MLP_TORCH",
    "sklearn": "hpo.models.estimators.kind:SKLEARN",
}


@dataclass(frozen=True)
class StudyModel:
    """Model of a study.

    Attributes:
        name: The name of the model in the list of models; empty for a single model.
        config: The study file, with the keys of this model alone.
    """

    name: str
    config: StudyConfig

    @property
    def kind(self) -> ModelKind:
        """The kind of the model.

        Raises:
            StudyFileError: if there is no such kind.
        """
        return find_kind(self.config)

    @property
    def prefix(self) -> str:
        """The prefix of the model's parameters in a trial."""
        return f"{self.name}." if self.name else ""


@dataclass(frozen=True)
class TrialModel:
    """Model of a trial.

    Attributes:
        model: The model of the study.
        params: The parameters of the trial, without the prefix of the model.
    """

    model: StudyModel
    params: Mapping[str, Any]

    @property
    def n_steps(self) -> int:
        """The steps of the trial."""
        return self.model.kind.n_steps(self.model.config, self.params)

    @property
    def settings(self) -> dict[str, Any]:
        """The name of the model, if the study has several, and all settings of the trial, as JSON values."""
        settings = self.model.kind.settings(self.model.config, self.params)
        return {MODEL: "", **settings} | {MODEL: self.model.name} if self.model.name else settings

    @property
    def regularization(self) -> float:
        """The factor of the penalty in the training loss."""
        return self.model.kind.regularization(self.model.config, self.params)

    @property
    def packages(self) -> list[str]:
        """The packages that the trial used, besides those of all trials."""
        return self.model.kind.packages(self.model.config, self.params)

    def make_trainer(self, data: TrainingData, seed: tuple[int, int], reports: Collection[int]) -> Trainer:
        """Return the training of the trial.

        Args:
            data: The data.
            seed: The seed of the study and the number of the trial.
            reports: The steps after which the model predicts.

        Raises:
            ValueError: if the training split is not valid for the model.
        """
        return self.model.kind.make_trainer(self.model.config, self.params, data, seed, reports)


def find_kind(config: StudyConfig) -> ModelKind:
    """Import the kind of a study file with one model.

    Raises:
        StudyFileError: if there is no such kind.
    """
    name = config.model.kind if config.model is not None else "mlp"
    if name not in KINDS or not isinstance(name, str):
        advice = f"; a name of your own needs a table [model.{name}] with an estimator" if config.branch else ""
        *others, last = map(repr, KINDS)
        allowed = f"{', '.join(others)} or {last} is allowed"
        raise StudyFileError(f"{config.path}: model.kind: {allowed}, not {name!r}{advice}")
    module, attribute = KINDS[name].split(":")
    kind: ModelKind = getattr(import_module(module), attribute)
    return kind


def models_of(config: StudyConfig) -> tuple[StudyModel, ...]:
    """Return the models of a study file, in the order of its list."""
    branches = config.branches or {"": config}
    return tuple(StudyModel(name, branch) for name, branch in branches.items())


def check_models(config: StudyConfig, task: TaskName | None = None) -> None:
    """Check the models of a study file, and the packages that they need.

    Args:
        config: The study file.
        task: The task; None if it is not known yet.

    Raises:
        StudyFileError: if the study file is not valid for a model, or on this machine.
    """
    check_sampler_installed(config)
    for model in models_of(config):
        model.kind.check(model.config, task)


def model_of(config: StudyConfig, params: Mapping[str, Any]) -> TrialModel:
    """Return the model of a trial with these parameters."""
    models = models_of(config)
    model = next(model for model in models if model.name == params.get(MODEL, "") or not model.name)
    own = {name.removeprefix(model.prefix): value for name, value in params.items() if name.startswith(model.prefix)}
    return TrialModel(model, own)


def warm_up(config: StudyConfig) -> None:
    """Import the packages of all models, and trigger their initialization at the first use."""
    for model in models_of(config):
        model.kind.warm_up(model.config)
