"""``python -m benchmarks.step``: what a step of gradient descent costs on one core, beside what it cannot do without.

A net of one hidden layer is trained on random data of the shape of prepared CIFAR-10, in float32, by one thread:

products: the five matrix products of a step, into arrays made once, with nothing between them.
step: a step of hpo on a batch in hand.
epoch: an epoch of hpo, shuffling and gathering of the batches included, divided by its number of batches.
torch: the same step by PyTorch, eager and with the optimizer's defaults.
sklearn: the same epoch by scikit-learn's MLPClassifier. What each of its fits does first weighs more in shorter epochs:
    compare only those of the same number of rows.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.measuring import (
    Spread,
    Work,
    environment,
    json_option,
    machine,
    print_table,
    ratio,
    spread,
    time_alternately,
    versions,
    write_json,
)
from hpo.config.study import Hyperparameters
from hpo.data.cache import Split
from hpo.errors import HpoError
from hpo.models.mlp import MLP, Array
from hpo.models.trainer import Trainer

ROWS, FEATURES, CLASSES = 49_000, 197, 10
BATCH_SIZE = 200
HIDDEN_SIZES = (32, 128, 330, 400)
MOMENTA = (0.0, 0.9)
LEARNING_RATE = 1e-3
REGULARIZATION = 1e-4
ENDLESS = 10**9  # epochs

# Without momentum: a step is to take at most so many times the products, the others at least so many times hpo.
TARGETS = {
    "step_over_products": {32: 1.6, 128: 1.25, 330: 1.12, 400: 1.10},
    "torch_over_step": {32: 4.0, 128: 2.5, 330: 1.9, 400: 1.9},
    "sklearn_over_step": {32: 4.5, 128: 2.7, 330: 2.6, 400: 2.5},
}
LABELS = {
    "step_microseconds": "step, µs",
    "step_over_products": "step / products",
    "epoch_over_products": "epoch per batch / products",
    "torch_over_step": "torch / step",
    "sklearn_over_step": "sklearn / epoch",
}

Figures = dict[str, Spread | None]


def random_data(rows: int) -> Split:
    """Normal inputs and any labels, as training takes them: X (rows, FEATURES + 1) ends in the constant 1."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, FEATURES + 1), np.float32)
    X[:, -1] = 1
    return Split(X, rng.integers(CLASSES, size=rows))


def products(features: int, hidden: int, classes: int) -> Work:
    """The matrix products of one step on a batch, biases left out: no net of one hidden layer has fewer."""
    rng = np.random.default_rng(0)

    def array(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32)

    X, W1, W2 = array(BATCH_SIZE, features), array(features, hidden), array(hidden, classes)
    h, s = array(BATCH_SIZE, hidden), array(BATCH_SIZE, classes)
    h_out, s_out, h_gradient = np.empty_like(h), np.empty_like(s), np.empty_like(h)
    W1_gradient, W2_gradient = np.empty_like(W1), np.empty_like(W2)

    def work() -> None:
        np.matmul(X, W1, out=h_out)
        np.matmul(h, W2, out=s_out)
        np.matmul(h.T, s, out=W2_gradient)
        np.matmul(s, W2.T, out=h_gradient)
        np.matmul(X.T, h_gradient, out=W1_gradient)

    return work


def step(data: Split, hidden: int, momentum: float) -> Work:
    """A step of hpo on a batch in hand."""
    network = MLP(
        [FEATURES, hidden, CLASSES],
        batch_size=BATCH_SIZE,
        regularization=REGULARIZATION,
        momentum=momentum,
        rng=np.random.default_rng(0),
    )
    return partial(network.step, data.X[:BATCH_SIZE], data.y[:BATCH_SIZE], LEARNING_RATE)


def epoch(data: Split, hidden: int, momentum: float) -> Work:
    """An epoch of a trial's training."""
    hyperparameters = Hyperparameters(
        learning_rate=LEARNING_RATE,
        regularization=REGULARIZATION,
        hidden_size=hidden,
        epochs=ENDLESS,
        batch_size=BATCH_SIZE,
        momentum=momentum,
    )
    return partial(next, Trainer(data, CLASSES, hyperparameters, seed=(0, 0)).epochs())


def torch_step(data: Split, hidden: int, momentum: float) -> Work:
    """The same step by PyTorch, on a batch in hand."""
    import torch

    torch.set_num_threads(1)
    first, second = torch.nn.Linear(FEATURES, hidden), torch.nn.Linear(hidden, CLASSES)
    network, loss = torch.nn.Sequential(first, torch.nn.ReLU(), second), torch.nn.CrossEntropyLoss()
    # The penalty is of the weights alone, and its gradient twice the weights.
    groups = [
        {"params": [first.weight, second.weight], "weight_decay": 2 * REGULARIZATION},
        {"params": [first.bias, second.bias]},
    ]
    optimizer = torch.optim.SGD(groups, lr=LEARNING_RATE, momentum=momentum)
    X, y = torch.from_numpy(data.features[:BATCH_SIZE].copy()), torch.from_numpy(data.y[:BATCH_SIZE])

    def work() -> None:
        optimizer.zero_grad()
        loss(network(X), y).backward()
        optimizer.step()

    return work


