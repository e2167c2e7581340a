"""Objective that trains a model. A step is an epoch, a value is the model's score on the validation split."""

import logging
import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

from optuna.study import StudyDirection

from hpo.config.study import StudyConfig
from hpo.data.cache import PreparedData, prepare_again
from hpo.data.metrics import TaskName, metric_of
from hpo.data.task import TASKS
from hpo.models.base import check_installed, warm_up
from hpo.models.fitted import pack_folds, pack_model
from hpo.models.hyperparameters import FLOAT_HYPERPARAMETERS, check_hyperparameters, hyperparameters_of, max_epochs
from hpo.models.trainer import DivergenceError, Trainer, make_trainer
from hpo.runner.objective import Trial, TrialPruned
from hpo.search.pruners import report_steps
from hpo.search.samplers import check_feasible
from hpo.search.space import build_space

_LOGGER = logging.getLogger(__name__)


def check_study(config: StudyConfig, budget: int) -> None:
    """Check a study file before its data are prepared.

    Raises:
        StudyFileError: if the study file is not valid for the training of a model, or on this machine.
    """
    check_hyperparameters(config)
    check_installed(config)
    check_feasible(config, build_space(config, FLOAT_HYPERPARAMETERS), budget)


def study_direction(config: StudyConfig, task: TaskName) -> StudyDirection:
    """Return the direction of a study.

    Raises:
        StudyFileError: if the metric of the study is not one of the task.
    """
    return StudyDirection.MINIMIZE if metric_of(config, task).minimizes else StudyDirection.MAXIMIZE


class TrainingObjective:
    """Training of the model of a study file on prepared data.

    Args:
        config: The study file.
        data_folder: The folder of the prepared data.
        fingerprint: The fingerprint of the data.
        task: The name of the task.

    Raises:
        StudyFileError: if the metric of the study is not one of the task.
    """

    ticks = True

    def __init__(
        self, config: StudyConfig, data_folder: Path, fingerprint: str, task: TaskName = "classification"
    ) -> None:
        self.fingerprint = fingerprint
        self._task = task
        self._metric = metric_of(config, task)
        self.metric = f"validation {self._metric.name}"
        self.max_steps = max_epochs(config)
        self.cost_parameter = "epochs" if "epochs" in config.space else None
        self.space = build_space(config, FLOAT_HYPERPARAMETERS)
        self._config = config
        self._data_folder = data_folder
        self._report_steps = report_steps(self.max_steps)
        self._data: PreparedData | None = None
        self._trainer: Trainer | None = None

    @classmethod
    def from_config(cls, config: StudyConfig, data: PreparedData) -> Self:
        """Return the objective of a study file and its prepared data.

        Raises:
            StudyFileError: if a hyperparameter is not allowed, or a package is not installed.
        """
        check_hyperparameters(config)
        check_installed(config)
        return cls(config, data.folder, data.fingerprint, data.task.name)

    def __getstate__(self) -> dict[str, Any]:
        # Each process loads the data itself, as a memory map.
        return self.__dict__ | {"_data": None, "_trainer": None}

    def n_steps(self, params: Mapping[str, Any]) -> int:
        """Return the number of epochs of a trial."""
        return hyperparameters_of(self._config, params).epochs

    def setup(self) -> None:
        """Load the data and warm up the model's backend. Prepared data that were removed are prepared again.

        Raises:
            DataError: if the prepared data and the raw data are missing.
        """
        self._data = prepare_again(self._config, self._data_folder, self.fingerprint)
        warm_up(self._config)

    def __call__(self, trial: Trial) -> float:
        """Train a trial from its checkpoint, if it has one, to its last epoch.

        Returns:
            The validation score after the epoch that is kept; the mean over the folds.

        Raises:
            TrialPruned: if the training diverges.
        """
        assert self._data is not None, "setup() loads the data"
        validation = [fold.validation for fold in self._data.folds]
        trainer, n_steps = self._load_trainer(trial, self._data), self.n_steps(trial.params)
        try:
            for epoch in trainer.epochs(trial.tick):
                if epoch.number == n_steps:
                    break
                if epoch.number in self._report_steps:
                    trial.report(statistics.fmean(trainer.kept_scores(validation)), epoch.number)
                trial.save_checkpoint(trainer.save, epoch.number)
            value = statistics.fmean(trainer.kept_scores(validation))
        except DivergenceError as error:
            raise TrialPruned(f"diverged: {error}") from error
        trial.report(value, n_steps)
        return value

    def artifact(self) -> bytes:
        """Return the fitted models of the trial that has just completed."""
        assert self._trainer is not None, "no trial has completed"
        return pack_folds([pack_model(model) for model in self._trainer.fitted()])

    def _load_trainer(self, trial: Trial, data: PreparedData) -> Trainer:
        hyperparameters = hyperparameters_of(self._config, trial.params)
        seed = (self._config.study.seed, trial.number)
        train, validation = [fold.train for fold in data.folds], [fold.validation for fold in data.folds]
        task = TASKS[self._task]
        make = partial(make_trainer, hyperparameters, train, task, data.classes, seed, self._metric, validation)
        # The memory of the last trial is freed before the next one needs memory.
        self._trainer = None
        self._trainer = make()
        if (checkpoint := trial.load_checkpoint()) is not None:
            try:
                self._trainer.restore(checkpoint)
            except ValueError as error:
                # A checkpoint that is damaged, or of another version of hpo. The trial ends with the same value.
                _LOGGER.warning("trial %d starts over: %s", trial.number, error)
                self._trainer = make()
        return self._trainer
