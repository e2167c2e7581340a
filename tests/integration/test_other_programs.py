"""Other programs in the same database: Optuna's clients and the dashboard end, delete and create trials and studies."""

from dataclasses import replace

import optuna
import pytest
from factories import PARAMS, SPACE, create_trial, execute, make_database, make_storage_config, make_store, open_study
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from quadratic import Quadratic, make_quadratic_config
from workers import EpochLog, WorkerFactory, heartbeat_timings

from hpo.errors import StorageError, StudyMismatchError, TrialFailureError
from hpo.fleet.status import study_status
from hpo.storage.study import best_trial, is_finished, load_study, open_or_create_study
from hpo.storage.tables.leases import ENDED_OUTSIDE, Checkpoint, LeaseLostError
from hpo.storage.trial_cache import stray_trials
from hpo.storage.trial_store import REASON, TrialOutcome, failure_reason, is_ended_outside
from hpo.tuning.confirmation import candidates
from hpo.tuning.result import export_recorded
from hpo.tuning.tuner import _untrained_note

COMPLETE, PRUNED, FAIL, RUNNING, WAITING = (
    TrialState.COMPLETE,
    TrialState.PRUNED,
    TrialState.FAIL,
    TrialState.RUNNING,
    TrialState.WAITING,
)
DETAILS = [
    f"trial_{name}" for name in ("params", "values", "intermediate_values", "user_attributes", "system_attributes")
]
endings = pytest.mark.parametrize(("state", "value"), [(FAIL, None), (PRUNED, 0.5), (COMPLETE, 0.5)])


class Actor:
    """Optuna's client of a study."""

    def __init__(self, study):
        self._rdb = study._rdb
        self.study = optuna.load_study(study_name=study.name, storage=self._rdb)

    def end(self, number, state, value=None):
        trial_id = self._rdb.get_trial_id_from_study_id_trial_number(self.study._study_id, number)
        self._rdb.set_trial_state_values(trial_id, state, None if value is None else [value])

    def delete_study(self):
        optuna.delete_study(study_name=self.study.study_name, storage=self._rdb)


def states(study):
    return [trial.state for trial in study.trials]


def open_leases(database):
    return [number for (number,) in execute(database, "SELECT number FROM hpo_leases WHERE NOT finished")]


def worker(bench, study, config, objective, **options):
    return bench.worker(study, config, objective=objective, timings=heartbeat_timings(), **options)


# Trials that another program ends


@endings
def test_trial_ended_during_training_is_not_overwritten(bench, state, value):
    config = make_quadratic_config(trials=3, pruner="none")
    study, log = bench.join(config), EpochLog()

    def end_second(epoch):
        if log.trials[-1].number == 1 and epoch == 5:
            Actor(study).end(1, state, value)

    log.on_epoch = end_second
    worker(bench, study, config, log.watch(Quadratic())).run()
    assert [trial.number for trial in study.trials] == [0, 1, 2]
    assert states(study) == [COMPLETE, state, COMPLETE]
    assert study.trials[1].value == value
    assert open_leases(bench.database) == []
    assert execute(bench.database, "SELECT number FROM hpo_checkpoints") == []
    assert execute(bench.database, "SELECT error FROM hpo_leases WHERE number = 1") == [(ENDED_OUTSIDE,)]
    assert failure_reason(study.trials[1]) is None
    assert is_ended_outside(study.trials[1]) == (state != COMPLETE)


@endings
@pytest.mark.parametrize("held", ["leased", "released", "paused"])
def test_ended_trial_is_neither_claimed_nor_promoted(rdb, database, held, state, value):
    store = make_store(rdb)
    lease = create_trial(store)
    if held == "released":
        store.release(lease, [], Checkpoint(1, 0.5, b"state"))
    if held == "paused":
        store.pause(lease, [(1, 0.5)], Checkpoint(1, 0.5, b"state"))
    rdb.set_trial_state_values(lease.trial_id, state, None if value is None else [value])
    view = store.refresh()
    assert store.claim("worker_a") is None
    assert store.resume("worker_b", 0, lease.attempt) is None
    store.prune_paused(view)
    with pytest.raises(LeaseLostError):
        store.finish(lease, TrialOutcome(FAIL, None, "crash"))
    assert store.close_ended() == [0]
    assert store.close_ended() == []
    assert open_leases(database) == []
    view = store.refresh()
    assert (view.trials[0].state, view.trials[0].value, view.paused) == (state, value, {})
    assert store.retained_trials() == []


