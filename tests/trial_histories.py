"""Random histories of trials, and their direct writing into Optuna's tables."""

from datetime import UTC

from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from hpo.storage.tables import optuna_tables
from hpo.storage.tables.optuna_tables import UTC_CLOCK, details_of

SPACE = {
    "learning_rate": FloatDistribution(1e-7, 1e-2, log=True),
    "hidden_size": IntDistribution(32, 400),
    "hidden_layers": CategoricalDistribution((1, 2, 3)),
}
PARAMS = {"learning_rate": 1e-3, "hidden_size": 40, "hidden_layers": 1}

values = st.floats(-1, 1)
params = st.fixed_dictionaries(
    {
        "learning_rate": st.floats(1e-7, 1e-2),
        "hidden_size": st.integers(32, 400),
        "hidden_layers": st.sampled_from([1, 2, 3]),
    }
)
# Final state, value and user attributes.
endings = st.one_of(
    st.tuples(st.just(TrialState.COMPLETE), values, st.just({})),
    st.tuples(st.just(TrialState.PRUNED), values, st.just({"reason": "pruned at epoch 3, \u00e0 la carte"})),
    st.tuples(st.just(TrialState.FAIL), st.none(), st.just({"reason": 'crashed "3 times"'})),
)
# Parameters, intermediate values by step, and the ending of a finished trial.
histories = st.tuples(params, st.lists(st.tuples(st.integers(1, 5), values), max_size=8), endings | st.none())


def write_trial(rdb, study_id, number, history, clock=UTC_CLOCK):
    """Write a trial in three transactions and return its id."""
    params, reports, ending = history
    with rdb.engine.begin() as connection:
        trial_id = optuna_tables.insert_trial(connection, study_id, number, clock.now())
        optuna_tables.write_details(connection, trial_id, details_of(params, SPACE))
    with rdb.engine.begin() as connection:
        optuna_tables.report(connection, trial_id, list(dict(reports[:4]).items()))
    with rdb.engine.begin() as connection:
        optuna_tables.report(connection, trial_id, list(dict(reports[4:]).items()))
        if ending is not None:
            state, value, attributes = ending
            final = [] if value is None else [value]
            assert optuna_tables.end_trial(connection, trial_id, state, final, attributes, clock.now())
    return trial_id


def optunas_trials(rdb, study_id):
    """Return Optuna's trials of a study with times in UTC. Optuna converts the stored UTC to local times."""
    trials = rdb.get_all_trials(study_id)
    for trial in trials:
        for name in ("datetime_start", "datetime_complete"):
            local = getattr(trial, name)
            setattr(trial, name, local and local.astimezone(UTC))
    return trials
