"""Tables of hpo, in the same database as Optuna's, and the database's clock."""

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from hpo.errors import StorageError
from hpo.storage.tables.optuna_tables import studies, study_attributes, trials

_metadata = sa.MetaData()

leases = sa.Table(
    "hpo_leases",
    _metadata,
    sa.Column("study", sa.String(32), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("trial_id", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    # Crashes in a row at the position of the last crash.
    sa.Column("failures", sa.Integer, nullable=False, key="crashes_at_same_step"),
    # Trained epochs at the last crash, and steps in the next epoch.
    sa.Column("died_after", sa.Integer, key="crash_epoch"),
    sa.Column("died_step", sa.Integer, key="crash_step"),
    # Crashes and expired leases since the checkpoint's epoch last rose.
    sa.Column("deaths", sa.Integer, nullable=False, key="crashes_since_progress"),
    # A paused trial waits for its promotion.
    sa.Column("paused", sa.Boolean, nullable=False),
    sa.Column("promotions", sa.Integer, nullable=False),
    # NULL if the trial was released, is paused or has ended.
    sa.Column("owner", sa.String(255)),
    # Seconds since 1970 by the database's clock.
    sa.Column("expires", sa.Double, nullable=False),
    # Position of the checkpoint, and the training time of all attempts up to it.
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    # Epochs that were trained and had to be repeated.
    sa.Column("epochs_lost", sa.Integer, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("finished", sa.Boolean, nullable=False),
    # Final value of a complete trial.
    sa.Column("value", sa.Double),
    # NULL unless the trial is one of the best.
    sa.Column("weights", sa.LargeBinary),
    # For claims (unfinished trials) and for weight retention (complete trials by value).
    sa.Index("hpo_leases_finished", "study", "finished", "value"),
)

# A table of its own, because SQLite rewrites a whole row for each change, and a lease is renewed often.
checkpoints = sa.Table(
    "hpo_checkpoints",
    _metadata,
    sa.Column("study", sa.String(32), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("state", sa.LargeBinary, nullable=False),
)

# Tables of their own, because databases that are older than these tables stay valid.
budgets = sa.Table(
    "hpo_budgets",
    _metadata,
    sa.Column("study", sa.String(32), primary_key=True),
    # The number of trials that the study shall have.
    sa.Column("trials", sa.Integer, nullable=False),
)

# A hash of the parameters of each trial, so that no two trials of a study get the same parameters.
parameters = sa.Table(
    "hpo_parameters",
    _metadata,
    sa.Column("study", sa.String(32), primary_key=True),
    sa.Column("hash", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
)

# The user attribute of a study that holds its key in hpo's tables. SQLite gives the id of a deleted study to the next
# one, so the key is a random name, and each write about a trial checks that the trial's study still has it.
STUDY_KEY = "leases"

_key: sa.BindParameter[str] = sa.bindparam("in_study", type_=sa.String())

# The condition of each statement about one study.
IN_STUDY = leases.c.study == _key


def has_key(study_id: sa.ColumnElement[int]) -> sa.ColumnElement[bool]:
    """Return the condition that a row of Optuna's tables belongs to the study with this key."""
    return (
        sa.exists()
        .where(
            study_attributes.c.study_id == study_id,
            study_attributes.c.key == STUDY_KEY,
            study_attributes.c.value_json == sa.literal('"').concat(_key).concat(sa.literal('"')),
        )
        .correlate_except(study_attributes)
    )


# The name of the first study with a key. Optuna's copy_study copies the key.
OLDEST_WITH_KEY = (
    sa.select(studies.c.study_name).where(has_key(studies.c.study_id)).order_by(studies.c.study_id).limit(1)
)


def is_study(study_id: sa.ColumnElement[int]) -> sa.ColumnElement[bool]:
    """Return the condition that a study has this key and still has its name."""
    named = sa.exists().where(studies.c.study_id == study_id, studies.c.study_name == sa.bindparam("named"))
    return sa.and_(has_key(study_id), named.correlate_except(studies))


# The trial of a lease has not ended, and its study was neither deleted nor replaced.
HAS_RUNNING_TRIAL = (
    sa.exists()
    .where(
        trials.c.trial_id == leases.c.trial_id,
        trials.c.number == leases.c.number,
        trials.c.state == sa.literal(TrialState.RUNNING, trials.c.state.type),
        has_key(trials.c.study_id),
    )
    .correlate(leases)
)


class DatabaseClock(FunctionElement[float]):
    """Seconds since 1970 by the clock that all machines share."""

    type = sa.Double()
    inherit_cache = True


@compiles(DatabaseClock, "sqlite")
def _sqlite_clock(*_: object, **__: object) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(DatabaseClock, "postgresql")
def _postgresql_clock(*_: object, **__: object) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


class ServerStart(FunctionElement[float]):
    """Seconds since 1970 at the start of the database server. A SQLite file has no server."""

    type = sa.Double()
    inherit_cache = True


@compiles(ServerStart, "sqlite")
def _sqlite_start(*_: object, **__: object) -> str:
    return "0.0"


@compiles(ServerStart, "postgresql")
def _postgresql_start(*_: object, **__: object) -> str:
    return "CAST(EXTRACT(EPOCH FROM pg_postmaster_start_time()) AS DOUBLE PRECISION)"


def create_tables(engine: Engine) -> None:
    """Create hpo's missing tables. Call it under the database's ``creation_lock``."""
    _metadata.create_all(engine)


def check_version(engine: Engine, shown_url: str) -> None:
    """Check that hpo's tables have this version's columns, if they exist.

    Raises:
        StorageError: if another version of hpo created the tables.
    """
    inspector = sa.inspect(engine)
    if not inspector.has_table(leases.name):
        return
    existing = {column["name"] for column in inspector.get_columns(leases.name)}
    if existing != {column.name for column in leases.columns}:
        raise StorageError(f"{shown_url} was used by another version of hpo; use another --storage")
