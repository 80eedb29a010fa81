"""How long one call goes on after failures, and when it tries again. Pure; time is passed in (monotonic seconds)."""

from __future__ import annotations

import enum
import math
import random
from dataclasses import dataclass


class Setback(enum.Enum):
    """Why an attempt failed, as far as trying again goes."""

    GONE = "nobody answered, or who answered cannot do it now"
    MISSING = "who answered does not know the thing"
    BUSY = "who answered has too much to do"


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """Seconds."""

    retry_for: float = 10.0
    """After the first failure in a row; 0: every address is asked once."""
    backoff_min: float = 0.1
    backoff_max: float = 1.0
    """Pauses double from the least to the most, each shortened by up to a half at random."""
    busy_for: float = 0.0
    """How long to wait for one that is busy; 0: not at all."""
    missing_for: float = 10.0
    """How long a thing that is known to exist may be unknown to those that are asked."""


class Attempts:
    """The attempts of one call. ``avoid`` holds who failed in this round; a round ends when everybody did, and a pause
    follows."""

    def __init__(self, settings: RetrySettings, rng: random.Random, *, deadline: float = math.inf, exists: bool = False) -> None:
        self._settings = settings
        self._rng = rng
        self.deadline = deadline
        self.exists = exists
        """Whether the thing that is asked for is known to exist."""
        self.avoid: set[str] = set()
        self._pause = settings.backoff_min
        self._since: dict[Setback, float] = {}
        """When each kind of failure began."""
        self._last = -math.inf

    def heard(self) -> None:
        """An answer came: failures are counted from the next one on. Pauses stay as long as they are, so that one who
        answers and breaks off at once is not asked in a tight loop."""
        self._since.clear()
        self.avoid.clear()

    def after(self, setback: Setback, now: float, *, round_over: bool, retry_after: float | None = None) -> float | None:
        """Seconds to wait before the next attempt, None: give up."""
        s = self._settings
        if now - self._last > 2 * s.backoff_max:
            self._pause = s.backoff_min
        self._last = now
        if setback is Setback.MISSING and not self.exists:
            return None
        patience = {Setback.GONE: s.retry_for, Setback.MISSING: s.missing_for, Setback.BUSY: s.busy_for}[setback]
        until = min(self._since.setdefault(setback, now) + patience, self.deadline)
        if setback is not Setback.BUSY and not round_over:
            return 0.0 if now < self.deadline else None
        wait = self._next_pause()
        if setback is Setback.BUSY and retry_after is not None:
            wait = max(wait, retry_after * self._rng.uniform(1.0, 1.25))
        if now + wait > until:
            return None
        self.avoid.clear()
        return wait

    def _next_pause(self) -> float:
        pause = self._pause * self._rng.uniform(0.5, 1.0)
        self._pause = min(self._pause * 2, self._settings.backoff_max)
        return pause