def test_end_of_paused_trial_leaves_others_running(bench):
    config = make_quadratic_config(trials=9, pruner="asha")
    study, log = bench.join(config), EpochLog()
    ended = []

    def end_paused(epoch):
        if not ended and (paused := study.store.refresh().paused):
            ended.append(min(paused))
            Actor(study).end(ended[0], FAIL)

    log.on_epoch = end_paused
    worker(bench, study, config, log.watch(Quadratic())).run()
    assert len(study.trials) == 9
    assert states(study)[ended[0]] == FAIL
    assert all(state.is_finished() for state in states(study))
    assert open_leases(bench.database) == []


def test_attributes_of_other_programs_do_no_harm(rdb):
    store = make_store(rdb)
    lease = create_trial(store)
    rdb.set_trial_user_attr(lease.trial_id, REASON, "mine")
    rdb.set_trial_system_attr(lease.trial_id, "dashboard:note", "text")
    store.finish(lease, TrialOutcome(FAIL, None, "crashed 3 times"))
    assert store.trials[0].user_attrs == {REASON: "crashed 3 times"}
    other = create_trial(store, 1)
    rdb.set_trial_user_attr(other.trial_id, REASON, "stopped by hand")
    rdb.set_trial_state_values(other.trial_id, FAIL)
    store.close_ended()
    assert store.trials[1].user_attrs == {REASON: "stopped by hand"}


def test_complete_trial_of_another_program_has_no_weights(stored_study):
    store = stored_study.store
    for number, value in ((0, 0.5), (1, 0.25)):
        lease = create_trial(store, number)
        store.finish(lease, TrialOutcome(COMPLETE, value), weights=b"weights")
    create_trial(store, 2)
    Actor(stored_study).end(2, COMPLETE, 0.9)
    store.close_ended()
    assert [trial.number for trial in candidates(stored_study)] == [0]


# Deleted and replaced studies


def replace_study(study, config):
    """Delete a study and create another with its name. On SQLite it gets the same ids."""
    Actor(study).delete_study()
    return open_or_create_study(study.database, config, "", "value")


def test_writes_about_deleted_study_do_not_reach_its_successor(bench):
    config = make_quadratic_config(trials=12)
    old = bench.join(config, "")
    lease = create_trial(old.store)
    paused = create_trial(old.store, 1, "worker_b")
    old.store.pause(paused, [(1, 0.5)], Checkpoint(1, 0.5, b"state"))
    released = create_trial(old.store, 2, "worker_c")
    old.store.release(released, [])
    view = old.store.refresh()
    with replace_study(old, config) as new:
        for number in range(3):
            create_trial(new.store, number, f"new {number}")
        before = execute(bench.database, "SELECT * FROM trials")
        checkpoint = Checkpoint(2, 1.0, b"old")
        for write in (
            lambda: old.store.heartbeat(lease),
            lambda: old.store.report(lease, [(1, 0.5)], checkpoint),
            lambda: old.store.pause(lease, [(1, 0.5)], checkpoint),
            lambda: old.store.release(lease, [(1, 0.5)], checkpoint),
            lambda: old.store.finish(lease, TrialOutcome(COMPLETE, 0.5), [(1, 0.5)], b"old"),
        ):
            with pytest.raises(LeaseLostError):
                write()
        assert old.store.claim("late") is None
        assert old.store.resume("late", 1, 1) is None
        old.store.prune_paused(view)
        with pytest.raises(StorageError, match="was deleted, renamed or replaced"):
            old.store.allocate("late")
        with pytest.raises(StorageError, match="was deleted, renamed or replaced"):
            old.store.refresh()
        old.store.close_ended()
        assert execute(bench.database, "SELECT * FROM trials") == before
        assert execute(bench.database, "SELECT * FROM trial_intermediate_values") == []
        assert [active.owned for active in new.store.active_trials()] == [True] * 3


