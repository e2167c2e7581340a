"""A trial's life in the database: created, reported, ended, each in one transaction with its lease."""

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo.config.study import StudyConfig
from hpo.runner.objective import Outcome
from hpo.search.space import distributions
from hpo.storage import optuna_tables as records
from hpo.storage.leases import Checkpoint, Lease, LeaseLostError, NumberTakenError
from hpo.storage.study import Study
from hpo.storage.trial_cache import TrialView

REASON = "reason"  # the trial's user attribute that says why it did not complete

Reports = Sequence[tuple[int, float]]  # epochs and accuracies


def create(study: Study, spec: StudyConfig, params: Mapping[str, Any], number: int, owner: str) -> Lease:
    """Create trial ``number``, RUNNING and with all its parameters.

    Raises:
        NumberTakenError: another worker was faster; nothing was created.
    """
    with study.engine.begin() as connection:
        trial_id = records.insert_trial(connection, study.id, number, params, distributions(spec))
        if trial_id is None:
            raise NumberTakenError(number)
        return study.leases.open(connection, number, trial_id, owner)


def read(study: Study, lease: Lease) -> FrozenTrial:
    """The trial as it was created, with what was reported since."""
    return study.trials[lease.number]


def write(study: Study, lease: Lease, reports: Reports, checkpoint: Checkpoint | None = None) -> None:
    """Hold on to the trial, and write intermediate values and a checkpoint of an epoch not before them.

    Raises:
        LeaseLostError: the trial has another owner by now; nothing was written.
    """
    with (study.engine if reports or checkpoint else study.single).begin() as connection:
        study.leases.hold(connection, lease, checkpoint)
        records.report(connection, lease.trial_id, reports)


def give_back(study: Study, lease: Lease, reports: Reports, checkpoint: Checkpoint | None) -> None:
    """Let a trial go, for anybody to take up at once from this checkpoint or the one before.

    Raises:
        LeaseLostError: the trial has another owner by now; nothing was written.
    """
    with study.engine.begin() as connection:
        study.leases.hold(connection, lease, checkpoint)
        study.leases.release(connection, lease)
        records.report(connection, lease.trial_id, reports)


def pause(study: Study, lease: Lease, reports: Reports, checkpoint: Checkpoint) -> None:
    """Let a trial wait at this checkpoint until it is promoted.

    Raises:
        LeaseLostError: the trial has another owner by now; nothing was written.
    """
    with study.engine.begin() as connection:
        study.leases.hold(connection, lease, checkpoint)
        study.leases.pause(connection, lease)
        records.report(connection, lease.trial_id, reports)


def prune_paused(study: Study, known: TrialView) -> None:
    """End the trials that are paused, but for those that somebody has promoted meanwhile."""
    for number, attempt in known.paused.items():
        trial = known.trials[number]
        assert trial.last_step is not None
        outcome = Outcome.pruned(trial.last_step, trial.intermediate_values[trial.last_step])
        with study.engine.begin() as connection:
            if study.leases.close_paused(connection, number, attempt):
                records.end_trial(connection, trial._trial_id, outcome.state, outcome.value, {REASON: outcome.reason})


def end(
    study: Study,
    lease: Lease,
    state: TrialState,
    value: float | None = None,
    weights: bytes | None = None,
    reason: str | None = None,
    reports: Reports = (),
) -> None:
    """End a trial with its last intermediate values. The weights of the best complete ones are kept.

    Raises:
        LeaseLostError: the trial has another owner by now, or has ended; nothing was written.
    """
    best = value if state == TrialState.COMPLETE else None
    attributes = {} if reason is None else {REASON: reason}
    with study.engine.begin() as connection:
        study.leases.close(connection, lease, best, weights)
        records.report(connection, lease.trial_id, reports)
        if not records.end_trial(connection, lease.trial_id, state, value, attributes):
            raise LeaseLostError(lease.number)
