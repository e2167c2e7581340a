"""Seam of the kinds of models: checks, steps, settings and training of a model in a study file."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hpo.config.study import StudyConfig
from hpo.data.division.splits import Split
from hpo.data.metrics import Metric, TaskName
from hpo.data.task import Task
from hpo.models.base import Array
from hpo.models.trainer import Trainer


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Data of the training of a trial.

    Attributes:
        train: Training split of each fold.
        validation: Validation split of each fold.
        task: Task of the study.
        classes: Classes of the data.
        metric: Metric of the trial.
    """

    train: Sequence[Split]
    validation: Sequence[Split]
    task: Task
    classes: Array
    metric: Metric


class ModelKind(Protocol):
    """Kind of a model. Each method takes a study file with one model, which is of the kind.

    A kind can be imported without the packages that its models need.
    """

    def check(self, config: StudyConfig, task: TaskName | None) -> None:
        """Check the model's keys and values, and the packages that it needs.

        Args:
            config: The study file.
            task: The task; None if it is not known yet.

        Raises:
            StudyFileError: if the study file is not valid for the model, or on this machine.
        """
        ...

    def float_names(self, config: StudyConfig) -> frozenset[str]:
        """Return the hyperparameters that are floats even if both ends of their range are whole numbers."""
        ...

    def cost_parameter(self, config: StudyConfig) -> str | None:
        """Return the searched hyperparameter that the cost of a trial grows with, None without one."""
        ...

    def max_steps(self, config: StudyConfig) -> int:
        """Return the steps of the longest trial."""
        ...

    def has_costly_reports(self, config: StudyConfig) -> bool:
        """Return whether each report of a trial has a high cost of its own, so that few reports are better."""
        ...

    def n_steps(self, config: StudyConfig, params: Mapping[str, Any]) -> int:
        """Return the steps of a trial."""
        ...

    def settings(self, config: StudyConfig, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return all settings of a trial, as JSON values."""
        ...

    def regularization(self, config: StudyConfig, params: Mapping[str, Any]) -> float:
        """Return the factor of the penalty in the training loss of a trial."""
        ...

    def packages(self, config: StudyConfig, params: Mapping[str, Any]) -> list[str]:
        """Return the packages that a trial used, as far as they are installed, besides those of all trials."""
        ...

    def warm_up(self, config: StudyConfig) -> None:
        """Import the packages of the model, and trigger their initialization at the first use."""
        ...

    def make_trainer(
        self,
        config: StudyConfig,
        params: Mapping[str, Any],
        data: TrainingData,
        seed: tuple[int, int],
        reports: Collection[int],
    ) -> Trainer:
        """Return the training of a trial.

        Args:
            config: The study file.
            params: The parameters of the trial.
            data: The data.
            seed: The seed of the study and the number of the trial.
            reports: The steps after which the model predicts. It also predicts after its last step.

        Raises:
            ValueError: if the training split is not valid for the model.
        """
        ...