def test_old_lease_does_not_hold_trial_of_successor_with_same_ids(tmp_path):
    database = make_database(f"sqlite:///{tmp_path}/hpo.db")
    with open_study(database) as old:
        lease = create_trial(old.store)
        # Without the trigger, the leases of a deleted study stay until the next start.
        execute(database, "DROP TRIGGER hpo_study_deleted")
        Actor(old).delete_study()
        successor = optuna.create_study(study_name="s", storage=old._rdb, direction="maximize")
        successor.set_user_attr("leases", "other")
        trial = successor.ask()
        assert (trial._trial_id, trial.number) == (lease.trial_id, lease.number)
        for write in (
            lambda: old.store.heartbeat(lease),
            lambda: old.store.report(lease, [(1, 0.5)], Checkpoint(2, 1.0, b"old")),
            lambda: old.store.finish(lease, TrialOutcome(COMPLETE, 0.5), [(1, 0.5)], b"old"),
        ):
            with pytest.raises(LeaseLostError):
                write()
        assert old.store.close_ended() == [0]
        (unchanged,) = successor.trials
        assert (unchanged.state, unchanged.intermediate_values) == (RUNNING, {})


def test_trial_of_replaced_study_is_not_adopted(bench):
    config = make_quadratic_config(trials=4)
    old = bench.join(config, "")
    Actor(old).study.enqueue_trial({"x": 0.5})
    (trial,) = old.trials
    with replace_study(old, config) as new:
        Actor(new).study.enqueue_trial({"x": 0.25})
        with pytest.raises(StorageError, match="was deleted, renamed or replaced"):
            old.store.adopt(trial, {}, SPACE, "late")
        assert states(new) == [WAITING]


def test_worker_of_deleted_study_stops(bench):
    config = make_quadratic_config(trials=40)
    study, log = bench.join(config, ""), EpochLog()
    successor = []

    def replace(epoch):
        if not successor and log.trials[-1].number == 3:
            successor.append(replace_study(study, config))

    log.on_epoch = replace
    with pytest.raises(StorageError, match="was deleted, renamed or replaced"):
        worker(bench, study, config, log.watch(Quadratic())).run()
    with successor[0] as new:
        assert new.trials == []


def rename(study):
    execute(study.database, "UPDATE studies SET study_name = 'another'")


def test_renamed_study_is_gone_for_reads_and_new_trials(stored_study):
    store = stored_study.store
    lease = create_trial(store)
    assert len(store.trials) == 1
    rename(stored_study)
    with pytest.raises(StorageError, match="was deleted, renamed or replaced"):
        store.refresh()
    with pytest.raises(StorageError, match="was deleted, renamed or replaced"):
        create_trial(store, 1)
    # The work on a running trial is kept under the new name.
    store.finish(lease, TrialOutcome(COMPLETE, 0.5))


def test_worker_of_renamed_study_stops_after_its_trial(bench):
    config = make_quadratic_config(trials=40, pruner="none")
    study, log = bench.join(config, ""), EpochLog()
    log.on_epoch = lambda epoch: rename(study) if log.trials[-1].number == 3 else None
    with pytest.raises(StorageError, match="was deleted, renamed or replaced"):
        worker(bench, study, config, log.watch(Quadratic())).run()
    assert execute(bench.database, "SELECT state FROM trials") == [("COMPLETE",)] * 4


def test_trial_deleted_at_last_moment_loses_lease(rdb, database):
    store = make_store(rdb)
    lease = create_trial(store)
    rdb.delete_study(rdb.get_study_id_from_name("s"))
    with pytest.raises(LeaseLostError):
        store.report(lease, [(1, 0.5)])
    assert store.close_ended() == [0]
    assert open_leases(database) == []


def test_open_study_is_unchanged_by_notes(database):
    with open_study(database) as study:
        actor = Actor(study)
        actor.study.set_user_attr("note", "mine")
        actor._rdb.set_study_system_attr(actor.study._study_id, "dashboard:note_ver", 1)
        assert study.trials == []
    with open_study(database) as again:
        assert again.key == study.key


