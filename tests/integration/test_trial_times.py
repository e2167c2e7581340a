"""Times of trials that machines in different time zones write and read."""

import json
from datetime import UTC, datetime

import optuna
import pytest
from factories import create_trial, execute, open_study
from optuna.trial import TrialState
from workers import make_config

from hpo.data.prepared.cache import prepare
from hpo.storage.database.connection import close
from hpo.storage.trial_store import TrialOutcome
from hpo.tuning.result import export_best

COMPLETE = TrialOutcome(TrialState.COMPLETE, 0.5)


def forget_zone(database):
    """Make the studies of a database look like those of an earlier version, which wrote local times."""
    execute(database, "DELETE FROM study_user_attributes WHERE key = 'times'")


def test_two_zones_write_one_timeline(database, set_zone):
    before = datetime.now(UTC)
    for number, zone in enumerate(["Asia/Tokyo", "America/Los_Angeles", "Europe/Berlin"]):
        set_zone(zone)
        with open_study(database) as study:
            study.store.finish(create_trial(study.store, number), COMPLETE)
    with open_study(database) as study:
        times = [time for trial in study.trials for time in (trial.datetime_start, trial.datetime_complete)]
    assert times == sorted(times)
    assert before <= times[0]
    assert times[-1] <= datetime.now(UTC)


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Los_Angeles"])
def test_optuna_reads_local_time_of_reader(database, set_zone, zone):
    with open_study(database) as study:
        study.store.finish(create_trial(study.store), COMPLETE)
        written = study.trials[0].datetime_complete
    set_zone(zone)
    rdb = database.open()
    (trial,) = optuna.load_study(study_name="s", storage=rdb).trials
    close(rdb)
    assert trial.datetime_complete.astimezone(UTC) == written


def test_study_of_earlier_version_keeps_local_times(database, set_zone):
    open_study(database).close()
    forget_zone(database)
    set_zone("Asia/Tokyo")
    before = datetime.now()
    with open_study(database) as study:
        study.store.finish(create_trial(study.store), COMPLETE)
    set_zone("America/Los_Angeles")
    with open_study(database) as study:
        (trial,) = study.trials
    assert before <= trial.datetime_start <= trial.datetime_complete
    assert trial.datetime_start.tzinfo is None


@pytest.mark.parametrize(("is_old", "created"), [(False, "2026-10-25T01:30:00+00:00"), (True, "2026-10-25T01:30:00")])
def test_export_is_the_same_in_each_zone(bench, set_zone, is_old, created):
    config = make_config(trials=1)
    set_zone("Asia/Tokyo")
    data = prepare(config)
    bench.worker(bench.join(config, data.fingerprint), config).run()
    execute(bench.database, "UPDATE trials SET datetime_complete = '2026-10-25 01:30:00'")
    if is_old:
        forget_zone(bench.database)
    texts = []
    for zone in ["UTC", "Asia/Tokyo", "America/Los_Angeles", "Europe/Berlin"]:
        set_zone(zone)
        parameters, _ = export_best(bench.join(config, data.fingerprint), config, data)
        texts.append(json.dumps(parameters))
    assert len(set(texts)) == 1
    assert json.loads(texts[0])["created"] == created
