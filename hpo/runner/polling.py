"""Growing intervals between the polls of an idle worker."""

from collections.abc import Callable

# The part of the time without a change that a poll may be late.
_LATENESS = 0.25

# A poll at exactly the end of a lease would find the lease still valid.
_EXPIRY_DELAY_S = 0.05


class PollIntervals:
    """Intervals between the polls of a worker that has no work.

    The interval grows with the time in which nothing has changed, and is short again after a change. The lease that
    expires next cuts it short.

    Args:
        shortest_s: The interval after a change.
        longest_s: The longest interval.
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, shortest_s: float, longest_s: float, clock: Callable[[], float]) -> None:
        self._shortest_s = shortest_s
        self._longest_s = longest_s
        self._clock = clock
        self._state: object = None
        self._changed_at = clock()

    def next(self, state: object, expires_in_s: float = float("inf")) -> float:
        """Return the time until the next poll.

        Args:
            state: Everything that decides whether there is work.
            expires_in_s: The time until the next lease expires.
        """
        now = self._clock()
        if state != self._state:
            self._state, self._changed_at = state, now
        interval_s = min(_LATENESS * (now - self._changed_at), expires_in_s + _EXPIRY_DELAY_S, self._longest_s)
        return max(self._shortest_s, interval_s)
