"""Stored times of trials: UTC, or local times in studies of earlier versions."""

from datetime import UTC, datetime, timedelta

import pytest
from fakes import FakeClock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpo.storage.tables.optuna_tables import TrialClock

ZONES = ["UTC", "Asia/Tokyo", "America/Los_Angeles", "Europe/Berlin", "Asia/Kathmandu"]
# In Berlin the hour from 2:00 to 3:00 is repeated: this is the start of its first run.
AUTUMN = datetime(2026, 10, 25, 0, 0, tzinfo=UTC).timestamp()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(seconds=st.floats(0, 4e9), writer=st.sampled_from(ZONES), reader=st.sampled_from(ZONES))
def test_time_is_read_as_written_in_any_zone(set_zone, seconds, writer, reader):
    set_zone(writer)
    stored = TrialClock(clock=lambda: seconds).now()
    assert stored.tzinfo is None
    set_zone(reader)
    assert TrialClock().read(stored) == datetime.fromtimestamp(seconds, UTC)


def test_duration_spans_clock_change_in_autumn(set_zone):
    set_zone("Europe/Berlin")
    clock = FakeClock(AUTUMN + 1800)
    times = TrialClock(clock=clock)
    start = times.now()
    clock.advance(3600)
    end = times.now()
    assert end - start == timedelta(hours=1)
    assert times.read(end).isoformat() == "2026-10-25T01:30:00+00:00"


@pytest.mark.parametrize("zone", ZONES)
def test_local_time_of_earlier_version_claims_no_zone(set_zone, zone):
    set_zone(zone)
    times = TrialClock(utc=False, clock=lambda: AUTUMN)
    assert times.now() == datetime.fromtimestamp(AUTUMN)
    assert times.read(datetime(2026, 11, 1, 12)).isoformat() == "2026-11-01T12:00:00"


def test_missing_time_stays_missing():
    assert TrialClock().read(None) is None
    assert TrialClock(utc=False).read(None) is None
