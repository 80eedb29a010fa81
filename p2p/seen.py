"""Which messages were seen lately: bounded in time and number."""

from __future__ import annotations

from collections import OrderedDict


class SeenMessages:
    """Ids in the order in which they were first seen. Time is passed in, in seconds."""

    def __init__(self, ttl: float, most: int) -> None:
        self._ttl = ttl
        self._most = most
        self._seen: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def has(self, key: bytes, now: float) -> bool:
        first = self._seen.get(key)
        return first is not None and now - first < self._ttl

    def add(self, key: bytes, now: float) -> None:
        self._seen.pop(key, None)
        self._seen[key] = now
        while self._seen:
            oldest = next(iter(self._seen))
            if len(self._seen) <= self._most and now - self._seen[oldest] < self._ttl:
                return
            del self._seen[oldest]
