"""Random histories of trials, and their direct writing into Optuna's tables."""

from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from hpo.storage import optuna_tables

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


def write_trial(rdb, study_id, number, history):
    """Write a trial in three transactions and return its id."""
    params, reports, ending = history
    with rdb.engine.begin() as connection:
        trial_id = optuna_tables.insert_trial(connection, study_id, number, params, SPACE)
    with rdb.engine.begin() as connection:
        optuna_tables.report(connection, trial_id, list(dict(reports[:4]).items()))
    with rdb.engine.begin() as connection:
        optuna_tables.report(connection, trial_id, list(dict(reports[4:]).items()))
        if ending is not None:
            state, value, attributes = ending
            assert optuna_tables.end_trial(connection, trial_id, state, value, attributes)
    return trial_id
