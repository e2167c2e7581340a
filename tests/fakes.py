"""Fakes that several tests share."""


class FakeClock:
    """Clock that advances only on request.

    Pass it where a clock function is expected, or patch it in place of the module ``time``.

    Attributes:
        now: The current time in seconds.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
