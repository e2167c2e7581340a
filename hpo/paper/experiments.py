"""The report that hpo began with: its experiments, the figures that it gives, and how we get ours."""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpo.config.study import Setting
from hpo.models.mlp import Array
from hpo.models.optional_dependencies import has_torch
from hpo.models.predictor import Predictor
from hpo.paper.gradients import REGULARIZATION, SIZES, gradient_errors
from hpo.paper.runner import Lab, Measured, Trained
from hpo.ui import cli

BEST_PARAMS = {
    "learning_rate": 0.002239034272168369,
    "regularization": 0.00015834527427829734,
    "hidden_size": 330,
    "epochs": 412,
}
PLAIN = {"momentum": 0.0, "learning_rate_decay": 1.0}
LAYERS = ((200,), (200, 150), (200, 150, 100), (200, 150, 100, 80))
WEAK_L2, STRONG_L2 = 1e-7, 1e-2  # regularization
CHANCE_LEVEL = 0.2  # a net of ten classes that is not above it has learned next to nothing

LINE = "<br>"  # between the lines of a cell

_NO_TORCH = "PyTorch is not installed; install it with: pip install 'hpo[torch]'"
_LOAD = "import sys, numpy, hpo; print(hpo.load_predictor(sys.argv[1]).score(*numpy.load(sys.argv[2]).values()))"
_LUCK = "another split and other first weights"

Figures = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Row:
    """A line of the table; ``remark`` tells by how much ours differs, and the likely reason."""

    experiment: str
    theirs: str
    ours: str
    how: str
    remark: str = ""


def gradients(_: Lab) -> Iterator[Row]:
    """The formulas, beside finite differences and autograd."""
    errors = {name: [f"{which} {error:.0e}" for which, error in of.items()] for name, of in gradient_errors().items()}
    lines = [f"{name}: {', '.join(of)}" for name, of in errors.items()]
    lines += [] if has_torch() else [f"autograd: {_NO_TORCH}"]
    yield Row(
        "Backpropagation by hand: the gradients of W1, b1, W2, b2",
        "formulas",
        LINE.join(lines),
        f"a step of a net of {'-'.join(map(str, SIZES))} units in float64, λ = {REGULARIZATION}; relative errors",
    )


def toy(lab: Lab) -> Iterator[Row]:
    """SGD on five points."""
    with lab.trained("toy") as whole, lab.trained("toy", name="toy_50", epochs=50) as half:
        loss, before = (study.best().metrics["train_loss"] for study in (whole, half))
        yield Row(
            "SGD on a toy set: 5 points, 4 features, 3 classes, 10 hidden units",
            "loss 0.0156, stable after about 50 iterations",
            f"loss {loss:.4f} after 100 iterations, {before:.4f} after 50",
            f"{whole.effort}; {half.effort}, the first half of the same",
            f"loss {loss - 0.0156:+.4f}: other points, other first weights",
        )


def raw(lab: Lab) -> Iterator[Row]:
    """A two-layer net on pixels."""
    with lab.trained("cifar10_raw") as study:
        metrics = study.best().metrics
        yield _compared(
            "Two-layer net on raw pixels (mean subtracted, no PCA), 2,000 iterations of SGD at a small learning rate",
            {"loss": [1.962], "validation": [0.29]},
            {"": {"loss": [metrics["train_loss"]], "validation": [metrics["validation_accuracy"]]}},
            study.effort,
            "the report gives neither its learning rate nor its hidden units; ours are 50",
        )


def pca(lab: Lab) -> Iterator[Row]:
    """What PCA keeps of the pixels."""
    data = lab.prepared("cifar10_random_grid")
    kept = data.components
    reason = "the project's images went through JPEG, which takes fine detail and its variance away"
    yield Row(
        "PCA at 95% of the variance",
        "216 of 3,072 features",
        f"{kept} of {data.features:,}",
        f"fitted to {data.sizes.train:,} images; `python -m hpo.launch cifar10_random_grid` prints it",
        "" if kept == 216 else f"{(kept or 0) - 216:+d}: {reason}; the official files give 216",
    )


def random_grid(lab: Lab) -> Iterator[Row]:
    """The report's search."""
    with lab.trained("cifar10_random_grid") as study:
        yield _compared(
            "The 20⁴ grid, 100 random points of it, the best on validation",
            {"training": [0.62718], "validation": [0.551], "test": [0.551]},
            {"": _accuracies([study.best()], "training", "validation", "test")},
            f"{study.effort}; theirs took about 6 hours",
            f"another random grid; momentum 0.9 and a decaying learning rate are ours; {_LUCK}",
        )


def best(lab: Lab) -> Iterator[Row]:
    """What the report's search found."""
    with _with_best_params(lab) as study, _with_best_params(lab, "plain", **PLAIN) as plain:
        studies = {"as our grid": study, "plain SGD": plain}
        yield _compared(
            f"Its best parameters ({', '.join(map(str, BEST_PARAMS.values()))})",
            {"training": [0.62718], "validation": [0.551], "test": [0.551]},
            {name: _accuracies([one.best()], "training", "validation", "test") for name, one in studies.items()},
            f"{study.effort}: `cifar10_random_grid` with these parameters enqueued; {plain.effort}: the same without "
            "momentum and decay",
            f"the report does not give its optimizer: without momentum we are nearer to its training accuracy; {_LUCK}",
        )


