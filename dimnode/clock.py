"""Time for the shells: the real clock, a clock that tests turn by hand, and Trio's own.

The monotonic clock must count the time that the machine was suspended: a laptop that slept through its
lease has lost it. Python's ``time.monotonic`` stops during suspension on Linux, so CLOCK_BOOTTIME is used
there; on macOS CLOCK_MONOTONIC goes on.
"""

from __future__ import annotations

import time

import trio

_SUSPEND_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class SystemClock:
    """The machine's clock (`dimnode.ports.Clock`)."""

    def wall(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.clock_gettime(_SUSPEND_CLOCK)


class ManualClock:
    """A clock that moves only when told to."""

    def __init__(self, now: float = 1000.0, epoch: float = 1_700_000_000.0) -> None:
        self._now = now
        self._offset = epoch - now

    def wall(self) -> float:
        return self._now + self._offset

    def monotonic(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Raises `ValueError` for negative ``seconds``: time does not go back."""
        if seconds < 0:
            raise ValueError("time does not go back")
        self._now += seconds


class TrioClock:
    """Trio's clock, so that tests on a `trio.testing.MockClock` run on virtual time. Needs a running loop."""

    def __init__(self, epoch: float = 1_700_000_000.0) -> None:
        self._epoch = epoch

    def wall(self) -> float:
        return self._epoch + trio.current_time()

    def monotonic(self) -> float:
        return trio.current_time()
