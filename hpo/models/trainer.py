"""Training of one trial: a generator of epochs whose state can be saved and restored.

A restored training gives the same results to the last bit.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from hpo.data.metrics import DEFAULT_METRICS, METRICS, Metric
from hpo.data.splits import Split
from hpo.data.task import Task
from hpo.models.base import Array, Model, Weights, model_type
from hpo.models.checkpoint import TrainingState, pack_state, unpack_state
from hpo.models.hyperparameters import Hyperparameters


class DivergenceError(ArithmeticError):
    """The loss or a weight is not finite."""


@dataclass(frozen=True)
class Epoch:
    """Finished epoch.

    Attributes:
        number: Number of the epoch, from 1.
        train_loss: Training loss, as the model defines it.
    """

    number: int
    train_loss: float


class Trainer:
    """Training of one model. On one kind of processor, it is a pure function of its arguments.

    Args:
        model: Untrained model.
        epochs: Number of epochs of the whole training.
        rng: Random generator of the model.
        metric: Metric of the model's outputs.
        made_from: Description of the arguments that the model was built from, for `restore`.

    Attributes:
        epoch: Number of finished epochs.
    """

    def __init__(
        self, model: Model, epochs: int, rng: np.random.Generator, metric: Metric, made_from: str = ""
    ) -> None:
        self._model = model
        self._epochs = epochs
        self._rng = rng
        self._metric = metric
        self._made_from = made_from
        self.epoch = 0

    def epochs(self, on_step: Callable[[], None] = lambda: None) -> Iterator[Epoch]:
        """Train from the current state to the last epoch; yield each epoch.

        Args:
            on_step: Called after each step. Its exceptions pass, and leave the training in the middle of an epoch. It
                then continues only from a checkpoint.

        Raises:
            DivergenceError: if the loss of an epoch, or a weight after it, is not finite.
        """
        while self.epoch < self._epochs:
            loss = self._model.fit_epoch(on_step)
            if not (math.isfinite(loss) and self._model.is_finite()):
                raise DivergenceError(f"epoch {self.epoch + 1}: the loss or a weight is not finite (loss {loss})")
            self.epoch += 1
            yield Epoch(self.epoch, loss)

    def score(self, split: Split) -> float:
        """Return the metric of the model's outputs for a split, without augmented copies."""
        return self._metric.score(self._model.predict(split.X[: len(split.y)]), split.y)

    def weights(self) -> Weights:
        """Return copies of the weights (inputs, units) and biases (units,) of each layer."""
        return self._model.weights()

    def save(self) -> bytes:
        """Return the state between two epochs, in the format of `hpo.models.checkpoint`."""
        rng = self._rng.bit_generator.state
        return pack_state(TrainingState(self._made_from, self.epoch, rng, self._model.state_dict()))

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
            self._model.load_state_dict(state.arrays)
            self._rng.bit_generator.state = state.rng
        except (KeyError, TypeError, RuntimeError, OverflowError) as error:
            raise ValueError(f"not a checkpoint of this training: {error}") from error
        self.epoch = state.epoch


def make_trainer(
    hyperparameters: Hyperparameters,
    train: Split,
    task: Task,
    classes: Array,
    seed: tuple[int, int],
    metric: Metric | None = None,
) -> Trainer:
    """Return the training of a trial.

    Args:
        hyperparameters: Hyperparameters of the trial. Their backend selects the model.
        train: Training split.
        task: Task of the study.
        classes: Classes of the data.
        seed: Seed of the study and number of the trial.
        metric: Metric of the trial; None for the default of the task.

    Raises:
        ValueError: if the training split is not valid for the model.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    model = model_type(hyperparameters.backend).build(hyperparameters, train, task, classes, rng)
    made_from = {
        "inputs": train.X.shape,
        "examples": len(train.y),
        "outputs": task.n_outputs(classes),
        "seed": seed,
        "hyperparameters": hyperparameters.model_dump(),
    }
    metric = metric or METRICS[DEFAULT_METRICS[task.name]]
    return Trainer(model, hyperparameters.epochs, rng, metric, json.dumps(made_from))
