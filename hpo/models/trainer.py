"""Training of one trial: a generator of epochs whose state can be saved and restored.

The models of all folds are trained in lockstep, one epoch each. A restored training gives the same results to the last
bit.
"""

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hpo.data.division.splits import Split
from hpo.data.metrics import DEFAULT_METRICS, METRICS, Metric
from hpo.data.task import Task
from hpo.models.base import Array, Model, model_type
from hpo.models.best_epoch import BestEpoch, arrays_with_prefix
from hpo.models.checkpoint import TrainingState, pack_state, unpack_state
from hpo.models.fitted import FittedModel
from hpo.models.nets.hyperparameters import Hyperparameters


class DivergenceError(ArithmeticError):
    """The loss, a weight or an output is not finite."""


@dataclass(frozen=True)
class Epoch:
    """Finished epoch.

    Attributes:
        number: Number of the epoch, from 1.
        train_loss: Training loss, as the model defines it; the mean over the folds.
    """

    number: int
    train_loss: float


class Learner(NamedTuple):
    """Untrained model of a fold, and its random generator."""

    model: Model
    rng: np.random.Generator


class Trainer:
    """Training of one model for each fold. On one kind of processor, it is a pure function of its arguments.

    Args:
        learners: Untrained model of each fold.
        epochs: Number of epochs of the whole training.
        metric: Metric of the models' outputs.
        made_from: Description of the arguments that the model was built from, for `restore`.
        validation: Validation split of each fold, to keep the epoch with the best scores instead of the last epoch.

    Attributes:
        epoch: Number of finished epochs.
    """

    def __init__(
        self,
        learners: Sequence[Learner],
        epochs: int,
        metric: Metric,
        made_from: str = "",
        validation: Sequence[Split] | None = None,
    ) -> None:
        self._learners = learners
        self._models = [model for model, _ in learners]
        self._epochs = epochs
        self._metric = metric
        self._made_from = made_from
        self._validation = validation
        self._best = BestEpoch(metric) if validation is not None else None
        self.epoch = 0

    @property
    def best_epoch(self) -> int | None:
        """Number of the best epoch so far, 0 before the first; None if the last epoch is kept."""
        return None if self._best is None else self._best.number

    def epochs(self, on_step: Callable[[], None] = lambda: None) -> Iterator[Epoch]:
        """Train from the current state to the last epoch; yield each epoch.

        If the best epoch is kept, the models have its state when the last epoch is yielded.

        Args:
            on_step: Called after each step. Its exceptions pass, and leave the training in the middle of an epoch. It
                then continues only from a checkpoint.

        Raises:
            DivergenceError: if the loss of an epoch, or a weight or a validated output after it, is not finite.
        """
        while self.epoch < self._epochs:
            losses = [self._fit_epoch(model, on_step) for model in self._models]
            self.epoch += 1
            self._keep_best()
            yield Epoch(self.epoch, statistics.fmean(losses))

    def _fit_epoch(self, model: Model, on_step: Callable[[], None]) -> float:
        loss = model.fit_epoch(on_step)
        if not (math.isfinite(loss) and model.is_finite()):
            raise DivergenceError(f"epoch {self.epoch + 1}: the loss or a weight is not finite (loss {loss})")
        return loss

    def _keep_best(self) -> None:
        if self._best is None or self._validation is None:
            return
        self._best.observe(self.epoch, self._finite_scores(self._validation), self._models)
        if self.epoch == self._epochs:
            self._best.load_into(self._models)

    def scores(self, splits: Sequence[Split]) -> list[float]:
        """Return the metric of each model's outputs for the split of its fold, without augmented copies."""
        return self._scores_of(self._outputs(splits), splits)

    def _outputs(self, splits: Sequence[Split]) -> list[Array]:
        return [model.predict(X[: len(y)]) for model, (X, y) in zip(self._models, splits, strict=True)]

    def _finite_scores(self, splits: Sequence[Split]) -> list[float]:
        outputs = self._outputs(splits)
        if not all(np.isfinite(of_fold).all() for of_fold in outputs):
            raise DivergenceError(f"epoch {self.epoch}: an output is not finite")
        with np.errstate(over="ignore"):
            scores = self._scores_of(outputs, splits)
        if not all(map(math.isfinite, scores)):
            raise DivergenceError(f"epoch {self.epoch}: the {self._metric.name} of the outputs is not finite")
        return scores

    def _scores_of(self, outputs: Sequence[Array], splits: Sequence[Split]) -> list[float]:
        return [self._metric.score(of_fold, split.y) for of_fold, split in zip(outputs, splits, strict=True)]

    def kept_scores(self, validation: Sequence[Split]) -> list[float]:
        """Return the scores that the trial would have if its training ended now.

        Args:
            validation: Validation split of each fold.

        Raises:
            DivergenceError: if an output or a score is not finite.
        """
        return self._finite_scores(validation) if self._best is None else self._best.scores

    def fitted(self) -> list[FittedModel]:
        """Return a copy of each model that predicts."""
        return [model.fitted() for model in self._models]

    def save(self) -> bytes:
        """Return the state between two epochs, in the format of `hpo.models.checkpoint`."""
        rng = [rng.bit_generator.state for _, rng in self._learners]
        arrays = {
            f"{fold}.{name}": array
            for fold, model in enumerate(self._models)
            for name, array in model.state_dict().items()
        }
        if self._best is not None:
            arrays |= self._best.arrays()
        return pack_state(TrainingState(self._made_from, self.epoch, rng, arrays))

    def restore(self, checkpoint: bytes) -> None:
        """Restore a state that `save` returned to a training with the same arguments.

        Raises:
            ValueError: if the checkpoint is damaged, of another version, or of a training with other arguments. The
                training is then unusable.
        """
        state = unpack_state(checkpoint)
        if state.made_from != self._made_from:
            raise ValueError(f"the checkpoint of another training: {state.made_from}, not {self._made_from}")
        try:
            for fold, (model, rng) in enumerate(self._learners):
                model.load_state_dict(arrays_with_prefix(state.arrays, f"{fold}."))
                rng.bit_generator.state = state.rng[fold]
            if self._best is not None:
                self._best.load(state.arrays)
        except (LookupError, TypeError, RuntimeError, OverflowError) as error:
            raise ValueError(f"not a checkpoint of this training: {error}") from error
        self.epoch = state.epoch