# Trials that another program creates


def test_enqueued_trials_are_run(bench):
    config = make_quadratic_config(trials=4, pruner="none")
    study = bench.join(config, "")
    actor = Actor(study)
    actor.study.enqueue_trial({"x": 0.5})
    actor.study.enqueue_trial({"x": 5.0})
    actor.study.enqueue_trial({"y": 1.0})
    worker(bench, study, config, Quadratic()).run()
    assert [trial.number for trial in study.trials] == [0, 1, 2, 3]
    assert states(study) == [COMPLETE, FAIL, FAIL, COMPLETE]
    assert study.trials[0].params == {"x": 0.5}
    reasons = [failure_reason(trial) for trial in study.trials]
    assert reasons == [
        None,
        "created outside of hpo: x = 5.0 is not in the search space",
        "created outside of hpo: the study does not search y",
        None,
    ]
    assert open_leases(bench.database) == []


def test_trials_enqueued_beyond_budget_wait_for_higher_budget(bench):
    config = make_quadratic_config(trials=2, pruner="none")
    study = bench.join(config, "")
    for x in (0.1, 0.2, 0.3):
        Actor(study).study.enqueue_trial({"x": x})
    worker(bench, study, config, Quadratic()).run()
    assert states(study) == [COMPLETE, COMPLETE, WAITING]
    assert is_finished(study.trials, 2)
    assert not is_finished(study.trials, 3)
    higher = make_quadratic_config(trials=3, pruner="none")
    worker(bench, study, higher, Quadratic()).run()
    assert states(study) == [COMPLETE] * 3


@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes"])
def test_asked_trial_is_claimed_after_grace(bench, sampler):
    config = make_quadratic_config(trials=12, pruner="none", sampler=sampler)
    study = bench.join(config, "")
    actor = Actor(study)
    actor.study.ask()
    other = actor.study.ask({"y": FloatDistribution(0.0, 9.0)})
    actor.study.add_trial(optuna.trial.create_trial(value=3.0, params={}))
    timings = replace(heartbeat_timings(), adoption_grace_s=0.0)
    bench.worker(study, config, objective=Quadratic(), timings=timings).run()
    assert len(study.trials) == 12
    assert states(study) == [COMPLETE, FAIL, *[COMPLETE] * 10]
    assert study.trials[0].params.keys() == {"x"}
    assert other.number == 1
    assert open_leases(bench.database) == []


def test_running_trial_of_other_program_is_stray(stored_study):
    create_trial(stored_study.store)
    Actor(stored_study).study.ask()
    store = stored_study.store
    assert stray_trials(store.refresh(), store.active_trials()) == [1]


# Values, parameters and studies of other programs


@pytest.fixture
def sqlite_bench(tmp_path):
    bench = WorkerFactory(f"sqlite:///{tmp_path}/hpo.db", tmp_path)
    yield bench
    bench.close()


VALUES = [float("inf"), float("-inf"), float("nan")]


