"""Kinds of nets: ``mlp``, whose backend is a hyperparameter, and ``mlp-torch``."""

from collections.abc import Collection, Mapping
from typing import Any

from hpo.config.study import StudyConfig
from hpo.data.metrics import TaskName
from hpo.errors import StudyFileError
from hpo.models.base import check_installed, is_installed, warm_up
from hpo.models.kinds.kind import TrainingData
from hpo.models.nets.hyperparameters import FLOAT_HYPERPARAMETERS, check_hyperparameters, hyperparameters_of, max_epochs
from hpo.models.trainer import Trainer, make_trainer


class NetKind:
    """`hpo.models.kinds.kind.ModelKind` of the net whose backend is the hyperparameter ``backend``."""

    def check(self, config: StudyConfig, task: TaskName | None) -> None:
        """Check the hyperparameters and the packages of their backends.

        Raises:
            StudyFileError: if a hyperparameter is not allowed, or if a package is missing.
        """
        if config.model is not None and config.model.estimator is not None:
            raise StudyFileError(f"{config.path}: model.estimator: only the kind 'sklearn' has an estimator")
        config = self._complete(config)
        check_hyperparameters(config)
        check_installed(config)

    def float_names(self, config: StudyConfig) -> frozenset[str]:
        """Return the hyperparameters that are floats even if both ends of their range are whole numbers."""
        return FLOAT_HYPERPARAMETERS

    def cost_parameter(self, config: StudyConfig) -> str | None:
        """Return the epochs, if they are searched."""
        return "epochs" if "epochs" in config.space else None

    def max_steps(self, config: StudyConfig) -> int:
        """Return the epochs of the longest trial."""
        return max_epochs(config)

    def has_costly_reports(self, config: StudyConfig) -> bool:
        """Return False, because a report is a prediction."""
        return False

    def n_steps(self, config: StudyConfig, params: Mapping[str, Any]) -> int:
        """Return the epochs of a trial."""
        return hyperparameters_of(self._complete(config), params).epochs

    def settings(self, config: StudyConfig, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return all hyperparameters of a trial."""
        return hyperparameters_of(self._complete(config), params).model_dump(mode="json")

    def regularization(self, config: StudyConfig, params: Mapping[str, Any]) -> float:
        """Return the regularization of a trial."""
        return hyperparameters_of(self._complete(config), params).regularization

    def packages(self, config: StudyConfig, params: Mapping[str, Any]) -> list[str]:
        """Return PyTorch, if the trial used it and it is installed."""
        uses_torch = hyperparameters_of(self._complete(config), params).backend == "torch"
        return ["torch"] if uses_torch and is_installed("torch") else []

    def warm_up(self, config: StudyConfig) -> None:
        """Warm up the backends."""
        warm_up(self._complete(config))

    def make_trainer(
        self,
        config: StudyConfig,
        params: Mapping[str, Any],
        data: TrainingData,
        seed: tuple[int, int],
        reports: Collection[int],
    ) -> Trainer:
        """Return the training of a trial.

        Raises:
            ValueError: if the training split is not valid for a net.
        """
        hyperparameters = hyperparameters_of(self._complete(config), params)
        return make_trainer(hyperparameters, data.train, data.task, data.classes, seed, data.metric, data.validation)

    def _complete(self, config: StudyConfig) -> StudyConfig:
        """Return the study file with the hyperparameters that the kind determines."""
        return config


class TorchNetKind(NetKind):
    """`hpo.models.kinds.kind.ModelKind` of the net in PyTorch."""

    def check(self, config: StudyConfig, task: TaskName | None) -> None:
        """Check the hyperparameters, and that PyTorch is installed.

        Raises:
            StudyFileError: if a hyperparameter is not allowed, or if PyTorch is missing.
        """
        if not is_installed("torch"):
            problem = "'mlp-torch' needs PyTorch; install it with: pip install 'hpo[torch]'"
            raise StudyFileError(f"{config.path}: model.kind: {problem}")
        if table := next((table for table in ("train", "space") if "backend" in getattr(config, table)), None):
            raise StudyFileError(
                f"{config.path}: {config.key(table, 'backend')}: model.kind decides it; remove this key"
            )
        super().check(config, task)

    def _complete(self, config: StudyConfig) -> StudyConfig:
        return config.model_copy(update={"train": config.train | {"backend": "torch"}})


MLP = NetKind()
MLP_TORCH = TorchNetKind()