def make_trainer(
    hyperparameters: Hyperparameters,
    train: Sequence[Split],
    task: Task,
    classes: Array,
    seed: tuple[int, int],
    metric: Metric | None = None,
    validation: Sequence[Split] | None = None,
) -> Trainer:
    """Return the training of a trial.

    Args:
        hyperparameters: Hyperparameters of the trial. Their backend selects the model.
        train: Training split of each fold.
        task: Task of the study.
        classes: Classes of the data.
        seed: Seed of the study and number of the trial.
        metric: Metric of the trial; None for the default of the task.
        validation: Validation split of each fold. Only a training that keeps its best epoch needs it.

    Raises:
        ValueError: if the training split is not valid for the model.
    """
    backend = model_type(hyperparameters.backend)
    learners = []
    for fold, split in enumerate(train):
        rng = rng_of(seed, fold)
        learners.append(Learner(backend.build(hyperparameters, split, task, classes, rng), rng))
    made_from = describe_arguments(train, task.n_outputs(classes), seed, hyperparameters.model_dump())
    metric = metric or METRICS[DEFAULT_METRICS[task.name]]
    kept_by = validation or None if hyperparameters.keep == "best" else None
    return Trainer(learners, hyperparameters.epochs, metric, made_from, kept_by)


def describe_arguments(
    train: Sequence[Split], n_outputs: int, seed: tuple[int, int], hyperparameters: Mapping[str, Any]
) -> str:
    """Return a description of the arguments of a training, for `Trainer.restore`."""
    made_from = {
        "inputs": [split.X.shape for split in train],
        "examples": [len(split.y) for split in train],
        "outputs": n_outputs,
        "seed": seed,
        "hyperparameters": hyperparameters,
    }
    return json.dumps(made_from)


def rng_of(seed: tuple[int, int], fold: int) -> np.random.Generator:
    """Return the random generator of a fold. The first fold has that of a training without folds."""
    sequence = np.random.SeedSequence(seed, spawn_key=(fold,) if fold else ())
    return np.random.Generator(np.random.PCG64(sequence))
