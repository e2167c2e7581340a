"""Growing intervals between the polls of an idle worker."""

from collections.abc import Callable

# The part of the time without a change that a poll may be late.
_LATENESS = 0.25


class PollIntervals:
    """Intervals between the polls of a worker that has no work.

    The interval grows with the time in which nothing has changed, and is short again after a change.

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

    def next(self, state: object) -> float:
        """Return the time until the next poll.

        Args:
            state: Everything that decides whether there is work.
        """
        now = self._clock()
        if state != self._state:
            self._state, self._changed_at = state, now
        return min(max(self._shortest_s, _LATENESS * (now - self._changed_at)), self._longest_s)
