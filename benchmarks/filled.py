"""Databases in which a search seems to have run for long: its finished trials are written in bulk."""

import math
import shutil
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import sqlalchemy as sa
from optuna.distributions import distribution_to_json
from sqlalchemy.engine import Connection, make_url

from hpo.config.study import StudyConfig
from hpo.search.pruners import first_rung, report_epochs
from hpo.search.space import at, distributions
from hpo.storage import database as storage
from hpo.storage import optuna_tables as records
from hpo.storage.study import Study, join_study
from hpo.storage.trial_store import REASON

COMPLETE_SHARE = 0.25  # of the trials, the best; the others were pruned at the first rung

_LEASES = """
INSERT INTO hpo_leases
    (study, number, trial_id, attempt, failures, deaths, promotions, expires, epoch, seconds, epochs_lost, paused,
    finished, value)
SELECT :study, number, trial_id, 1, 0, 0, 0, 0, 0, 0, 0, FALSE, TRUE, CASE WHEN state = 'COMPLETE' THEN value END
FROM trials JOIN trial_values USING (trial_id)
"""

Rows = defaultdict[sa.Table, list[dict[str, Any]]]


class Server(Protocol):
    """Where databases are made."""

    def new_database(self, like: str | None = None) -> str:
        """The URL of an empty database, or of a copy of the one at this URL, which nobody may use meanwhile."""


class SqliteFiles:
    """SQLite databases in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names = count()

    def new_database(self, like: str | None = None) -> str:
        """The URL of an empty database, or of a copy of the one at this URL, which nobody may use meanwhile."""
        path = self._folder / f"{next(self._names)}.db"
        if like is not None:
            shutil.copy(str(make_url(like).database), path)
        return f"sqlite:///{path}"


def plausible_accuracy(learning_rate: float, epoch: int, luck: float) -> float:
    """What a net might achieve on CIFAR-10: it depends on the learning rate, so that a sampler has something to learn.

    Args:
        learning_rate: of the trial.
        epoch: at whose end it is measured.
        luck: of the trial, in [0, 1).
    """
    top = max(0.1, 0.5 - 0.06 * (math.log10(learning_rate) + 2.5) ** 2) + 0.05 * luck
    return top * (1 - 0.5 / (1 + epoch / 10))


def filled_database(server: Server, spec: StudyConfig, trials: int) -> str:
    """The URL of a new database with a study that has so many finished trials."""
    text = server.new_database()
    url = storage.parse_url(text)
    storage.check_reachable(url)
    with join_study(url, spec, "no data") as study, study.engine.begin() as connection:
        _fill(connection, study, spec, trials)
        if connection.dialect.name == "postgresql":  # which does so by itself in time
            connection.exec_driver_sql("ANALYZE")
    return text


def _fill(connection: Connection, study: Study, spec: StudyConfig, trials: int) -> None:
    rows: Rows = defaultdict(list)
    reported = sorted(report_epochs(spec.max_epochs))
    for trial_id, (params, luck, complete) in enumerate(_searched(spec, trials), start=1):
        last = params["epochs"] if complete else first_rung(spec.max_epochs)
        epochs = [*(epoch for epoch in reported if epoch < last), last]
        _add_trial(rows, study.id, trial_id, complete)
        _add_params(rows, trial_id, params, spec)
        _add_values(
            rows, trial_id, {epoch: plausible_accuracy(params["learning_rate"], epoch, luck) for epoch in epochs}
        )
    for table, some in rows.items():
        connection.execute(sa.insert(table), some)
    connection.execute(sa.text(_LEASES), {"study": study.optuna.user_attrs["leases"]})


def _searched(spec: StudyConfig, trials: int) -> Iterator[tuple[dict[str, Any], float, bool]]:
    """Of each trial: its parameters, its luck, and whether it is complete."""
    rng = np.random.default_rng(0)
    space = distributions(spec)
    params = [{name: at(distribution, rng.random()) for name, distribution in space.items()} for _ in range(trials)]
    luck = [rng.random() for _ in range(trials)]
    tops = [
        plausible_accuracy(float(one["learning_rate"]), spec.max_epochs, its)
        for one, its in zip(params, luck, strict=True)
    ]
    bar = np.quantile(tops, 1 - COMPLETE_SHARE)
    return zip(params, luck, [bool(top >= bar) for top in tops], strict=True)


def _add_trial(rows: Rows, study_id: int, trial_id: int, complete: bool) -> None:
    now = datetime.now()
    # Without its id, which the database counts in the same way.
    trial = {"study_id": study_id, "number": trial_id - 1, "state": "COMPLETE" if complete else "PRUNED"}
    rows[records.trials].append(trial | {"datetime_start": now, "datetime_complete": now})
    if not complete:
        rows[records.user_attributes].append({"trial_id": trial_id, "key": REASON, "value_json": '"pruned"'})


def _add_params(rows: Rows, trial_id: int, params: dict[str, Any], spec: StudyConfig) -> None:
    rows[records.params] += [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": distribution.to_internal_repr(params[name]),
            "distribution_json": distribution_to_json(distribution),
        }
        for name, distribution in distributions(spec).items()
    ]


def _add_values(rows: Rows, trial_id: int, reports: dict[int, float]) -> None:
    rows[records.intermediate_values] += [
        {"trial_id": trial_id, "step": epoch, "intermediate_value": accuracy, "intermediate_value_type": "FINITE"}
        for epoch, accuracy in reports.items()
    ]
    last = reports[max(reports)]
    rows[records.values].append({"trial_id": trial_id, "objective": 0, "value": last, "value_type": "FINITE"})
