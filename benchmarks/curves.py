"""Learning curves that were recorded on the real CIFAR-10, and a surrogate that extends them to all parameters.

``python -m benchmarks.curves`` records the curves of ``studies/cifar10.toml`` again, in some hours on two cores. It
continues after an interruption.
"""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import joblib
import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from threadpoolctl import threadpool_limits

from hpo.config.loader import find_study, load_config
from hpo.config.study import StudyConfig
from hpo.data.prepared.cache import PreparedData, load_prepared, prepare
from hpo.data.task import Classification
from hpo.models.nets.hyperparameters import hyperparameters_of
from hpo.models.trainer import make_trainer
from hpo.utils.files import atomic_write

RECORDED = Path(__file__).with_name("cifar10_curves.npz")
EPOCHS = 500
# A recording stops at an epoch if the mean accuracy of the recent epochs is below a minimum:
# (epoch, recent epochs, minimum).
EARLY_STOPS = [(60, 5, 0.42), (165, 10, 0.495)]

Floats = NDArray[np.float64]


class Point(NamedTuple):
    """Hyperparameters that a curve depends on."""

    learning_rate: float
    regularization: float
    hidden_size: int


@dataclass(frozen=True, eq=False)
class Curves:
    """Validation accuracies after each epoch.

    Attributes:
        points: Hyperparameters (curves, 3).
        correct: Correct predictions of 1,000 validation images (curves, ``EPOCHS``); -1 after the end of a recording.
    """

    points: Floats
    correct: NDArray[np.int16]

    @classmethod
    def load(cls, path: Path = RECORDED) -> "Curves":
        """Load curves from a file."""
        with np.load(path, allow_pickle=False) as file:
            return cls(file["points"], file["correct"])

    def save(self, path: Path) -> None:
        """Save the curves to a file."""
        with atomic_write(path) as file:
            np.savez_compressed(file, points=self.points, correct=self.correct)

    @property
    def lengths(self) -> NDArray[np.intp]:
        """Number of recorded epochs of each curve."""
        lengths: NDArray[np.intp] = (self.correct >= 0).sum(axis=1)
        return lengths


# The surrogate


def _coordinates(points: Floats) -> Floats:
    return np.column_stack([np.log10(points[:, 0]), np.log10(points[:, 1]), np.log(points[:, 2])])


def _logit(accuracy: Floats) -> Floats:
    clipped = np.clip(accuracy, 0.02, 0.98)
    logits: Floats = np.log(clipped / (1 - clipped))
    return logits


class Surrogate:
    """Model of the curve for any learning rate, regularization and hidden size.

    Curves are smoothed, sampled at epochs that are evenly spaced on a logarithmic scale, and described by five
    principal components of their logits. Each component is a Gaussian process of the three hyperparameters with a
    fitted noise level. The noise of a recorded curve is its difference from the prediction. A curve of the surrogate
    gets the noise of a recorded curve, which is drawn from the nearest.
    """

    COMPONENTS = 5
    NEIGHBORS = 8

    def __init__(self, curves: Curves) -> None:
        self._epochs = np.unique(np.round(np.geomspace(1, EPOCHS, 60)).astype(int))
        lengths = curves.lengths
        logits = _logit(
            np.array([self._sampled(row[:n] / 1000) for row, n in zip(curves.correct, lengths, strict=True)])
        )
        self._mean = logits.mean(axis=0)
        self._components = np.linalg.svd(logits - self._mean, full_matrices=False)[2][: self.COMPONENTS]
        coordinates = _coordinates(curves.points)
        self._center, self._scale = coordinates.mean(axis=0), coordinates.std(axis=0)
        self._positions = (coordinates - self._center) / self._scale
        scores = (logits - self._mean) @ self._components.T
        self._processes = [_fit(self._positions, column) for column in scores.T]
        whole = np.flatnonzero(lengths == EPOCHS)
        self._whole_positions = self._positions[whole]
        self._noise = curves.correct[whole] / 1000 - self._smooth(curves.points[whole])

    def curve(self, point: Point, rng: np.random.Generator) -> Floats:
        """Return the accuracy of a trial after each epoch, rounded to thousandths."""
        position = (_coordinates(np.array([point])) - self._center) / self._scale
        distances = ((self._whole_positions - position) ** 2).sum(axis=1)
        nearest = np.argsort(distances)[: self.NEIGHBORS]
        accuracy = self._smooth(np.array([point]))[0] + self._noise[rng.choice(nearest)]
        rounded: Floats = np.round(np.clip(accuracy, 0, 1), 3)
        return rounded

    def _smooth(self, points: Floats) -> Floats:
        """Return the predicted accuracies (points, ``EPOCHS``)."""
        positions = (_coordinates(points) - self._center) / self._scale
        scores = np.column_stack([process.predict(positions) for process in self._processes])
        accuracies = 1 / (1 + np.exp(-(scores @ self._components + self._mean)))
        every = np.log(np.arange(1, EPOCHS + 1))
        return np.array([np.interp(every, np.log(self._epochs), row) for row in accuracies])

    def _sampled(self, accuracy: Floats) -> Floats:
        """Return means over 3% of an epoch's number on both sides.

        After its end, a curve is constant.
        """
        widths = [math.floor(0.03 * epoch) for epoch in self._epochs]
        ends = np.minimum(self._epochs, len(accuracy))
        windows = zip(ends, widths, strict=True)
        return np.array([accuracy[max(0, end - width - 1) : end + width].mean() for end, width in windows])