def torch(lab: Lab) -> Iterator[Row]:
    """The two-layer net in PyTorch."""
    title, theirs = "A PyTorch two-layer net", {"validation": [0.503], "test": [0.506]}
    if not has_torch():
        yield Row(title, _shown(theirs, "g"), _NO_TORCH, "not run")
        return
    with _with_best_params(lab) as numpy_study, _with_best_params(lab, "torch", backend="torch") as torch_study:
        ours = {name: _accuracies([study.best()]) for name, study in (("PyTorch", torch_study), ("NumPy", numpy_study))}
        yield _compared(
            title,
            theirs,
            ours,
            f'{torch_study.effort}: the same with `backend = "torch"`; {numpy_study.effort}',
            "the report does not give its parameters; ours are those above, of the same first weights and batches as "
            "NumPy's, and rounding grows over the epochs",
        )


def deep(lab: Lab) -> Iterator[Row]:
    """Nets of two to five layers, with much and with little regularization."""
    with ExitStack() as stack:
        studies = {"NumPy": stack.enter_context(lab.trained("cifar10_deep"))}
        if has_torch():
            study = stack.enter_context(lab.trained("cifar10_deep", name="cifar10_deep_torch", backend="torch"))
            studies["PyTorch"] = study
        how = "; ".join(study.effort for study in studies.values())
        much = {name: _by_depth(study, STRONG_L2) for name, study in studies.items()}
        little = {name: _by_depth(study, WEAK_L2) for name, study in studies.items()}
    five = much["NumPy"]["validation"][-1]
    collapse = "shown" if five <= CHANCE_LEVEL else f"refuted for our nets: with five layers the worst is {five:.3f}"
    ignored = "" if has_torch() else f"{LINE}PyTorch: {_NO_TORCH}"
    yield _compared(
        "PyTorch nets of 2, 3, 4, 5 layers with the default regularization",
        {"validation": [0.534, 0.524, 0.515, 0.078], "test": [0.549, 0.536, 0.542, 0.09]},
        much,
        f"{how}; λ = {STRONG_L2}{ignored}",
        f"the collapse is {collapse}; the report does not give its default, ours is the largest of its range",
    )
    yield _compared(
        "The same with regularization 1e-7",
        {"validation": [0.548, 0.570, 0.545, 0.547], "test": [0.548, 0.557, 0.567, 0.524]},
        little,
        f"the same studies; λ = {WEAK_L2}{ignored}",
        f"the report does not give its learning rate and epochs; ours overfit; {_LUCK}",
    )


def saved(lab: Lab) -> Iterator[Row]:
    """A net that is taken up again without training."""
    with lab.trained("cifar10_deep") as study:
        net = study.trial_with(hidden_layers=LAYERS[2], regularization=WEAK_L2)
        before, after = net.metrics["test_accuracy"], _score_elsewhere(net.predictor, *study.test())
        same = "the same to the last digit" if after == before else f"they differ by {after - before:+}"
        yield Row(
            "Its best model (200, 150, 100), saved and loaded without training",
            "model.ckpt",
            f"test accuracy {before} when saved, {after} when loaded",
            f"trial {net.number} of `{study.name}`, written as by `hpo.export --trial {net.number} --model`, then "
            "`hpo.load_predictor` in a fresh process",
            same,
        )


EXPERIMENTS: Mapping[str, Callable[[Lab], Iterator[Row]]] = dict(
    zip(cli.EXPERIMENTS, (gradients, toy, raw, pca, random_grid, best, torch, deep, saved), strict=True)
)
WHOLE = ("gradients", "toy")  # take seconds, and are never cut down


def _with_best_params(lab: Lab, kind: str = "", **changes: Setting) -> AbstractContextManager[Trained]:
    name = "cifar10_report" + f"_{kind}" * bool(kind)
    return lab.trained("cifar10_random_grid", name=name, trials=1, enqueued=[BEST_PARAMS], **changes)


def _by_depth(study: Trained, regularization: float) -> Figures:
    nets = [study.trial_with(hidden_layers=layers, regularization=regularization) for layers in LAYERS]
    return _accuracies(nets)


def _accuracies(results: Sequence[Measured], *parts: str) -> Figures:
    keys = {"training": "train_accuracy", "validation": "validation_accuracy", "test": "test_accuracy"}
    return {part: [one.metrics[keys[part]] for one in results] for part in parts or ("validation", "test")}


def _compared(experiment: str, theirs: Figures, ours: Mapping[str, Figures], how: str, reason: str) -> Row:
    """A row of figures; ``ours`` by what each line begins with."""
    named = [(f"{name}: " if name else "", figures) for name, figures in ours.items()]
    lines = [name + _shown(figures) for name, figures in named]
    differences = [name + _shown(_minus(figures, theirs), "+.3f") for name, figures in named]
    return Row(experiment, _shown(theirs, "g"), LINE.join(lines), how, LINE.join([*differences, reason]))


def _minus(ours: Figures, theirs: Figures) -> Figures:
    return {key: [a - b for a, b in zip(ours[key], theirs[key], strict=True)] for key in theirs}


def _shown(figures: Figures, form: str = ".3f") -> str:
    return "; ".join(f"{key} {', '.join(format(value, form) for value in values)}" for key, values in figures.items())


def _score_elsewhere(predictor: Predictor, X: Array, y: Array) -> float:
    """The share of raw features that a fresh process labels correctly."""
    with tempfile.TemporaryDirectory() as folder:
        model, test = Path(folder, "model.npz"), Path(folder, "test.npz")
        predictor.save(model)
        np.savez(test, X=X, y=y)
        command = [sys.executable, "-c", _LOAD, str(model), str(test)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603  # this very Python
        return float(done.stdout)
