"""Equality of hpo's storage with Optuna's storage, for any sequence of calls."""

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from factories import make_database, open_storage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.storage.database.connection import StorageTimings, close
from hpo.storage.leased_storage import LeasedStorage
from hpo.storage.tables import leftovers

MINIMIZE, MAXIMIZE = StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE
RUNNING, COMPLETE = TrialState.RUNNING, TrialState.COMPLETE

DISTRIBUTIONS = {
    "float": FloatDistribution(0, 1),
    "log": FloatDistribution(0.1, 1, log=True),
    "step": FloatDistribution(0, 1, step=0.25),
    "int": IntDistribution(0, 3),
    "scalars": CategoricalDistribution(("a", 1, None, True, 0.5)),
}
numbers = st.sampled_from([0.5, -1.0, 3, math.inf, -math.inf, 1e-300])
reports = numbers | st.just(math.nan)
attributes = st.sampled_from([1, "text", None, [1, {"a": 2.5}], {"b": [None]}, "\u00e9"])
keys = st.sampled_from(["a", "data", "leases", "times", "user:data", "user:user:settings", "user:a"])
kinds = st.sampled_from(sorted(DISTRIBUTIONS))
names = st.sampled_from(["x", "y"])
places = st.integers(0, 3)
states = st.sampled_from(list(TrialState))


@st.composite
def templates(draw: st.DrawFn) -> FrozenTrial:
    state = draw(states)
    chosen = {f"of {kind}": DISTRIBUTIONS[kind] for kind in draw(st.sets(kinds, max_size=3))}
    if draw(st.booleans()):
        chosen["x"] = DISTRIBUTIONS[draw(kinds)]
    return create_trial(
        state=state,
        values=[draw(numbers)] if state == COMPLETE else None,
        params={name: distribution.to_external_repr(1) for name, distribution in chosen.items()},
        distributions=chosen,
        user_attrs=draw(st.dictionaries(keys, attributes, max_size=2)),
        system_attrs=draw(st.dictionaries(keys, attributes, max_size=2)),
        intermediate_values=draw(st.dictionaries(st.integers(0, 5), reports, max_size=3)),
    )


def operation(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(st.just(name), *arguments)


values = st.none() | st.lists(numbers, min_size=1, max_size=2)
operations = st.one_of(
    operation("create_new_study", st.sampled_from([[MINIMIZE], [MAXIMIZE], [MINIMIZE, MAXIMIZE]]), names),
    operation("delete_study", places),
    operation("set_study_user_attr", places, keys, attributes),
    operation("set_study_system_attr", places, keys, attributes),
    operation("get_study_user_attrs", places),
    *[operation("create_new_trial", places, st.none() | templates())] * 4,
    *[operation("set_trial_param", places, names, st.integers(0, 1), kinds)] * 3,
    *[operation("set_trial_intermediate_value", places, st.integers(0, 2), reports)] * 2,
    operation("set_trial_user_attr", places, keys, attributes),
    operation("set_trial_system_attr", places, keys, attributes),
    *[operation("set_trial_state_values", places, states, values)] * 3,
    operation("get_trial", places),
    operation("get_trial_params", places),
    operation("get_trial_param", places, names),
    operation("get_trial_system_attrs", places),
    operation("get_trial_number_from_id", places),
    operation("get_trial_id_from_study_id_trial_number", places, places),
    operation("get_all_trials", places, st.booleans(), st.none() | st.just((RUNNING, COMPLETE))),
    operation("get_n_trials", places, st.none() | states),
    operation("get_best_trial", places),
)


def comparable(result: Any) -> Any:
    """Return a result in which NaN equals itself, and each time is replaced by its presence.

    The parameters keep their order.
    """
    if isinstance(result, list | tuple):
        return [comparable(item) for item in result]
    if isinstance(result, FrozenTrial):
        content = dict(result.__dict__)
        for name in ("_datetime_start", "datetime_complete"):
            content[name] = content[name] is not None
        for name in ("_distributions", "_user_attrs", "_system_attrs", "intermediate_values"):
            content[name] = sorted(content[name].items())
        return repr(sorted(content.items()))
    return result.__dict__ if isinstance(result, FrozenStudy) else result


study_numbers = itertools.count()


class Client:
    """Client of a storage. It names its studies and trials by their places, the newest first."""

    def __init__(self, storage: BaseStorage) -> None:
        self.storage = storage
        self.studies: list[int] = []
        self.trials: list[int] = []

    def call(self, name: str, *arguments: Any) -> Any:
        """Return the comparable result of a call, or the type of its error."""
        try:
            return comparable(self._call(name, *arguments))
        except (KeyError, ValueError, RuntimeError, DuplicatedStudyError) as error:
            return type(error)

    def snapshot(self) -> list[Any]:
        studies = [study for study in self.storage.get_all_studies() if study._study_id in self.studies]
        return [comparable(studies), [comparable(self.storage.get_all_trials(study._study_id)) for study in studies]]

    def _call(self, name: str, *arguments: Any) -> Any:
        result = getattr(self.storage, name)(*self._resolved(name, *arguments))
        created = {"create_new_study": self.studies, "create_new_trial": self.trials}
        if name in created:
            created[name].insert(0, result)
        # Optuna returns any of the trials with the best value.
        return result.value if name == "get_best_trial" else result

    def _resolved(self, name: str, *arguments: Any) -> Sequence[Any]:
        """Replace the place of a study or of a trial by its id, and the kind of a distribution by a distribution."""
        if name == "create_new_study":
            return arguments
        place, *others = arguments
        ids = self.trials if name.startswith(("get_trial", "set_trial")) and "study_id" not in name else self.studies
        if name == "set_trial_param":
            others[-1] = DISTRIBUTIONS[others[-1]]
        return [(*ids, -1)[min(place, len(ids))], *others]


def open_file(path: Path) -> RDBStorage:
    return open_storage(make_database(f"sqlite:///{path}"))


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[LeasedStorage]:
    rdb = open_file(tmp_path / "hpo.db")
    leftovers.remove_leftovers(rdb.engine)
    yield LeasedStorage(rdb, StorageTimings())
    close(rdb)


@pytest.fixture
def optunas(tmp_path: Path) -> Iterator[RDBStorage]:
    """Optuna's own storage on another file."""
    rdb = open_file(tmp_path / "optuna.db")
    yield rdb
    close(rdb)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sequence=st.lists(operations, min_size=5, max_size=40))
def test_any_calls_equal_optunas_storage(storage, optunas, sequence):
    ours, theirs = Client(storage), Client(optunas)
    start = [("create_new_study", [MINIMIZE], f"study {next(study_numbers)}"), *[("create_new_trial", 0, None)] * 2]
    for call in [*start, *sequence]:
        assert ours.call(*call) == theirs.call(*call), call
    assert ours.snapshot() == theirs.snapshot()
