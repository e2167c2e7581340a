"""``python -m benchmarks.completed``: cost of completing three trials for each trial to confirm.

Whole studies of ``studies/cifar10.toml`` are replayed with a fixed budget of trials, as in ``benchmarks.search``.
"""

from collections.abc import Sequence

import click
import optuna
from optuna.trial import TrialState

from benchmarks.curves import RECORDED, Curves, Surrogate
from benchmarks.measuring import environment, print_table
from benchmarks.replay import HpoSearch, Progress, VirtualStudy
from benchmarks.search import quartiles
from hpo.config.loader import find_study, load_config
from hpo.config.study import StudyConfig
from hpo.search.scheduler import min_complete_of

BUDGETS = (30, 60, 100)


def replay(config: StudyConfig, surrogate: Surrogate, budget: int, confirm: int, seed: int, workers: int) -> Progress:
    """Replay one study to the end of its budget."""
    study = config.study.model_copy(update={"seed": seed, "trials": budget})
    seeded = config.model_copy(update={"study": study})
    search = HpoSearch(seeded, min_complete_of(confirm), budget)
    return VirtualStudy(search, surrogate, seeded, workers).run(lambda _: False)


def row(budget: int, confirm: int, studies: Sequence[Progress]) -> list[str]:
    """Return the quartiles of the compute, and the number and the values of the complete trials."""
    complete = [
        sorted((trial.value or 0.0 for trial in study.trials if trial.state == TrialState.COMPLETE), reverse=True)
        for study in studies
    ]
    low, median, high = quartiles([study.compute / 1e12 for study in studies])
    return [
        str(budget),
        str(confirm),
        f"{median:.1f} ({low:.1f}-{high:.1f})",
        f"{quartiles(list(map(len, complete)))[1]:.0f} ({min(map(len, complete))}-{max(map(len, complete))})",
        f"{quartiles([values[0] for values in complete])[1]:.3f}",
        f"{quartiles([values[min(2, len(values) - 1)] for values in complete])[1]:.3f}",
    ]


@click.command("python -m benchmarks.completed")
@click.option("--seeds", type=click.IntRange(1), default=40, show_default=True, help="Studies per row.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Virtual workers of a study.")
def main(seeds: int, workers: int) -> None:
    """Replay studies with and without a minimum of complete trials."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    config, surrogate = load_config(find_study("cifar10")), Surrogate(Curves.load(RECORDED))
    click.echo(f"{environment()}\n{seeds} studies of each, {workers} virtual workers; median (lower-upper quartile)")
    rows = [["trials", "--confirm", "Tmadd", "complete (least-most)", "best", "third best"]]
    for budget in BUDGETS:
        for confirm in (0, 3):
            studies = [replay(config, surrogate, budget, confirm, seed, workers) for seed in range(seeds)]
            rows.append(row(budget, confirm, studies))
    print_table(rows)


if __name__ == "__main__":
    main()
