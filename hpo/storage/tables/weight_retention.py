"""Weights of the best complete trials; the weights of other trials are dropped."""

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from hpo.storage.tables.schema import IN_STUDY, leases

# The trials that can still win, because a confirmation trains the best trials again.
KEPT_WEIGHTS = 10

_number: sa.BindParameter[int] = sa.bindparam("of_number", type_=sa.Integer())

_BEST = (
    sa.select(leases.c.number)
    .where(IN_STUDY, leases.c.finished, leases.c.value.is_not(None))
    .order_by(leases.c.value.desc(), leases.c.number)
    .limit(sa.bindparam("kept", type_=sa.Integer()))
)
_TRAINED = sa.select(leases.c.number).where(IN_STUDY, leases.c.finished, leases.c.value.is_not(None))
_RETAINED = _BEST.where(leases.c.weights.is_not(None))
_WRITE = (
    sa.update(leases)
    .where(IN_STUDY, leases.c.number == _number)
    .values(weights=sa.bindparam("new_weights", type_=sa.LargeBinary()))
)
_DROP_OTHERS = (
    sa.update(leases).where(IN_STUDY, leases.c.weights.is_not(None), leases.c.number.not_in(_BEST)).values(weights=None)
)
_READ = sa.select(leases.c.weights).where(IN_STUDY, leases.c.number == _number)


class WeightRetention:
    """The weights of one study's best trials.

    Args:
        study: The study's key in ``hpo_leases``.
        kept: Number of trials that keep their weights.
    """

    def __init__(self, study: str, kept: int = KEPT_WEIGHTS) -> None:
        self._study = {"in_study": study}
        self._best = {"in_study": study, "kept": kept}

    def write(self, connection: Connection, number: int, weights: bytes) -> None:
        """Write the weights of a trial that has just completed, if it is one of the best."""
        if number in connection.execute(_BEST, self._best).scalars():
            connection.execute(_WRITE, {"of_number": number, "new_weights": weights} | self._study)
            connection.execute(_DROP_OTHERS, self._best)

    def read(self, connection: Connection, number: int) -> bytes | None:
        """Return a trial's weights, None if they were not kept."""
        weights: bytes | None = connection.execute(_READ, {"of_number": number} | self._study).scalar_one_or_none()
        return weights

    def best_trained(self, connection: Connection) -> int | None:
        """Return the best trial that hpo trained to its end, of equal trials the lowest number."""
        return connection.execute(_BEST, self._best | {"kept": 1}).scalar_one_or_none()

    def is_trained(self, connection: Connection, number: int) -> bool:
        """Return whether hpo trained a trial to its end."""
        query = _TRAINED.where(leases.c.number == _number)
        return connection.execute(query, {"of_number": number} | self._study).first() is not None

    def retained_trials(self, connection: Connection) -> list[int]:
        """Return the trials with weights, the best first and of equal trials the lower number first."""
        return list(connection.execute(_RETAINED, self._best).scalars())
