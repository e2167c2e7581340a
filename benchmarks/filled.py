"""Databases with many finished trials, which are written in bulk."""

import math
import shutil
from collections import defaultdict
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import sqlalchemy as sa
from optuna.distributions import distribution_to_json
from sqlalchemy.engine import Connection, make_url

from hpo.config.study import StudyConfig
from hpo.models.nets.hyperparameters import FLOAT_HYPERPARAMETERS, max_epochs
from hpo.search.pruning.asha import rungs
from hpo.search.pruning.pruners import report_steps
from hpo.search.space import Space, build_space, from_unit
from hpo.storage.database.connection import Database, close
from hpo.storage.study import open_or_create_study
from hpo.storage.tables import optuna_tables
from hpo.storage.trial_store import REASON

# The share of the complete trials, which are the best. The other trials were pruned at the first rung.
COMPLETE_SHARE = 0.25

_LEASES = """
INSERT INTO hpo_leases
    (study, number, trial_id, attempt, failures, deaths, promotions, expires, epoch, seconds, epochs_lost, paused,
    finished, value)
SELECT :study, number, trial_id, 1, 0, 0, 0, 0, 0, 0, 0, FALSE, TRUE, CASE WHEN state = 'COMPLETE' THEN value END
FROM trials JOIN trial_values USING (trial_id)
"""

Rows = defaultdict[sa.Table, list[dict[str, Any]]]


class Server(Protocol):
    """Server that makes databases."""

    def new_database(self, like: str | None = None) -> str:
        """Return the URL of an empty database, or of a copy of the database at this URL, which must not be in use."""


class SqliteFiles:
    """SQLite databases in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names = count()

    def new_database(self, like: str | None = None) -> str:
        """Return the URL of an empty database, or of a copy of the database at this URL, which must not be in use."""
        path = self._folder / f"{next(self._names)}.db"
        if like is not None:
            shutil.copy(str(make_url(like).database), path)
        return f"sqlite:///{path}"


def plausible_accuracy(learning_rate: float, epoch: int, luck: float) -> float:
    """Return the accuracy that a net could have on CIFAR-10.

    It depends on the learning rate, so that a sampler can learn from it.

    Args:
        learning_rate: The trial's learning rate.
        epoch: The epoch at whose end the accuracy is measured.
        luck: The trial's random effect, in [0, 1).
    """
    top = max(0.1, 0.5 - 0.06 * (math.log10(learning_rate) + 2.5) ** 2) + 0.05 * luck
    return top * (1 - 0.5 / (1 + epoch / 10))


def filled_database(server: Server, config: StudyConfig, trials: int) -> str:
    """Return the URL of a new database with a study of many finished trials."""
    text = server.new_database()
    database = Database.parse(text)
    database.check_reachable()
    with open_or_create_study(database, config, "no data", "validation accuracy"):
        rdb = database.open()
        study_id = rdb.get_study_id_from_name(config.study.name)
        leases = rdb.get_study_user_attrs(study_id)["leases"]
        with rdb.engine.begin() as connection:
            _fill(connection, study_id, config, trials)
            connection.execute(sa.text(_LEASES), {"study": leases})
            if not database.is_sqlite:
                # PostgreSQL does so by itself after a while.
                connection.exec_driver_sql("ANALYZE")
        close(rdb)
    return text


def _fill(connection: Connection, study_id: int, config: StudyConfig, trials: int) -> None:
    rows: Rows = defaultdict(list)
    longest, space = max_epochs(config), build_space(config, FLOAT_HYPERPARAMETERS)
    reported, first_rung = sorted(report_steps(longest)), rungs(longest)[0]
    for trial_id, (params, luck, complete) in enumerate(_searched(space, longest, trials), start=1):
        last = params["epochs"] if complete else first_rung
        epochs = [*(epoch for epoch in reported if epoch < last), last]
        _add_trial(rows, study_id, trial_id, complete)
        _add_params(rows, trial_id, params, space)
        _add_values(
            rows, trial_id, {epoch: plausible_accuracy(params["learning_rate"], epoch, luck) for epoch in epochs}
        )
    for table, some in rows.items():
        connection.execute(sa.insert(table), some)


def _searched(space: Space, longest: int, trials: int) -> Iterator[tuple[dict[str, Any], float, bool]]:
    """Return the parameters and the luck of each trial, and whether it is complete."""
    rng = np.random.default_rng(0)
    params: list[dict[str, Any]] = [
        {name: from_unit(distribution, rng.random()) for name, distribution in space.items()} for _ in range(trials)
    ]
    lucks = [rng.random() for _ in range(trials)]
    tops = [
        plausible_accuracy(float(searched["learning_rate"]), longest, luck)
        for searched, luck in zip(params, lucks, strict=True)
    ]
    bar = np.quantile(tops, 1 - COMPLETE_SHARE)
    return zip(params, lucks, [bool(top >= bar) for top in tops], strict=True)


def _add_trial(rows: Rows, study_id: int, trial_id: int, complete: bool) -> None:
    now = optuna_tables.UTC_CLOCK.now()
    # The id is left out, because the database counts in the same way.
    trial = {"study_id": study_id, "number": trial_id - 1, "state": "COMPLETE" if complete else "PRUNED"}
    rows[optuna_tables.trials].append(trial | {"datetime_start": now, "datetime_complete": now})
    if not complete:
        rows[optuna_tables.user_attributes].append({"trial_id": trial_id, "key": REASON, "value_json": '"pruned"'})


def _add_params(rows: Rows, trial_id: int, params: dict[str, Any], space: Space) -> None:
    rows[optuna_tables.params] += [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": distribution.to_internal_repr(params[name]),
            "distribution_json": distribution_to_json(distribution),
        }
        for name, distribution in space.items()
    ]


def _add_values(rows: Rows, trial_id: int, reports: dict[int, float]) -> None:
    rows[optuna_tables.intermediate_values] += [
        {"trial_id": trial_id, "step": epoch, "intermediate_value": accuracy, "intermediate_value_type": "FINITE"}
        for epoch, accuracy in reports.items()
    ]
    last = reports[max(reports)]
    rows[optuna_tables.values].append({"trial_id": trial_id, "objective": 0, "value": last, "value_type": "FINITE"})
