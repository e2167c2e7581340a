"""hpo's storage of Optuna's interface: the fence, hidden attributes, and the trial that a worker runs."""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy as sa
from factories import HOUR_S, execute, expire_leases, make_outage
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import event

from hpo.storage.database.connection import StorageTimings
from hpo.storage.leased_storage import LeasedStorage
from hpo.storage.tables import leftovers, schema
from hpo.storage.tables.leases import Lease, LeaseLostError, Leases
from hpo.storage.tables.optuna_tables import NO_DETAILS, Details

MINIMIZE, MAXIMIZE = StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE
RUNNING, WAITING, COMPLETE, PRUNED, FAIL = (
    TrialState.RUNNING,
    TrialState.WAITING,
    TrialState.COMPLETE,
    TrialState.PRUNED,
    TrialState.FAIL,
)
TIMINGS = StorageTimings(lease_s=HOUR_S, restart_grace_s=0.0)
UNIT = FloatDistribution(0, 1)


@pytest.fixture
def tables(rdb: RDBStorage) -> RDBStorage:
    """Optuna's storage with hpo's tables and the trigger of deleted studies."""
    leftovers.remove_leftovers(rdb.engine)
    return rdb


@pytest.fixture
def storage(tables: RDBStorage) -> LeasedStorage:
    return LeasedStorage(tables, TIMINGS)


@pytest.fixture
def other(tables: RDBStorage) -> LeasedStorage:
    """The storage of another process."""
    return LeasedStorage(tables, TIMINGS)


@pytest.fixture
def study_id(storage: LeasedStorage) -> int:
    return storage.create_new_study([MINIMIZE], "s")


# The fence

WRITES: list[Callable[[BaseStorage, int], object]] = [
    lambda storage, trial: storage.set_trial_param(trial, "new", 0.5, UNIT),
    lambda storage, trial: storage.set_trial_param(trial, "x", 0.75, UNIT),
    lambda storage, trial: storage.set_trial_intermediate_value(trial, 1, 0.5),
    lambda storage, trial: storage.set_trial_user_attr(trial, "a", 2),
    lambda storage, trial: storage.set_trial_system_attr(trial, "a", 2),
    lambda storage, trial: storage.set_trial_state_values(trial, RUNNING, [0.5]),
    lambda storage, trial: storage.set_trial_state_values(trial, WAITING),
    lambda storage, trial: storage.set_trial_state_values(trial, COMPLETE, [0.5]),
    lambda storage, trial: storage.set_trial_state_values(trial, PRUNED, [0.5]),
    lambda storage, trial: storage.set_trial_state_values(trial, FAIL),
]
# The writes that a worker makes about its own trial.
WRITES_OF_OWN = WRITES[:5]


def start_trial(storage: BaseStorage, study_id: int) -> int:
    trial_id = storage.create_new_trial(study_id)
    storage.set_trial_param(trial_id, "x", 0.25, UNIT)
    storage.set_trial_user_attr(trial_id, "a", 1)
    storage.set_trial_intermediate_value(trial_id, 0, 1.0)
    return trial_id


