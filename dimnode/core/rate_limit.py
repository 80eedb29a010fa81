"""How many requests a principal may make: a token bucket each. Pure; time is passed in."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RateLimitSettings:
    rate: float = 0.0
    """Requests per second and principal; 0: no limit."""
    burst: int = 0
    """Requests at once above the rate; 0: as many as one second allows, at least 1."""
    principals: int = 10_000
    """Buckets kept; the longest unused goes first (and starts full again)."""

    @property
    def capacity(self) -> float:
        return float(self.burst) if self.burst else max(1.0, self.rate)


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class RateLimiter:
    def __init__(self, settings: RateLimitSettings) -> None:
        self.settings = settings
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, principal: str, now: float, cost: float = 1.0) -> float | None:
        """None if the request may go on, else the seconds after which it may be tried again. ``now``:
        monotonic seconds. A cost above the capacity is taken from a full bucket."""
        s = self.settings
        if s.rate <= 0:
            return None
        bucket = self._bucket(principal, now)
        bucket.tokens = min(s.capacity, bucket.tokens + max(0.0, now - bucket.at) * s.rate)
        bucket.at = now
        cost = min(cost, s.capacity)
        if bucket.tokens >= cost:
            bucket.tokens -= cost
            return None
        return (cost - bucket.tokens) / s.rate

    def _bucket(self, principal: str, now: float) -> _Bucket:
        bucket = self._buckets.get(principal)
        if bucket is None:
            bucket = self._buckets[principal] = _Bucket(self.settings.capacity, now)
            while len(self._buckets) > self.settings.principals:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(principal)
        return bucket

    def __len__(self) -> int:
        return len(self._buckets)
