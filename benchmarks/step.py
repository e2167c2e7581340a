"""``python -m benchmarks.step``: cost of a step of gradient descent on one core, relative to its matrix products.

A net of one hidden layer trains on random data of the shape of prepared CIFAR-10, in float32 and by one thread:

products: the five matrix products of a step, into arrays that are allocated once.
step: a step of hpo on a given batch.
epoch: an epoch of hpo with shuffling and gathering of the batches, divided by its number of batches.
torch: the same step by PyTorch, eager and with the optimizer's defaults.
sklearn: the same epoch by scikit-learn's MLPClassifier. Each fit has a fixed cost, which weighs more in a short epoch.
    Compare only measurements of the same number of rows.
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
from hpo.data.division.splits import Split
from hpo.data.task import Classification
from hpo.errors import HpoError
from hpo.models.nets.hyperparameters import Hyperparameters
from hpo.models.nets.mlp import MLP, Array, NetSettings
from hpo.models.trainer import make_trainer

ROWS, FEATURES, CLASSES = 49_000, 197, 10
BATCH_SIZE = 200
HIDDEN_SIZES = (32, 128, 330, 400)
MOMENTA = (0.0, 0.9)
LEARNING_RATE = 1e-3
REGULARIZATION = 1e-4
# More epochs than a benchmark trains.
ENDLESS = 10**9

# Targets without momentum, by hidden size. A step takes at most this many times the products, and the other libraries
# take at least this many times hpo.
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
    """Return normal inputs (rows, FEATURES + 1), which end in the constant 1, and random labels."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, FEATURES + 1), np.float32)
    X[:, -1] = 1
    return Split(X, rng.integers(CLASSES, size=rows))


def products(features: int, hidden: int, classes: int) -> Work:
    """Return the matrix products of one step on a batch, without biases.

    A net of one hidden layer needs all of them.
    """
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
    """Return a step of hpo on a given batch."""
    network = MLP(
        [FEATURES, hidden, CLASSES],
        NetSettings(REGULARIZATION, momentum),
        batch_size=BATCH_SIZE,
        rng=np.random.default_rng(0),
    )
    return partial(network.step, data.X[:BATCH_SIZE], data.y[:BATCH_SIZE], LEARNING_RATE)


def epoch(data: Split, hidden: int, momentum: float) -> Work:
    """Return an epoch of a trial's training."""
    hyperparameters = Hyperparameters(
        learning_rate=LEARNING_RATE,
        regularization=REGULARIZATION,
        hidden_size=hidden,
        epochs=ENDLESS,
        batch_size=BATCH_SIZE,
        momentum=momentum,
    )
    trainer = make_trainer(hyperparameters, [data], Classification(), np.arange(CLASSES), seed=(0, 0))
    return partial(next, trainer.epochs())


def torch_step(data: Split, hidden: int, momentum: float) -> Work:
    """Return the same step by PyTorch, on a given batch."""
    import torch

    torch.set_num_threads(1)
    first, second = torch.nn.Linear(FEATURES, hidden), torch.nn.Linear(hidden, CLASSES)
    network, loss = torch.nn.Sequential(first, torch.nn.ReLU(), second), torch.nn.CrossEntropyLoss()
    # The penalty leaves out the biases. Its gradient is twice the weights.
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
    """Return the same epoch by scikit-learn."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    classifier = MLPClassifier(
        hidden,
        solver="sgd",
        batch_size=BATCH_SIZE,
        learning_rate_init=LEARNING_RATE,
        momentum=momentum,
        nesterovs_momentum=False,
        # scikit-learn halves its penalty and divides it by the batch size.
        alpha=2 * REGULARIZATION * BATCH_SIZE,
        max_iter=1,
        warm_start=True,
        random_state=0,
    )
    X = data.features.copy()

    def work() -> None:
        with warnings.catch_warnings():
            # A fit of one epoch does not converge.
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier.fit(X, data.y)

    return work


def measure_net(data: Split, hidden: int, momentum: float, rounds: int) -> Figures:
    """Return all figures of one net; None for PyTorch if it is not installed."""
    makers: dict[str, Callable[[Split, int, float], Work]] = {"step": step, "epoch": epoch, "sklearn": sklearn_epoch}
    if find_spec("torch"):
        makers["torch"] = torch_step
    works = {name: make(data, hidden, momentum) for name, make in makers.items()}
    works["products"] = products(FEATURES, hidden, CLASSES)
    # The limit applies only to libraries that are loaded already.
    with threadpool_limits(1):
        seconds = time_alternately(works, rounds)
    batches = math.ceil(len(data.y) / BATCH_SIZE)
    return {
        "step_microseconds": spread([1e6 * step_s for step_s in seconds["step"]]),
        "step_over_products": ratio(seconds["step"], seconds["products"]),
        "epoch_over_products": ratio([epoch_s / batches for epoch_s in seconds["epoch"]], seconds["products"]),
        "torch_over_step": ratio(seconds["torch"], seconds["step"]) if "torch" in seconds else None,
        "sklearn_over_step": ratio(seconds["sklearn"], seconds["epoch"]),
    }


def show(momentum: float, nets: dict[int, Figures]) -> None:
    """Print a table with a column for each hidden size, and the targets below their figures."""
    rows = [[f"momentum {momentum}", *(f"hidden {size}" for size in nets)]]
    for name, label in LABELS.items():
        spreads = [figures[name] for figures in nets.values()]
        rows.append([label, *("not installed" if figure is None else str(figure) for figure in spreads)])
        if momentum == 0 and name in TARGETS:
            bound = "at most" if name == "step_over_products" else "at least"
            rows.append([f"  target: {bound}", *(str(TARGETS[name].get(size, "")) for size in nets)])
    print_table(rows)


def by_figure(nets: dict[int, Figures], convert: Callable[[Spread], Any]) -> dict[str, dict[str, Any]]:
    """Return the converted figures as ``{figure: {hidden size: ...}}``; None if a figure is missing."""
    return {
        name: {
            str(size): None if (figure := figures[name]) is None else convert(figure) for size, figures in nets.items()
        }
        for name in LABELS
    }


def as_json(plain: dict[int, Figures], heavy: dict[int, Figures]) -> dict[str, Any]:
    """Return the medians without and with momentum, and the spreads of all figures."""

    def median(figure: Spread) -> float:
        return figure.median

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
    """Compare a step of hpo with its bare matrix products, PyTorch and scikit-learn, by one thread."""
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
