"""Training of a finished trial once more, on the rows of all training and validation splits."""

from typing import NamedTuple

from optuna.trial import FrozenTrial
from threadpoolctl import threadpool_limits

from hpo.config.study import StudyConfig
from hpo.data.metrics import metric_of
from hpo.data.prepared.cache import PreparedData, prepare
from hpo.errors import TrialFailureError
from hpo.models.base import RefusalError
from hpo.models.fitted import FittedModel
from hpo.models.kinds.kind import TrainingData
from hpo.models.kinds.registry import model_of
from hpo.models.trainer import DivergenceError, Trainer


class Refit(NamedTuple):
    """Model that was trained on the rows of all training and validation splits.

    Attributes:
        model: The fitted model.
        data: The data, whose training split has all these rows.
        steps: The steps of the training.
    """

    model: FittedModel
    data: PreparedData
    steps: int


def refit_trial(config: StudyConfig, data: PreparedData, trial: FrozenTrial) -> Refit:
    """Train the model of a trial with the same seed on the rows of all training and validation splits.

    No validation row is left to choose an epoch. A trial that keeps its best epoch is therefore repeated first, and the
    training has as many epochs as its best epoch.

    Raises:
        DataError: if the raw data are missing.
        TrialFailureError: if the training diverges.
    """
    joined = prepare(config, refit=True)
    try:
        # As in a worker. With more threads, a repeated trial could have another best epoch.
        with threadpool_limits(1):
            steps = _best_epoch(config, data, trial) or model_of(config, trial.params).n_steps
            trainer = _make_trainer(config, joined, trial)
            for epoch in trainer.epochs():
                if epoch.number == steps:
                    break
    except (DivergenceError, RefusalError) as error:
        problem = f"trial {trial.number} cannot be trained on the training and validation rows together: {error}"
        raise TrialFailureError(f"{problem}; export it without --refit") from None
    (model,) = trainer.fitted()
    return Refit(model, joined, steps)


def _best_epoch(config: StudyConfig, data: PreparedData, trial: FrozenTrial) -> int | None:
    """Repeat a trial to find its best epoch; return None if it keeps its last epoch."""
    trainer = _make_trainer(config, data, trial)
    if trainer.best_epoch is None:
        return None
    for _ in trainer.epochs():
        pass
    return trainer.best_epoch


def _make_trainer(config: StudyConfig, data: PreparedData, trial: FrozenTrial) -> Trainer:
    train, validation = [fold.train for fold in data.folds], [fold.validation for fold in data.folds]
    is_joined = not data.sizes.validation
    metric = metric_of(config, data.task.name)
    training = TrainingData(train, () if is_joined else validation, data.task, data.classes, metric)
    return model_of(config, trial.params).make_trainer(training, (config.study.seed, trial.number), reports=())