def read_rows(rdb: RDBStorage) -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows of all tables."""
    tables = [*models.BaseModel.metadata.sorted_tables, *schema._metadata.sorted_tables]
    with rdb.engine.connect() as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(sa.select(table).order_by(*table.primary_key))]
            for table in tables
        }


def assert_refused(rdb: RDBStorage, storage: BaseStorage, trial_id: int, error: type[Exception]) -> None:
    """Check that each write about a trial raises this error and changes nothing."""
    before = read_rows(rdb)
    for write in WRITES:
        with pytest.raises(error):
            write(storage, trial_id)
        assert read_rows(rdb) == before


def leases_of(rdb: RDBStorage, study_id: int) -> Leases:
    return Leases(str(rdb.get_study_user_attrs(study_id)[schema.STUDY_KEY]), TIMINGS)


def claim(rdb: RDBStorage, study_id: int) -> Lease | None:
    """Claim a trial of the study for another owner."""
    with rdb.engine.begin() as connection:
        return leases_of(rdb, study_id).claim(connection, "other")


def test_writes_after_claim_are_refused(database, tables, storage, study_id):
    trial_id = start_trial(storage, study_id)
    expire_leases(database)
    assert claim(tables, study_id) is not None
    assert_refused(tables, storage, trial_id, LeaseLostError)


def test_writes_about_trial_of_other_storage_are_refused(tables, storage, other, study_id):
    assert_refused(tables, other, start_trial(storage, study_id), LeaseLostError)


def test_writes_after_release_are_refused(database, tables, storage, study_id):
    trial_id = start_trial(storage, study_id)
    execute(database, "UPDATE hpo_leases SET owner = NULL")
    assert_refused(tables, storage, trial_id, LeaseLostError)


def test_writes_about_trial_that_ended_elsewhere_are_refused(tables, storage, study_id):
    trial_id = start_trial(storage, study_id)
    tables.set_trial_state_values(trial_id, FAIL)
    assert_refused(tables, storage, trial_id, UpdateFinishedTrialError)


def test_writes_about_trial_of_deleted_study_are_refused(tables, storage, study_id):
    trial_id = start_trial(storage, study_id)
    tables.delete_study(study_id)
    assert_refused(tables, storage, trial_id, KeyError)


@pytest.mark.parametrize("storage_url", ["postgresql"], indirect=True)
def test_write_about_trial_deleted_after_fence_check_is_refused(database, tables, storage, study_id):
    trial_id = storage.create_new_trial(study_id)

    def delete(*arguments: Any) -> None:
        if "UPDATE hpo_leases" in arguments[2]:
            execute(database, f"DELETE FROM trials WHERE trial_id = {trial_id}")

    event.listen(tables.engine, "after_cursor_execute", delete)
    with pytest.raises(LeaseLostError):
        storage.set_trial_intermediate_value(trial_id, 0, 0.5)
    assert read_rows(tables)["trial_intermediate_values"] == []


def test_writes_about_waiting_trial_are_refused_after_its_start(tables, storage, other, study_id):
    template = create_trial(state=WAITING, params={"x": 0.25}, distributions={"x": UNIT})
    trial_id = storage.create_new_trial(study_id, template)
    storage.set_trial_user_attr(trial_id, "a", 1)
    assert other.set_trial_state_values(trial_id, RUNNING)
    assert_refused(tables, storage, trial_id, LeaseLostError)


def test_writes_about_trial_without_lease_are_optunas(tables, storage, study_id):
    for write in WRITES:
        trial_id, expected_id = start_trial(tables, study_id), start_trial(tables, study_id)
        write(storage, trial_id)
        write(tables, expected_id)
        written, expected = storage.get_trial(trial_id), tables.get_trial(expected_id)
        assert (written.state, written.params, written.values) == (expected.state, expected.params, expected.values)
        assert written.intermediate_values == expected.intermediate_values
        assert (written.user_attrs, written.system_attrs) == (expected.user_attrs, expected.system_attrs)
    assert read_rows(tables)["hpo_leases"] == []


def test_writes_renew_lease(database, tables, storage, study_id):
    for write in WRITES:
        trial_id = start_trial(storage, study_id)
        expire_leases(database)
        write(storage, trial_id)
        assert claim(tables, study_id) is None
        if not storage.get_trial(trial_id).state.is_finished():
            storage.set_trial_state_values(trial_id, FAIL)


def test_waiting_trial_starts_once(tables, storage, other, study_id):
    trial_id = storage.create_new_trial(study_id, create_trial(state=WAITING))
    assert read_rows(tables)["hpo_leases"] == []
    assert storage.set_trial_state_values(trial_id, RUNNING)
    assert not storage.set_trial_state_values(trial_id, RUNNING)
    assert not other.set_trial_state_values(trial_id, RUNNING)
    assert storage.set_trial_state_values(trial_id, COMPLETE, [0.5])
    assert tables.get_trial(trial_id).value == 0.5


def in_threads(storages: Sequence[LeasedStorage], function: Callable[[LeasedStorage], Any]) -> list[Any]:
    """Call a function in one thread per storage at once; return the results."""
    barrier = threading.Barrier(len(storages))

    def call(storage: LeasedStorage) -> Any:
        barrier.wait()
        return function(storage)

    with ThreadPoolExecutor(len(storages)) as pool:
        return list(pool.map(call, storages))


def test_one_of_many_clients_starts_waiting_trial(tables, storage, study_id):
    clients = [LeasedStorage(tables, TIMINGS) for _ in range(4)]
    for _ in range(5):
        trial_id = storage.create_new_trial(study_id, create_trial(state=WAITING))
        started = in_threads(clients, lambda client: client.set_trial_state_values(trial_id, RUNNING))  # noqa: B023
        assert sorted(started) == [False, False, False, True]
        assert clients[started.index(True)].set_trial_state_values(trial_id, COMPLETE, [0.5])


def test_many_clients_create_trials_of_all_numbers(tables, storage, study_id):
    clients = [LeasedStorage(tables, TIMINGS) for _ in range(4)]
    in_threads(clients, lambda client: [client.create_new_trial(study_id) for _ in range(5)])
    assert [trial.number for trial in storage.get_all_trials(study_id)] == list(range(20))


def test_trial_that_waits_again_can_be_leased_again(storage, other, study_id):
    trial_id = start_trial(storage, study_id)
    assert storage.set_trial_state_values(trial_id, WAITING)
    assert other.set_trial_state_values(trial_id, RUNNING)
    assert other.set_trial_state_values(trial_id, COMPLETE, [0.5])


def test_running_template_is_leased(tables, storage, other, study_id):
    trial_id = storage.create_new_trial(study_id, create_trial(state=RUNNING))
    with pytest.raises(LeaseLostError):
        other.set_trial_state_values(trial_id, FAIL)
    storage.set_trial_state_values(trial_id, FAIL)
    finished = storage.create_new_trial(study_id, create_trial(state=FAIL))
    assert [row[1] for row in read_rows(tables)["hpo_leases"]] == [storage.get_trial_number_from_id(trial_id)]
    assert storage.get_trial(finished).number == 1


def test_study_of_other_program_has_no_leases(tables, storage, other):
    study_id = tables.create_new_study([MINIMIZE], "foreign")
    trial_id = storage.create_new_trial(study_id)
    storage.set_study_user_attr(study_id, "data", 1)
    other.set_trial_state_values(trial_id, COMPLETE, [0.5])
    assert tables.get_study_user_attrs(study_id) == other.get_study_user_attrs(study_id) == {"data": 1}
    assert read_rows(tables)["hpo_leases"] == []


# Studies


def test_attributes_of_hpo_are_hidden(tables, storage, study_id):
    attributes = {
        name: f"user's {name}" for name in ("settings", "data", "times", "leases", "user:data", "user:b", "a")
    }
    stored = {**tables.get_study_user_attrs(study_id), "settings": {"a": 1}, "data": "fingerprint"}
    for name, value in stored.items():
        tables.set_study_user_attr(study_id, name, value)
    assert storage.get_study_user_attrs(study_id) == {}
    for name, value in attributes.items():
        storage.set_study_user_attr(study_id, name, value)
    assert storage.get_study_user_attrs(study_id) == attributes
    assert [study.user_attrs for study in storage.get_all_studies()] == [attributes]
    assert tables.get_study_user_attrs(study_id).items() >= stored.items()


def test_study_of_known_name_is_refused(tables, storage, study_id):
    before = read_rows(tables)
    with pytest.raises(DuplicatedStudyError):
        storage.create_new_study([MAXIMIZE], "s")
    assert read_rows(tables) == before


def test_deletion_removes_rows_of_hpo(tables, storage, study_id):
    start_trial(storage, study_id)
    storage.delete_study(study_id)
    assert {name: rows for name, rows in read_rows(tables).items() if rows and "version" not in name} == {}


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
def test_new_study_with_id_of_deleted_one_is_read_anew(tables, storage, study_id):
    storage.create_new_trial(study_id, create_trial(value=0.5))
    assert storage.get_n_trials(study_id) == 1
    other = LeasedStorage(tables, TIMINGS)
    other.delete_study(study_id)
    assert other.create_new_study([MINIMIZE], "other") == study_id
    assert storage.get_all_trials(study_id) == []


def test_trials_of_restored_database_are_read_anew(database, tables, storage, study_id):
    for _ in range(2):
        storage.create_new_trial(study_id)
    assert storage.get_n_trials(study_id) == 2
    execute(database, "DELETE FROM trials WHERE number = 1")
    assert storage.get_all_trials(study_id) == tables.get_all_trials(study_id)
    assert storage.get_n_trials(study_id) == 1


# The trial that a worker runs


@dataclass
class RecordedTrial:
    """Trial of a worker that records what is written about it."""

    study_id: int
    trial_id: int
    frozen: FrozenTrial
    written: list[tuple[Details, list[tuple[int, float]]]] = field(default_factory=list)
    error: Exception | None = None

    def write(self, details: Details, reports: Sequence[tuple[int, float]]) -> None:
        if self.error is not None:
            raise self.error
        self.written.append((details, list(reports)))

    def end(self, state: TrialState, values: Sequence[float] | None) -> None:
        self.frozen.state, self.frozen.values = state, values


@pytest.fixture
def own(storage, study_id) -> RecordedTrial:
    trial_id = storage.create_new_trial(study_id)
    return RecordedTrial(study_id, trial_id, storage.get_trial(trial_id))


@contextmanager
def no_query(rdb: RDBStorage) -> Iterator[None]:
    def fail(*_: object) -> None:
        raise AssertionError("a query")

    event.listen(rdb.engine, "before_cursor_execute", fail)
    try:
        yield
    finally:
        event.remove(rdb.engine, "before_cursor_execute", fail)


def write_all(storage: BaseStorage, trial_id: int) -> None:
    storage.set_trial_param(trial_id, "x", 0.5, UNIT)
    storage.set_trial_param(trial_id, "c", 1, CategoricalDistribution(("a", "b")))
    storage.set_trial_param(trial_id, "x", 0.75, UNIT)
    storage.set_trial_intermediate_value(trial_id, 1, 3)
    storage.set_trial_intermediate_value(trial_id, 2, math.inf)
    storage.set_trial_user_attr(trial_id, "u", {1: (2, 3)})
    storage.set_trial_system_attr(trial_id, "s", [None])


def test_own_trial_is_written_without_query(tables, storage, own, study_id):
    with no_query(tables), storage.running(own):
        write_all(storage, own.trial_id)
        trial = storage.get_trial(own.trial_id)
        assert storage.get_trial_params(own.trial_id) == trial.params == {"x": 0.5, "c": "b"}
        assert storage.get_trial_param(own.trial_id, "c") == 1
        assert storage.get_trial_user_attrs(own.trial_id) == {"u": {"1": [2, 3]}}
        assert storage.get_trial_system_attrs(own.trial_id) == {"s": [None]}
        assert storage.get_trial_number_from_id(own.trial_id) == 0
        assert storage.get_trial_id_from_study_id_trial_number(study_id, 0) == own.trial_id
        assert not storage.set_trial_state_values(own.trial_id, RUNNING)
        storage.check_trial_is_updatable(own.trial_id, RUNNING)
        assert trial.intermediate_values == {1: 3.0, 2: math.inf}
    written = NO_DETAILS
    for details, _ in own.written:
        written |= details
    assert written == Details(
        {"x": (0.5, UNIT), "c": (1.0, CategoricalDistribution(("a", "b")))}, {"u": {"1": [2, 3]}}, {"s": [None]}
    )
    assert [report for _, reports in own.written for report in reports] == [(1, 3.0), (2, math.inf)]


def test_own_trial_equals_trial_in_database(storage, own, study_id):
    with storage.running(own):
        write_all(storage, own.trial_id)
        frozen = storage.get_trial(own.trial_id)
    assert storage.get_trial(own.trial_id).params == {}
    write_all(storage, own.trial_id)
    assert storage.get_trial(own.trial_id) == frozen


def test_own_trial_is_shown_among_all_trials(storage, own, study_id):
    storage.create_new_trial(study_id, create_trial(value=0.5))
    with storage.running(own):
        storage.set_trial_param(own.trial_id, "x", 0.5, UNIT)
        assert [trial.params for trial in storage.get_all_trials(study_id)] == [{"x": 0.5}, {}]
        assert [trial.params for trial in storage.get_all_trials(study_id, deepcopy=False)] == [{"x": 0.5}, {}]
        assert storage.get_n_trials(study_id) == 2
        assert storage.get_n_trials(study_id, RUNNING) == 1
        assert storage.get_best_trial(study_id).number == 1
    assert [trial.params for trial in storage.get_all_trials(study_id)] == [{}, {}]


def test_finished_trials_are_read_once(tables, storage, own, study_id):
    storage.create_new_trial(study_id, create_trial(value=0.5))
    before = storage.get_all_trials(study_id)
    queries = []
    event.listen(tables.engine, "before_cursor_execute", lambda *arguments: queries.append(arguments[2]))
    with storage.running(own):
        for _ in range(3):
            assert storage.get_all_trials(study_id) == before
    assert len(queries) == 3


@pytest.mark.parametrize("deepcopy", [True, False])
def test_copies_of_own_trial_do_not_change(storage, own, study_id, deepcopy):
    with storage.running(own):
        (before,) = storage.get_all_trials(study_id, deepcopy=deepcopy)
        storage.set_trial_user_attr(own.trial_id, "u", [1])
        copy = storage.get_trial(own.trial_id)
        copy.user_attrs["u"].append(2)
        assert own.frozen.user_attrs == {"u": [1]}
        write_all(storage, own.trial_id)
    assert (before.params, before.user_attrs, before.intermediate_values) == ({}, {}, {})
    assert copy.params == {}


def test_end_of_own_trial_is_recorded(tables, storage, own):
    study = optuna.load_study(study_name="s", storage=storage)
    trial = optuna.Trial(study, own.trial_id)
    with no_query(tables), storage.running(own):
        assert study.tell(trial, 0.5).value == 0.5
        assert storage.get_trial(own.trial_id).state == COMPLETE
    assert tables.get_trial(own.trial_id).state == RUNNING


def test_lost_lease_of_own_trial_changes_nothing(storage, own):
    own.error = LeaseLostError(0)
    with storage.running(own):
        for write in WRITES_OF_OWN:
            with pytest.raises(LeaseLostError):
                write(storage, own.trial_id)
    assert own.frozen == storage.get_trial(own.trial_id)


def test_own_param_of_other_kind_is_refused(tables, storage, own, study_id):
    template = create_trial(value=0.5, params={"x": 0.5}, distributions={"x": UNIT})
    storage.create_new_trial(study_id, template)
    storage.get_all_trials(study_id)
    with no_query(tables), storage.running(own), pytest.raises(ValueError, match="different distribution kind"):
        storage.set_trial_param(own.trial_id, "x", 1, IntDistribution(0, 1))
    assert own.written == []


@pytest.mark.parametrize("value", [object(), {1, 2}])
def test_attribute_that_is_not_json_is_refused(storage, own, value):
    with storage.running(own), pytest.raises(TypeError):
        storage.set_trial_user_attr(own.trial_id, "u", value)
    assert own.written == []


@pytest.mark.parametrize(
    ("value", "stored"),
    [(np.array([[0.5], [1.0]]), [[0.5], [1.0]]), (np.int64(3), 3), ({"f": np.float32(0.5)}, {"f": 0.5})],
)
def test_attributes_of_numpy_become_lists_and_numbers(storage, other, own, study_id, value, stored):
    storage.set_study_user_attr(study_id, "a", value)
    storage.set_study_system_attr(study_id, "a", value)
    storage.set_trial_user_attr(own.trial_id, "a", value)
    with storage.running(own):
        storage.set_trial_system_attr(own.trial_id, "a", value)
    assert own.written == [(Details(system_attrs={"a": stored}), [])]
    assert other.get_study_user_attrs(study_id)["a"] == other.get_study_system_attrs(study_id)["a"] == stored
    assert other.get_trial(own.trial_id).user_attrs == {"a": stored}


def test_outage_shows_trials_of_last_read(tables, storage, own, study_id):
    storage.create_new_trial(study_id, create_trial(value=0.5))
    expected = storage.get_all_trials(study_id)

    def fail(*_: object) -> None:
        raise make_outage()

    event.listen(tables.engine, "before_cursor_execute", fail)
    try:
        with storage.running(own):
            assert storage.get_all_trials(study_id) == expected
        with pytest.raises(type(make_outage())):
            storage.get_all_trials(study_id)
    finally:
        event.remove(tables.engine, "before_cursor_execute", fail)


# Studies of Optuna on this storage


def objective(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", -1, 1)
    if trial.suggest_categorical("more", [True, False]):
        x += trial.suggest_int("n", 0, 3)
    for step in range(3):
        trial.report(x * x + step, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return x * x


def optimize(storage: BaseStorage) -> list[FrozenTrial]:
    sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=3)
    study = optuna.create_study(storage=storage, sampler=sampler, pruner=optuna.pruners.MedianPruner(3))
    study.enqueue_trial({"x": 0.5, "more": True})
    study.optimize(objective, n_trials=12)
    return study.trials


def test_study_equals_study_in_memory(storage):
    ours, theirs = optimize(storage), optimize(optuna.storages.InMemoryStorage())
    assert [(trial.state, trial.params, trial.values) for trial in ours] == [
        (trial.state, trial.params, trial.values) for trial in theirs
    ]
    assert {trial.state for trial in ours} == {COMPLETE, PRUNED}


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution:UserWarning")
def test_choices_may_be_tuples(storage, other):
    """Optuna's database storage fails the second trial, because JSON makes a list of a tuple."""

    def objective(trial: optuna.Trial) -> float:
        sizes = trial.suggest_categorical("sizes", [(50,), (100, (50, 20))])
        assert sizes in {(50,), (100, (50, 20))}
        return trial.suggest_float("x", 0, 1) + len(sizes)

    optuna.create_study(storage=storage, study_name="s").optimize(objective, n_trials=12)
    study = optuna.load_study(storage=other, study_name="s")
    study.enqueue_trial({"sizes": (100, (50, 20))})
    study.optimize(objective, n_trials=3)
    assert len(study.trials[12].params["sizes"]) == 2
    assert {trial.state for trial in study.trials} == {COMPLETE}
    assert hash(study.best_params["sizes"]) == hash((50,))