def add_foreign_trials(study):
    """Add trials of another program: values and reports that are not finite, and parameters that hpo has not."""
    actor, odd = Actor(study), CategoricalDistribution([[1, 2], {"a": 1}])
    for value in VALUES:
        trial = actor.study.ask()
        trial.report(value, 1)
        trial.report(-9.0, 2)
        actor.end(trial.number, COMPLETE, value)
    for params, space in (({"x": [1, 2]}, {"x": odd}), ({"z": {"a": 1}}, {"z": odd})):
        actor.study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=9.0))


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
@pytest.mark.parametrize(
    ("sampler", "pruner"),
    [("tpe", "asha"), ("cmaes", "median"), ("random-grid", "hyperband"), ("qmc", "none"), ("random", "asha")],
)
def test_foreign_values_and_params_do_no_harm(sqlite_bench, sampler, pruner):
    bench = sqlite_bench
    config = make_quadratic_config(trials=19, sampler=sampler, pruner=pruner)
    study = bench.join(config, "")
    add_foreign_trials(study)
    bench.enqueued = ({"x": 0.5},)
    worker(bench, study, config, Quadratic()).run()
    trials = study.trials
    assert [trial.value for trial in trials[:5]] == [None, None, None, 9.0, 9.0]
    assert all(trial.intermediate_values == {2: -9.0} for trial in trials[:3])
    assert len(trials) == 19
    assert all(state.is_finished() for state in states(study))
    assert best_trial(trials).number == 3
    assert best_trial(trials[:3]) is None
    assert study.store.best_trained() == candidates(study)[0].number >= 5


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
def test_foreign_values_on_each_database(stored_study):
    add_foreign_trials(stored_study)
    trials = stored_study.trials
    assert [trial.value for trial in trials] == [None, None, None, 9.0, 9.0]
    assert trials[3].params == {"x": [1, 2]}
    assert stored_study.store.best_trained() is None
    assert [stored_study.store.is_trained(trial.number) for trial in trials] == [False] * 5
    config = make_storage_config()
    with pytest.raises(TrialFailureError, match="all 5 trials were completed by another program, without weights: "):
        export_recorded(stored_study, config)
    with pytest.raises(TrialFailureError, match="trial 0 of the study 's' was completed by another program"):
        export_recorded(stored_study, config, 0)


@pytest.mark.parametrize("has_key", [True, False])
@pytest.mark.parametrize("directions", [["minimize"], ["maximize", "minimize"]])
def test_study_of_other_directions_is_refused(rdb, database, directions, has_key):
    study = optuna.create_study(study_name="s", storage=rdb, directions=directions)
    if has_key:
        study.set_user_attr("leases", "key")
    shown = f"not made by hpo .directions: {', '.join(directions)};"
    with pytest.raises(StorageError, match=shown):
        open_study(database)
    with pytest.raises(StorageError, match=shown):
        load_study(database, make_storage_config())


@pytest.mark.parametrize("attributes", [{}, {"settings": {}}, {"data": "data"}, {"settings": "text", "data": "data"}])
def test_study_with_key_but_other_attributes_is_refused(rdb, database, attributes):
    study = optuna.create_study(study_name="s", storage=rdb, direction="maximize")
    for key, value in {**attributes, "leases": "key"}.items():
        study.set_user_attr(key, value)
    for refused in (open_study, lambda database: load_study(database, make_storage_config())):
        with pytest.raises(StorageError, match="a study 's' that was not made by hpo; "):
            refused(database)


def test_copy_is_refused_beside_its_original(database):
    with open_study(database) as study:
        create_trial(study.store)
        optuna.copy_study(from_study_name="s", from_storage=study._rdb, to_storage=study._rdb, to_study_name="copy")
        copied = make_storage_config("copy")
        for refused in (lambda: open_study(database, copied), lambda: load_study(database, copied)):
            with pytest.raises(StorageError, match="'copy' that is a copy of the study 's'"):
                refused()
        with open_study(database) as again:
            assert again.key == study.key
        optuna.delete_study(study_name="s", storage=study._rdb)
    # The name is one of the settings.
    with pytest.raises(StudyMismatchError, match=r"study\.name \(was s, is copy\)"):
        open_study(database, copied)


def test_study_that_is_renamed_back_keeps_its_results(database):
    with open_study(database) as study:
        store, rdb = study.store, study._rdb
        store.finish(create_trial(store), TrialOutcome(COMPLETE, 0.5), weights=b"weights")
        for old, new in (("s", "copy"), ("copy", "s")):
            optuna.copy_study(from_study_name=old, from_storage=rdb, to_storage=rdb, to_study_name=new)
            optuna.delete_study(study_name=old, storage=rdb)
    with open_study(database) as again:
        assert again.store.retained_trials() == [0]
        assert again.store.weights(0) == b"weights"


