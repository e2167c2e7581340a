"""The stopwatch of a trial, and the limits that a machine refuses."""

import pytest
from fakes import FakeClock

from hpo.errors import LimitError
from hpo.runner.limits import Stopwatch, TrialTimeoutError, format_size, limit_memory


@pytest.fixture
def clock():
    return FakeClock()


def test_stopwatch_includes_former_attempts(clock):
    stopwatch = Stopwatch(limit=None, spent=7.5, clock=clock)
    assert stopwatch.seconds == 7.5
    clock.advance(2)
    assert stopwatch.seconds == 9.5


def test_check_after_limit_raises(clock):
    stopwatch = Stopwatch(limit=60.0, spent=0.0, clock=clock)
    stopwatch.check()
    clock.advance(60)
    stopwatch.check()
    clock.advance(1 / 1024)
    with pytest.raises(TrialTimeoutError):
        stopwatch.check()


def test_former_attempts_count_against_limit(clock):
    stopwatch = Stopwatch(limit=60.0, spent=59.0, clock=clock)
    clock.advance(1)
    stopwatch.check()
    clock.advance(1)
    with pytest.raises(TrialTimeoutError):
        stopwatch.check()
    with pytest.raises(TrialTimeoutError):
        Stopwatch(limit=60.0, spent=61.0, clock=clock).check()


def test_check_without_limit_passes(clock):
    stopwatch = Stopwatch(limit=None, spent=1e9, clock=clock)
    clock.advance(1e12)
    stopwatch.check()


def test_limit_of_zero_is_a_limit(clock):
    stopwatch = Stopwatch(limit=0.0, spent=0.0, clock=clock)
    clock.advance(1)
    with pytest.raises(TrialTimeoutError):
        stopwatch.check()


@pytest.mark.parametrize("platform", ["darwin", "freebsd14"])
def test_memory_limit_needs_linux(platform):
    with pytest.raises(LimitError, match=r"--memory-limit: only Linux can keep it; leave it out"):
        limit_memory(10**12, platform)


@pytest.mark.parametrize(
    ("size", "shown"),
    [(500_000_000, "500M"), (2_000_000_000, "2000M"), (1_499_999, "1M"), (1_500_001, "2M"), (0, "0M")],
)
def test_size_is_formatted_in_megabytes(size, shown):
    assert format_size(size) == shown
