"""Experiments of the report: the published figures, and the studies that give ours."""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from hpo.config.study import Setting
from hpo.data.sources import Array
from hpo.models.base import is_installed
from hpo.models.predictor import Predictor
from hpo.paper.gradients import REGULARIZATION, SIZES, gradient_errors
from hpo.paper.names import EXPERIMENTS
from hpo.paper.runner import ExperimentRunner, TrainedStudy, TrialResult
from hpo.paper.table import LINE_BREAK, Row

BEST_PARAMS = {
    "learning_rate": 0.002239034272168369,
    "regularization": 0.00015834527427829734,
    "hidden_size": 330,
    "epochs": 412,
}
PLAIN = {"momentum": 0.0, "learning_rate_decay": 1.0}
LAYERS = ((200,), (200, 150), (200, 150, 100), (200, 150, 100, 80))
WEAK_L2, STRONG_L2 = 1e-7, 1e-2

# Accuracy of a net of ten classes that has learned next to nothing.
CHANCE_LEVEL = 0.2

_NO_TORCH = "PyTorch is not installed; install it with: pip install 'hpo[torch]'"
_LOAD = "import sys, numpy, hpo; print(hpo.load_predictor(sys.argv[1]).score(*numpy.load(sys.argv[2]).values()))"
_CHANCE = "another split and other first weights"

Figures = Mapping[str, Sequence[float]]


def gradients(_: ExperimentRunner) -> Iterator[Row]:
    """Compare the formulas with finite differences and autograd."""
    errors = {name: [f"{kind} {error:.0e}" for kind, error in by.items()] for name, by in gradient_errors().items()}
    lines = [f"{name}: {', '.join(by)}" for name, by in errors.items()]
    lines += [] if is_installed("torch") else [f"autograd: {_NO_TORCH}"]
    yield Row(
        "Backpropagation by hand: the gradients of W1, b1, W2, b2",
        "formulas",
        LINE_BREAK.join(lines),
        f"a step of a net of {'-'.join(map(str, SIZES))} units in float64, λ = {REGULARIZATION}; relative errors",
    )


def toy(runner: ExperimentRunner) -> Iterator[Row]:
    """Train by SGD on five points."""
    whole, half = runner.train("toy"), runner.train("toy", name="toy_50", epochs=50)
    loss, before = (study.best().metrics["train_loss"] for study in (whole, half))
    yield Row(
        "SGD on a toy set: 5 points, 4 features, 3 classes, 10 hidden units",
        "loss 0.0156, stable after about 50 iterations",
        f"loss {loss:.4f} after 100 iterations, {before:.4f} after 50",
        f"{whole.cost_summary}; {half.cost_summary}, the first half of the same",
        f"loss {loss - 0.0156:+.4f}: other points, other first weights",
    )


def raw(runner: ExperimentRunner) -> Iterator[Row]:
    """Train a two-layer net on pixels."""
    study = runner.train("cifar10_raw")
    metrics = study.best().metrics
    yield _comparison(
        "Two-layer net on raw pixels (mean subtracted, no PCA), 2,000 iterations of SGD at a small learning rate",
        {"loss": [1.962], "validation": [0.29]},
        {"": {"loss": [metrics["train_loss"]], "validation": [metrics["validation_accuracy"]]}},
        study.cost_summary,
        "the report gives neither its learning rate nor its hidden units; ours are 50",
    )


def pca(runner: ExperimentRunner) -> Iterator[Row]:
    """Count the components of PCA."""
    data = runner.prepare("cifar10_random_grid")
    kept = data.components
    reason = "the project's images went through JPEG, which takes fine detail and its variance away"
    yield Row(
        "PCA at 95% of the variance",
        "216 of 3,072 features",
        f"{kept} of {data.features:,}",
        f"fitted to {data.sizes.train:,} images; `python -m hpo.launch cifar10_random_grid` prints it",
        "" if kept == 216 else f"{(kept or 0) - 216:+d}: {reason}; the official files give 216",
    )


def random_grid(runner: ExperimentRunner) -> Iterator[Row]:
    """Search random points of the grid."""
    study = runner.train("cifar10_random_grid")
    yield _comparison(
        "The 20⁴ grid, 100 random points of it, the best on validation",
        {"training": [0.62718], "validation": [0.551], "test": [0.551]},
        {"": _accuracies([study.best()], "training", "validation", "test")},
        f"{study.cost_summary}; theirs took about 6 hours",
        f"another random grid; momentum 0.9 and a decaying learning rate are ours; {_CHANCE}",
    )


def best(runner: ExperimentRunner) -> Iterator[Row]:
    """Train with the best parameters of the report."""
    study, plain = _train_best_params(runner), _train_best_params(runner, "plain", **PLAIN)
    studies = {"as our grid": study, "plain SGD": plain}
    yield _comparison(
        f"Its best parameters ({', '.join(map(str, BEST_PARAMS.values()))})",
        {"training": [0.62718], "validation": [0.551], "test": [0.551]},
        {name: _accuracies([study.best()], "training", "validation", "test") for name, study in studies.items()},
        f"{study.cost_summary}: `cifar10_random_grid` with these parameters enqueued; {plain.cost_summary}: the same "
        "without momentum and decay",
        f"the report does not give its optimizer: without momentum we are nearer to its training accuracy; {_CHANCE}",
    )