def sklearn_epoch(data: Split, hidden: int, momentum: float) -> Work:
    """The same epoch by scikit-learn."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    classifier = MLPClassifier(
        hidden,
        solver="sgd",
        batch_size=BATCH_SIZE,
        learning_rate_init=LEARNING_RATE,
        momentum=momentum,
        nesterovs_momentum=False,
        alpha=2 * REGULARIZATION * BATCH_SIZE,  # its penalty is halved and divided by the batch
        max_iter=1,
        warm_start=True,
        random_state=0,
    )
    X = data.features.copy()

    def work() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # after one epoch: how could it
            classifier.fit(X, data.y)

    return work


def measure_net(data: Split, hidden: int, momentum: float, rounds: int) -> Figures:
    """All figures of one net; None for that of PyTorch where it is not installed."""
    makers: dict[str, Callable[[Split, int, float], Work]] = {"step": step, "epoch": epoch, "sklearn": sklearn_epoch}
    if find_spec("torch"):
        makers["torch"] = torch_step
    works = {name: make(data, hidden, momentum) for name, make in makers.items()}
    works["products"] = products(FEATURES, hidden, CLASSES)
    # Only now: libraries that are loaded later would not be limited.
    with threadpool_limits(1):
        seconds = time_alternately(works, rounds)
    batches = math.ceil(len(data.y) / BATCH_SIZE)
    return {
        "step_microseconds": spread([1e6 * one for one in seconds["step"]]),
        "step_over_products": ratio(seconds["step"], seconds["products"]),
        "epoch_over_products": ratio([one / batches for one in seconds["epoch"]], seconds["products"]),
        "torch_over_step": ratio(seconds["torch"], seconds["step"]) if "torch" in seconds else None,
        "sklearn_over_step": ratio(seconds["sklearn"], seconds["epoch"]),
    }


def show(momentum: float, nets: dict[int, Figures]) -> None:
    """A table with a column for each hidden size, and the targets under what they are of."""
    rows = [[f"momentum {momentum}", *(f"hidden {size}" for size in nets)]]
    for name, label in LABELS.items():
        found = [figures[name] for figures in nets.values()]
        rows.append([label, *("not installed" if one is None else str(one) for one in found)])
        if momentum == 0 and name in TARGETS:
            bound = "at most" if name == "step_over_products" else "at least"
            rows.append([f"  target: {bound}", *(str(TARGETS[name].get(size, "")) for size in nets)])
    print_table(rows)


def by_figure(nets: dict[int, Figures], show_one: Callable[[Spread], Any]) -> dict[str, dict[str, Any]]:
    """What to show of each as ``{figure: {hidden size: ...}}``; None where there is none."""
    return {
        name: {str(size): None if (one := figures[name]) is None else show_one(one) for size, figures in nets.items()}
        for name in LABELS
    }


def as_json(plain: dict[int, Figures], heavy: dict[int, Figures]) -> dict[str, Any]:
    """The medians without momentum, those with momentum apart, and then the spread of all."""

    def median(one: Spread) -> float:
        return one.median

    return {
        **by_figure(plain, median),
        "momentum_0.9": by_figure(heavy, median),
        "spread": {"momentum_0": by_figure(plain, asdict), "momentum_0.9": by_figure(heavy, asdict)},
    }


@click.command("python -m benchmarks.step", context_settings={"show_default": True})
@click.option("--rounds", type=click.IntRange(1), default=20, help="Timings of each piece of work.")
@click.option("--hidden", "sizes", type=click.IntRange(1), multiple=True, default=HIDDEN_SIZES, help="Hidden units.")
@click.option("--rows", type=click.IntRange(BATCH_SIZE), default=ROWS, help="Examples of an epoch.")
@json_option
def main(rounds: int, sizes: tuple[int, ...], rows: int, output: Path | None) -> None:
    """Time a step of hpo beside its bare matrix products, PyTorch and scikit-learn, by one thread."""
    click.echo(environment())
    click.echo(
        f"medians of {rounds} rounds (lowest-highest), one thread, batches of {BATCH_SIZE}, {rows} rows an epoch"
    )
    data = random_data(rows)
    nets: dict[float, dict[int, Figures]] = {}
    for momentum in MOMENTA:
        nets[momentum] = {size: measure_net(data, size, momentum, rounds) for size in sizes}
        click.echo()
        show(momentum, nets[momentum])
    if not find_spec("torch"):
        click.echo("\ntorch is not installed: pip install '.[bench]'")
    if output is not None:
        figures = {**as_json(*nets.values()), "rows": rows, "machine": machine(), "versions": versions()}
        try:
            write_json(output, figures)
        except HpoError as error:
            raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
