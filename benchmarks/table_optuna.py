"""``python -m benchmarks.table_optuna``: the plain Optuna script that ``benchmarks.tables`` compares with.

Two processes share one study in a journal file, each with Optuna's TPE. The best parameters are then fitted to all rows
but the test rows. The last line of the output is JSON: the test score, the best value and the number of trials.
"""

import json
import multiprocessing
import time
import warnings
from pathlib import Path
from typing import Any

import click
import numpy as np
import optuna
import pandas as pd
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FixedTrial, TrialState
from threadpoolctl import threadpool_limits

from benchmarks.table_data import LABEL
from benchmarks.table_models import Task, cross_validated, suggest

_PROCESSES = 2


def _study(folder: Path, seed: int, process: int = 0) -> optuna.Study:
    return optuna.create_study(
        study_name="table",
        storage=JournalStorage(JournalFileBackend(str(folder / "journal.log"))),
        sampler=optuna.samplers.TPESampler(seed=1000 * seed + process),
        direction="maximize",
        load_if_exists=True,
    )


def search(table: Path, rows: Path, task: Task, seed: int, process: int, deadline: float) -> None:
    """Run trials until the deadline of ``time.monotonic``, or until the process is terminated."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    train = pd.read_csv(table).iloc[np.load(rows)]
    X, y = train.drop(columns=LABEL), train[LABEL]

    def objective(trial: optuna.Trial) -> float:
        return cross_validated(suggest(trial, task, len(y), seed), X, y, task, seed)

    with threadpool_limits(1):
        _study(rows.parent, seed, process).optimize(
            objective, timeout=max(0.0, deadline - time.monotonic()), catch=(ValueError,)
        )


@click.command("python -m benchmarks.table_optuna")
@click.argument("table", type=click.Path(path_type=Path, exists=True))
@click.argument("rows", type=click.Path(path_type=Path, exists=True))
@click.option("--task", type=click.Choice(["classification", "regression"]), required=True)
@click.option("--seed", type=click.IntRange(0), required=True)
@click.option("--seconds", type=click.FloatRange(0), required=True)
def main(table: Path, rows: Path, task: Task, seed: int, seconds: float) -> None:
    """Search on the rows of TABLE that the file ROWS lists, and score on the other rows."""
    started = time.monotonic()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = _study(rows.parent, seed)
    arguments = [(table, rows, task, seed, process, started + seconds) for process in range(_PROCESSES)]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=search, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(max(0.0, started + seconds - time.monotonic()))
        # A user would stop the script at its deadline, too. The trial that runs is lost.
        process.terminate()
        process.join()
    click.echo(json.dumps(_result(study, pd.read_csv(table), np.load(rows), task, seed)))


def _result(study: optuna.Study, table: pd.DataFrame, rows: Any, task: Task, seed: int) -> dict[str, Any]:
    complete = study.get_trials(states=[TrialState.COMPLETE])
    if not complete:
        return {"value": None, "validation": None, "trials": 0, "parameters": {}}
    train, test = table.iloc[rows], table.drop(index=rows)
    model = suggest(FixedTrial(study.best_params), task, len(train), seed)
    model.fit(train.drop(columns=LABEL), train[LABEL])
    return {
        "value": float(model.score(test.drop(columns=LABEL), test[LABEL])),
        "validation": study.best_value,
        "trials": len(complete),
        "parameters": study.best_params,
    }


if __name__ == "__main__":
    main()