def torch(runner: ExperimentRunner) -> Iterator[Row]:
    """Train the two-layer net in PyTorch."""
    title, published = "A PyTorch two-layer net", {"validation": [0.503], "test": [0.506]}
    if not is_installed("torch"):
        yield Row(title, _format(published, "g"), _NO_TORCH, "not run")
        return
    numpy_study = _train_best_params(runner)
    torch_study = _train_best_params(runner, "torch", backend="torch")
    studies = {"PyTorch": torch_study, "NumPy": numpy_study}
    yield _comparison(
        title,
        published,
        {name: _accuracies([study.best()]) for name, study in studies.items()},
        f'{torch_study.cost_summary}: the same with `backend = "torch"`; {numpy_study.cost_summary}',
        "the report does not give its parameters; ours are those above, of the same first weights and batches as "
        "NumPy's, and rounding grows over the epochs",
    )


def deep(runner: ExperimentRunner) -> Iterator[Row]:
    """Train nets of two to five layers, with strong and with weak regularization."""
    studies = {"NumPy": runner.train("cifar10_deep")}
    if is_installed("torch"):
        studies["PyTorch"] = runner.train("cifar10_deep", name="cifar10_deep_torch", backend="torch")
    method = "; ".join(study.cost_summary for study in studies.values())
    strong = {name: _by_depth(study, STRONG_L2) for name, study in studies.items()}
    weak = {name: _by_depth(study, WEAK_L2) for name, study in studies.items()}
    deepest = strong["NumPy"]["validation"][-1]
    collapse = (
        "shown" if deepest <= CHANCE_LEVEL else f"refuted for our nets: with five layers the worst is {deepest:.3f}"
    )
    skipped = "" if is_installed("torch") else f"{LINE_BREAK}PyTorch: {_NO_TORCH}"
    yield _comparison(
        "PyTorch nets of 2, 3, 4, 5 layers with the default regularization",
        {"validation": [0.534, 0.524, 0.515, 0.078], "test": [0.549, 0.536, 0.542, 0.09]},
        strong,
        f"{method}; λ = {STRONG_L2}{skipped}",
        f"the collapse is {collapse}; the report does not give its default, ours is the largest of its range",
    )
    yield _comparison(
        "The same with regularization 1e-7",
        {"validation": [0.548, 0.570, 0.545, 0.547], "test": [0.548, 0.557, 0.567, 0.524]},
        weak,
        f"the same studies; λ = {WEAK_L2}{skipped}",
        f"the report does not give its learning rate and epochs; ours overfit; {_CHANCE}",
    )


def saved(runner: ExperimentRunner) -> Iterator[Row]:
    """Score a saved net in another process."""
    study = runner.train("cifar10_deep")
    trial = study.trial_with(hidden_layers=LAYERS[2], regularization=WEAK_L2)
    before, after = trial.metrics["test_accuracy"], _score_in_new_process(trial.predictor, *study.test_split())
    difference = "the same to the last digit" if after == before else f"they differ by {after - before:+}"
    yield Row(
        "Its best model (200, 150, 100), saved and loaded without training",
        "model.ckpt",
        f"test accuracy {before} when saved, {after} when loaded",
        f"trial {trial.number} of `{study.name}`, written as by `hpo.export --trial {trial.number} --model`, then "
        "`hpo.load_predictor` in a fresh process",
        difference,
    )


RUN: Mapping[str, Callable[[ExperimentRunner], Iterator[Row]]] = dict(
    zip(EXPERIMENTS, (gradients, toy, raw, pca, random_grid, best, torch, deep, saved), strict=True)
)


def _train_best_params(runner: ExperimentRunner, kind: str = "", **changes: Setting) -> TrainedStudy:
    name = "cifar10_report" + f"_{kind}" * bool(kind)
    return runner.train("cifar10_random_grid", name=name, enqueued=[BEST_PARAMS], trials=1, **changes)


def _by_depth(study: TrainedStudy, regularization: float) -> Figures:
    trials = [study.trial_with(hidden_layers=layers, regularization=regularization) for layers in LAYERS]
    return _accuracies(trials)


def _accuracies(trials: Sequence[TrialResult], *parts: str) -> Figures:
    keys = {"training": "train_accuracy", "validation": "validation_accuracy", "test": "test_accuracy"}
    return {part: [trial.metrics[keys[part]] for trial in trials] for part in parts or ("validation", "test")}


def _comparison(experiment: str, published: Figures, ours: Mapping[str, Figures], method: str, reason: str) -> Row:
    """Return a row of figures and their differences; each entry of ``ours`` is a line with its key in front."""
    named = [(f"{name}: " if name else "", figures) for name, figures in ours.items()]
    lines = [name + _format(figures) for name, figures in named]
    differences = [name + _format(_minus(figures, published), "+.3f") for name, figures in named]
    remark = LINE_BREAK.join([*differences, reason])
    return Row(experiment, _format(published, "g"), LINE_BREAK.join(lines), method, remark)


def _minus(ours: Figures, published: Figures) -> Figures:
    return {key: [a - b for a, b in zip(ours[key], published[key], strict=True)] for key in published}


def _format(figures: Figures, spec: str = ".3f") -> str:
    return "; ".join(f"{key} {', '.join(format(value, spec) for value in values)}" for key, values in figures.items())


def _score_in_new_process(predictor: Predictor, X: Array, y: Array) -> float:
    """Return the accuracy of a saved predictor in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        model, test = Path(folder, "model.npz"), Path(folder, "test.npz")
        predictor.save(model)
        np.savez(test, X=X, y=y)
        command = [sys.executable, "-c", _LOAD, str(model), str(test)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603  # this very Python
        return float(done.stdout)
