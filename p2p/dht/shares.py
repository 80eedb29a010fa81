"""Bounded memory for what strangers ask a node to keep, and bounded service of them. Pure: time is the caller's.

When a table is full, whoever has most in it loses its oldest entry. So somebody who stores without end only displaces himself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class _Entry(Generic[V]):
    owner: str
    value: V
    expires: float


class SharedTable(Generic[K, V]):
    """``most``: entries."""

    def __init__(self, most: int) -> None:
        if most < 1:
            raise ValueError("a table has room for something")
        self._most = most
        self._entries: dict[K, _Entry[V]] = {}
        self._owned: dict[str, OrderedDict[K, None]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: K, owner: str, value: V, expires: float) -> list[K]:
        """Stores or replaces; returns the keys that gave way."""
        self.remove(key)
        gone: list[K] = []
        if len(self._entries) >= self._most:
            greatest = max(self._owned, key=lambda each: len(self._owned[each]))
            gone.append(next(iter(self._owned[greatest])))
            self.remove(gone[0])
        self._entries[key] = _Entry(owner, value, expires)
        self._owned.setdefault(owner, OrderedDict())[key] = None
        return gone

    def get(self, key: K, now: float) -> V | None:
        entry = self._entries.get(key)
        return entry.value if entry is not None and entry.expires > now else None

    def remove(self, key: K) -> bool:
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        owned = self._owned[entry.owner]
        del owned[key]
        if not owned:
            del self._owned[entry.owner]
        return True

    def expire(self, now: float) -> list[K]:
        """Removes what is over, and returns its keys."""
        gone = [key for key, entry in self._entries.items() if entry.expires <= now]
        for key in gone:
            self.remove(key)
        return gone


class Quota:
    """A token bucket for each of the latest ``most`` peers: ``rate`` per second, ``burst`` at once."""

    def __init__(self, rate: float, burst: float, most: int = 1024) -> None:
        self._rate = rate
        self._burst = burst
        self._most = most
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, peer: str, now: float) -> bool:
        left, at = self._left.pop(peer, (self._burst, now))
        left = min(self._burst, left + self._rate * (now - at))
        allowed = left >= 1.0
        self._left[peer] = (left - 1.0 if allowed else left, now)
        if len(self._left) > self._most:
            self._left.popitem(last=False)
        return allowed