def test_highest_value_without_weights_is_noted(stored_study):
    store = stored_study.store
    store.finish(create_trial(store), TrialOutcome(COMPLETE, 0.5), weights=b"weights")
    assert _untrained_note(stored_study.trials, store.best_trained(), sign=1) is None
    add = Actor(stored_study).study.add_trial
    add(optuna.trial.create_trial(value=float("inf")))
    assert _untrained_note(stored_study.trials, store.best_trained(), sign=1) is None
    add(optuna.trial.create_trial(value=0.75))
    note = _untrained_note(stored_study.trials, store.best_trained(), sign=1)
    assert note.startswith("trial 2 has the best value, 0.75, but was completed by another program")
    assert note.endswith("; trial 0 is the best that hpo trained")
    assert study_status(Quadratic(), 10, store.refresh(), [], best_trained=store.best_trained()).best.number == 0


# Trials that another program deletes


def delete_trials(study, numbers, keep_details=False):
    """Delete trials. SQLite accepts that their details are kept."""
    ids = f"(SELECT trial_id FROM trials WHERE number IN ({', '.join(map(str, numbers))}))"
    for table in () if keep_details else DETAILS:
        execute(study.database, f"DELETE FROM {table} WHERE trial_id IN {ids}")
    execute(study.database, f"DELETE FROM trials WHERE trial_id IN {ids}")


def delete_at(log, study, number, deleted):
    """Delete trials in the first epoch of a trial."""
    done = []

    def delete(epoch):
        if not done and log.trials[-1].number == number:
            done.append(True)
            delete_trials(study, deleted)

    log.on_epoch = delete


def assert_all_made(study, budget):
    numbers = execute(study.database, "SELECT number FROM trials ORDER BY number")
    assert numbers == [(number,) for number in range(budget)]
    assert [trial.number for trial in study.trials] == list(range(budget))
    assert all(state.is_finished() for state in states(study))
    assert open_leases(study.database) == []


@pytest.mark.slow
@pytest.mark.parametrize("deleted", [[7], [5, 6, 7], list(range(8))])
@pytest.mark.parametrize("pruner", ["none", "asha"])
def test_newest_trials_deleted_during_launch_are_made_again(bench, deleted, pruner):
    config = make_quadratic_config(trials=10, pruner=pruner)
    study, log = bench.join(config, ""), EpochLog()
    delete_at(log, study, 7, deleted)
    worker(bench, study, config, log.watch(Quadratic())).run()
    assert_all_made(study, 10)


def between_launches(bench, config, deleted):
    """Finish a study, delete trials, and join it again. Return the study as both launches have it."""
    study = bench.join(config, "")
    worker(bench, study, config, Quadratic()).run()
    delete_trials(study, deleted)
    return study, bench.join(config, "")


@pytest.mark.parametrize("deleted", [[9], [7, 8, 9], list(range(10))])
def test_newest_trials_deleted_between_launches_are_made_again(bench, deleted):
    config = make_quadratic_config(trials=10)
    study, again = between_launches(bench, config, deleted)
    worker(bench, again, config, Quadratic()).run()
    assert_all_made(again, 10)
    assert_all_made(study, 10)


def test_rows_of_deleted_trial_do_not_reach_its_successor(tmp_path):
    with open_study(make_database(f"sqlite:///{tmp_path}/hpo.db")) as study:
        store = study.store
        lease = create_trial(store)
        store.report(lease, [(1, 0.5), (2, 0.75)], Checkpoint(2, 1.0, b"old"))
        delete_trials(study, [0], keep_details=True)
        store.close_ended()
        again = create_trial(store, 0, "worker_b")
        assert again.trial_id == lease.trial_id
        assert store.trials[0].intermediate_values == {}
        store.release(again, [])
        claimed = store.claim("worker_c")
        assert claimed is not None
        assert claimed.checkpoint is None


@pytest.mark.parametrize("table", DETAILS[:4])
def test_rows_of_deleted_trial_of_other_study_do_not_reach_new_trial(tmp_path, table):
    """Each kind of row alone."""
    with open_study(make_database(f"sqlite:///{tmp_path}/hpo.db")) as study:
        other = optuna.create_study(storage=study._rdb, direction="maximize")
        trial = optuna.trial.create_trial(
            value=9.0, params=PARAMS, distributions=SPACE, intermediate_values={1: 9.0}, user_attrs={"reason": "old"}
        )
        other.add_trial(trial)
        for kept in set(DETAILS) - {table}:
            execute(study.database, f"DELETE FROM {kept}")
        execute(study.database, "DELETE FROM trials")
        lease = create_trial(study.store, params={"learning_rate": 0.05})
        assert execute(study.database, "SELECT param_value FROM trial_params") == [(0.05,)]
        study.store.finish(lease, TrialOutcome(FAIL, None))
        (made,) = study.trials
        assert (made.value, made.intermediate_values, made.user_attrs) == (None, {}, {})


