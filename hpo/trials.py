"""A trial's life in the database: created, reported, ended, each in one transaction with its lease."""

from collections.abc import Mapping
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.leases import Lease, LeaseLostError
from hpo.sampling import distributions
from hpo.spec import StudySpec
from hpo.study import Study

REASON = "reason"  # the trial's user attribute that says why it did not complete


def create(study: Study, spec: StudySpec, params: Mapping[str, Any], number: int, owner: str) -> Lease:
    """Create trial ``number``, RUNNING and with all its parameters.

    Raises:
        NumberTakenError: another worker was faster; nothing was created.
    """
    trial = create_trial(state=TrialState.RUNNING, params=dict(params), distributions=distributions(spec))
    with study.leases.creating(study.id, number, owner):
        study.storage.create_new_trial(study.id, trial)
    return study.leases.created(number, owner)


def read(study: Study, lease: Lease) -> FrozenTrial:
    """The trial as it was created, with what was reported since."""
    return study.storage.get_trial(lease.trial_id)


def report(study: Study, lease: Lease, epoch: int, accuracy: float) -> bool:
    """Write an intermediate value; returns whether the trial should be pruned.

    Raises:
        LeaseLostError: the trial has another owner by now; nothing was written.
    """
    with study.leases.holding(lease):
        study.storage.set_trial_intermediate_value(lease.trial_id, epoch, accuracy)
    return bool(study.optuna.pruner.prune(study.optuna, study.storage.get_trial(lease.trial_id)))


def end(
    study: Study,
    lease: Lease,
    state: TrialState,
    value: float | None = None,
    weights: bytes | None = None,
    reason: str | None = None,
) -> None:
    """End a trial. The weights of the best complete one are kept.

    Raises:
        LeaseLostError: the trial has another owner by now, or has ended; nothing was written.
    """
    best = value if state == TrialState.COMPLETE else None
    values = None if value is None else [value]
    try:
        if reason is not None:
            with study.leases.holding(lease):
                study.storage.set_trial_user_attr(lease.trial_id, REASON, reason)
        with study.leases.ending(lease, best, weights):
            study.storage.set_trial_state_values(lease.trial_id, state, values)
    except UpdateFinishedTrialError as error:
        raise LeaseLostError(lease.number) from error
