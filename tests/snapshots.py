"""Copies of the trials in a database, as a backup or a standby has them."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

# Parents come before children.
TABLES = [
    "studies",
    "study_directions",
    "study_user_attributes",
    "study_system_attributes",
    "trials",
    "trial_params",
    "trial_values",
    "trial_intermediate_values",
    "trial_user_attributes",
    "hpo_leases",
    "hpo_checkpoints",
    "hpo_budgets",
    "hpo_parameters",
]

Snapshot = dict[str, list[dict[str, Any]]]


def take_snapshot(connection: Connection) -> Snapshot:
    """Return the rows of all tables at one moment."""
    _lock_out_writers(connection)
    return {
        name: [dict(row._mapping) for row in connection.execute(sa.text(f"SELECT * FROM {name}"))] for name in TABLES
    }


def restore_snapshot(connection: Connection, snapshot: Snapshot) -> None:
    """Replace the rows of all tables."""
    _lock_out_writers(connection)
    for name in reversed(TABLES):
        connection.execute(sa.text(f"DELETE FROM {name}"))
    for name in TABLES:
        for row in snapshot[name]:
            columns, values = ", ".join(row), ", ".join(f":{column}" for column in row)
            connection.execute(sa.text(f"INSERT INTO {name} ({columns}) VALUES ({values})"), row)


def _lock_out_writers(connection: Connection) -> None:
    """Lock the tables that each write of a worker begins with, in the order in which a worker locks them."""
    if connection.dialect.name == "sqlite":
        # A change of no row locks the file.
        connection.execute(sa.text("DELETE FROM studies WHERE false"))
    else:
        connection.execute(sa.text("LOCK TABLE studies, hpo_leases IN EXCLUSIVE MODE"))
