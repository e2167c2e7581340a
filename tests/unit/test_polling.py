"""Intervals between the polls of an idle worker."""

import pytest
from fakes import FakeClock
from hypothesis import given
from hypothesis import strategies as st

from hpo.runner.polling import PollIntervals

SHORTEST_S, LONGEST_S = 0.5, 4.0


@pytest.fixture
def clock():
    return FakeClock()


def polls_in(intervals: PollIntervals, clock: FakeClock, seconds: float, state: object = "idle") -> int:
    """Return the number of polls in this time without a change."""
    end, polls = clock.now + seconds, 0
    while clock.now < end:
        clock.advance(intervals.next(state))
        polls += 1
    return polls


def test_idle_worker_polls_rarely(clock):
    intervals = PollIntervals(SHORTEST_S, LONGEST_S, clock)
    polls_in(intervals, clock, 60)
    assert polls_in(intervals, clock, 3600) == 3600 / LONGEST_S


def test_change_shortens_interval(clock):
    intervals = PollIntervals(SHORTEST_S, LONGEST_S, clock)
    polls_in(intervals, clock, 60)
    assert intervals.next("other") == SHORTEST_S
    assert polls_in(intervals, clock, 2, "other") == 4


@pytest.mark.parametrize(
    ("expires_in_s", "interval_s"), [(3.0, 3.05), (1.0, 1.05), (0.1, SHORTEST_S), (9.0, LONGEST_S)]
)
def test_poll_follows_expiry_of_lease(clock, expires_in_s, interval_s):
    intervals = PollIntervals(SHORTEST_S, LONGEST_S, clock)
    polls_in(intervals, clock, 60)
    assert intervals.next("idle", expires_in_s) == pytest.approx(interval_s)


def test_late_expiry_lengthens_no_interval(clock):
    intervals = PollIntervals(SHORTEST_S, LONGEST_S, clock)
    assert intervals.next("idle", 3.0) == SHORTEST_S


@given(durations=st.lists(st.floats(0, 1000), max_size=10))
def test_poll_is_late_by_at_most_a_part_of_idle_time(durations):
    clock = FakeClock()
    intervals = PollIntervals(SHORTEST_S, LONGEST_S, clock)
    for state, duration in enumerate(durations):
        changed_at = clock.now
        while clock.now < changed_at + duration:
            interval = intervals.next(state)
            assert SHORTEST_S <= interval <= LONGEST_S
            assert interval <= max(SHORTEST_S, (clock.now - changed_at) / 4)
            clock.advance(interval)
