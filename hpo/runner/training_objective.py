"""Objective that trains a model. A step is an epoch, a value is the model's score on the validation split."""

import logging
import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

from optuna.study import StudyDirection

from hpo.config.study import StudyConfig
from hpo.data.checks import show_label
from hpo.data.metrics import TaskName, metric_of
from hpo.data.prepared.cache import PreparedData, prepare_again
from hpo.data.task import TASKS
from hpo.errors import StudyFileError
from hpo.models.base import RefusalError
from hpo.models.fitted import pack_folds, pack_model
from hpo.models.kinds.kind import TrainingData
from hpo.models.kinds.registry import StudyModel, check_models, model_of, models_of, warm_up
from hpo.models.trainer import DivergenceError, Trainer
from hpo.runner.objective import Trial, TrialPruned
from hpo.search.branches import check_feasible
from hpo.search.pruning.asha import rungs
from hpo.search.pruning.pruners import report_steps
from hpo.search.study_space import study_space

_LOGGER = logging.getLogger(__name__)

# A database stores the models of up to 10 trials of a study, and a value of at most 1 GB.
MAX_ARTIFACT_BYTES = 256 * 10**6


def check_study(config: StudyConfig, budget: int) -> None:
    """Check a study file before its data are prepared.

    Raises:
        StudyFileError: if the study file is not valid for the training of a model, or on this machine.
    """
    check_models(config, config.data.task if config.data is not None else None)
    check_feasible(config, study_space(config), budget)


def study_direction(config: StudyConfig, task: TaskName) -> StudyDirection:
    """Return the direction of a study.

    Raises:
        StudyFileError: if the metric of the study is not one of the task.
    """
    return StudyDirection.MINIMIZE if metric_of(config, task).minimizes else StudyDirection.MAXIMIZE


def _check_metric(config: StudyConfig, data: PreparedData) -> None:
    """Refuse a metric that is not defined for the rows of a validation split."""
    metric = metric_of(config, data.task.name)
    for number, fold in enumerate(data.folds, 1):
        y = fold.validation.y
        if metric.is_defined(y, data.classes):
            continue
        where = f" in fold {number}" if len(data.folds) > 1 else ""
        problem = f"{config.path}: study.metric: {metric.name} needs"
        if len(y) < metric.min_rows:
            rows = f"{metric.min_rows} validation rows, and there is only {len(y)}{where}"
            raise StudyFileError(f"{problem} {rows}; use another metric, or a larger validation split")
        missing = min(set(range(len(data.classes))) - set(y.tolist()))
        raise StudyFileError(
            f"{problem} a validation row of each class, and class {show_label(data.classes[missing])} has none{where}; "
            "use another metric, or remove the rows of this class"
        )


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
        models = models_of(config)
        self.max_steps = max(model.kind.max_steps(model.config) for model in models)
        # With several models, the space has the parameter of each.
        self.cost_parameter = models[0].kind.cost_parameter(models[0].config) if len(models) == 1 else None
        self.space = study_space(config)
        self._config = config
        self._data_folder = data_folder
        self._report_steps = {model.name: _report_steps(model) for model in models}
        self._data: PreparedData | None = None
        self._trainer: Trainer | None = None

    @classmethod
    def from_config(cls, config: StudyConfig, data: PreparedData) -> Self:
        """Return the objective of a study file and its prepared data.

        Raises:
            StudyFileError: if a model or a hyperparameter is not allowed, a package is not installed, or the metric has
                no value for the validation rows.
        """
        check_models(config, data.task.name)
        _check_metric(config, data)
        return cls(config, data.folder, data.fingerprint, data.task.name)

    def __getstate__(self) -> dict[str, Any]:
        # Each process loads the data itself, as a memory map.
        return self.__dict__ | {"_data": None, "_trainer": None}

    def n_steps(self, params: Mapping[str, Any]) -> int:
        """Return the number of epochs of a trial."""
        return model_of(self._config, params).n_steps

    def setup(self) -> None:
        """Load the data and warm up the models. Prepared data that were removed are prepared again.

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
            TrialPruned: if the training diverges, or if the model refuses its hyperparameters.
        """
        assert self._data is not None, "setup() loads the data"
        validation = [fold.validation for fold in self._data.folds]
        n_steps, reports = self.n_steps(trial.params), self._reports_of(trial)
        try:
            trainer = self._load_trainer(trial, self._data)
            for epoch in trainer.epochs(trial.tick):
                if epoch.number == n_steps:
                    break
                if epoch.number in reports:
                    trial.report(statistics.fmean(trainer.kept_scores(validation)), epoch.number)
                trial.save_checkpoint(trainer.save, epoch.number)
            value = statistics.fmean(trainer.kept_scores(validation))
        except DivergenceError as error:
            raise TrialPruned(f"diverged: {error}") from error
        except RefusalError as error:
            raise TrialPruned(f"refused: {error}") from error
        trial.report(value, n_steps)
        return value

    def artifact(self) -> bytes:
        """Return the fitted models of the trial that has just completed.

        Raises:
            TrialPruned: if the models are too large to be stored.
        """
        assert self._trainer is not None, "no trial has completed"
        packed = pack_folds([pack_model(model) for model in self._trainer.fitted()])
        if len(packed) > MAX_ARTIFACT_BYTES:
            size = f"{len(packed) / 1e6:.0f} MB; at most {MAX_ARTIFACT_BYTES / 1e6:.0f} MB are stored"
            raise TrialPruned(f"refused: the fitted model has {size}; use fewer or smaller members")
        return packed

    def _load_trainer(self, trial: Trial, data: PreparedData) -> Trainer:
        model, seed = model_of(self._config, trial.params), (self._config.study.seed, trial.number)
        train, validation = [fold.train for fold in data.folds], [fold.validation for fold in data.folds]
        training = TrainingData(train, validation, TASKS[self._task], data.classes, self._metric)
        make = partial(model.make_trainer, training, seed, self._reports_of(trial))
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

    def _reports_of(self, trial: Trial) -> frozenset[int]:
        return self._report_steps[model_of(self._config, trial.params).model.name]


def _report_steps(model: StudyModel) -> frozenset[int]:
    """Return the steps after which a trial of a model reports a value. It also reports after its last step."""
    max_steps = model.kind.max_steps(model.config)
    return frozenset(rungs(max_steps)) if model.kind.has_costly_reports(model.config) else report_steps(max_steps)