@dataclass(frozen=True, eq=False)
class _Process:
    """Fitted Gaussian process that predicts without the checks of scikit-learn."""

    positions: Floats
    dual: Floats
    kernel: Any
    scale: float

    def predict(self, positions: Floats) -> Floats:
        """Return the means at these positions."""
        predicted: Floats = self.kernel(positions, self.positions) @ self.dual * self.scale
        return predicted


def _fit(positions: Floats, values: Floats) -> _Process:
    kernel = ConstantKernel() * Matern([1.0] * 3, (0.2, 100.0), nu=2.5) + WhiteKernel(0.05, (1e-3, 1.0))
    scale = float(values.std())
    with warnings.catch_warnings():
        # The later components hardly depend on some hyperparameters, so that length scales reach the upper bound.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process = GaussianProcessRegressor(kernel, random_state=0).fit(positions, values / scale)
    return _Process(positions, process.alpha_, process.kernel_, scale)


# The recording


class Task(NamedTuple):
    """Curve to record. The seed is the seed of the training."""

    seed: int
    point: Point


def designed() -> list[Task]:
    """Return the curves to record.

    The first 64 are in the region where nets learn well. The other curves cover all ranges.
    """
    best, everywhere = qmc.Sobol(3, rng=21).random(128)[:64], qmc.Sobol(3, rng=12).random(256)
    tasks = [
        Task(1000 + number, Point(10 ** (-3.2 + 1.2 * a), 10 ** (-3.4 + 1.4 * b), int(110 + 291 * c)))
        for number, (a, b, c) in enumerate(best)
    ]
    for number, (a, b, c) in enumerate(everywhere):
        learning_rate = 10 ** float(np.interp(a, [0, 0.08, 0.2, 1], [-7, -5, -4, -2]))
        regularization = 10 ** float(np.interp(b, [0, 0.25, 1], [-7, -5, -2]))
        tasks.append(Task(number, Point(learning_rate, regularization, int(32 + 369 * c))))
    return tasks


def record(config: StudyConfig, data: PreparedData, task: Task) -> NDArray[np.int16]:
    """Train once, and return the curve as a row of ``Curves.correct``."""
    hyperparameters = hyperparameters_of(config, task.point._asdict() | {"epochs": EPOCHS})
    trainer = make_trainer(hyperparameters, [data.folds[0].train], Classification(), data.classes, (1000, task.seed))
    correct = np.full(EPOCHS, -1, np.int16)
    for epoch in trainer.epochs():
        correct[epoch.number - 1] = round(trainer.scores([data.folds[0].validation])[0] * 1000)
        if _stops_early(correct[: epoch.number]):
            break
    return correct


def _stops_early(correct: NDArray[np.int16]) -> bool:
    for epoch, recent, minimum in EARLY_STOPS:
        if len(correct) == epoch:
            return bool(correct[-recent:].mean() / 1000 < minimum)
    return False


def _record_into(folder: Path, task: Task, study: Path, prepared: Path) -> None:
    path = folder / f"{task.seed}.npy"
    if path.exists():
        return
    with threadpool_limits(1):
        correct = record(load_config(study), load_prepared(prepared), task)
    with atomic_write(path) as file:
        np.save(file, correct, allow_pickle=False)


@click.command("python -m benchmarks.curves")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--first", type=click.IntRange(8), help="Number of curves.  [default: all]")
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), default=RECORDED, help="File for all curves."
)
def main(folder: Path, first: int | None, output: Path) -> None:
    """Record learning curves of studies/cifar10.toml.

    Each curve gets a file in FOLDER. At the end, a single file gets all curves.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study = find_study("cifar10")
    prepared = prepare(load_config(study)).folder
    tasks = designed()[:first]
    joblib.Parallel(-1)(joblib.delayed(_record_into)(folder, task, study, prepared) for task in tasks)
    rows = [np.load(folder / f"{task.seed}.npy", allow_pickle=False) for task in tasks]
    Curves(np.array([task.point for task in tasks], np.float64), np.array(rows, np.int16)).save(output)
    click.echo(f"{len(rows)} curves, {sum(int((row >= 0).sum()) for row in rows)} epochs: {output}")


if __name__ == "__main__":
    main()