@pytest.mark.parametrize("held", ["leased", "released", "paused"])
def test_lease_of_deleted_trial_is_replaced(stored_study, held):
    store = stored_study.store
    lease, checkpoint = create_trial(store), Checkpoint(1, 1.0, b"old")
    store.report(lease, [(1, 0.5)], checkpoint)
    if held != "leased":
        (store.release if held == "released" else store.pause)(lease, [], checkpoint)
    delete_trials(stored_study, [0])
    made = create_trial(store, 0, "worker_b")
    with pytest.raises(LeaseLostError):
        store.report(lease, [(2, 0.5)])
    (active,) = store.active_trials()
    assert (active.epoch, active.owned) == (0, True)
    assert store.refresh().paused == {}
    store.release(made, [])
    claimed = store.claim("worker_c")
    assert (claimed.number, claimed.checkpoint) == (0, None)


def test_checkpoint_of_deleted_trial_does_not_reach_its_successor(stored_study):
    store = stored_study.store
    create_trial(store)
    store.pause(create_trial(store, 1), [(1, 0.5)], Checkpoint(1, 1.0, b"old"))
    delete_trials(stored_study, [0, 1])
    store.close_ended()
    execute(
        stored_study.database,
        "INSERT INTO hpo_checkpoints (study, number, state) SELECT study, number, 'old' FROM hpo_leases",
    )
    for number in range(2):
        store.release(create_trial(store, number, "worker_b"), [])
    claimed = store.claim("worker_c")
    assert claimed is not None
    assert claimed.checkpoint is None


@pytest.mark.parametrize("deleted", [[0], [3, 4], [2, 5]])
def test_launch_with_deleted_earlier_trial_ends(bench, deleted):
    config = make_quadratic_config(trials=8)
    study, again = between_launches(bench, config, deleted)
    for _ in range(2):
        with pytest.raises(StorageError, match=r"a trial before trial [135] of the study"):
            worker(bench, again, config, Quadratic()).run()
    study.store.recount()
    with pytest.raises(StorageError, match="a trial before trial"):
        study.store.refresh()


@pytest.mark.slow
@pytest.mark.parametrize("deleted", [[0], [2, 3], [6]])
@pytest.mark.parametrize("pruner", ["none", "asha"])
def test_earlier_trial_deleted_during_launch_ends_it(bench, deleted, pruner):
    config = make_quadratic_config(trials=10, pruner=pruner)
    study, log = bench.join(config, ""), EpochLog()
    delete_at(log, study, 7, deleted)
    with pytest.raises(StorageError, match="a trial before trial"):
        # The worker does not read an old trial again, the launch counts the trials at its end.
        worker(bench, study, config, log.watch(Quadratic())).run()
        study.store.recount()
        study.store.refresh()


def test_trial_that_optuna_creates_after_deletion_ends_launch(bench):
    config = make_quadratic_config(trials=8)
    study = bench.join(config, "")
    worker(bench, study, make_quadratic_config(trials=4), Quadratic()).run()
    delete_trials(study, [1])
    Actor(study).study.enqueue_trial({"x": 0.5})
    with pytest.raises(StorageError, match="a trial before trial 3 of the study was deleted"):
        worker(bench, study, config, Quadratic()).run()


def test_lease_of_dead_owner_of_deleted_trial_is_closed(bench):
    config = make_quadratic_config(trials=2, pruner="none")
    study = bench.join(config, "")
    create_trial(study.store, 0, "dead")
    delete_trials(study, [0])
    worker(bench, study, config, Quadratic()).run()
    assert_all_made(study, 2)
