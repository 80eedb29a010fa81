"""Which requests for one model run together, and when. Pure; time is passed in.

A request that finds an agent free runs at once, unless requests have been finding company lately: then it waits for more, ``delay``
seconds at the most. While agents are busy requests gather by themselves, and whoever comes free takes them together. So a
lonely client never waits, and a crowd is served in batches. (Clipper, NSDI 2017, waits always; here waiting must have paid before.)
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
SMOOTHING = 0.3
COMPANY = 1.5
"""Requests in a batch, on average, from which on waiting pays."""


@dataclass(frozen=True, slots=True)
class BatchSettings:
    most_requests: int = 32
    """1: nothing runs together."""
    most_rows: int = 4096
    most_bytes: int = 64 << 20
    delay: float = 0.002


@dataclass(slots=True, eq=False)
class Waiting(Generic[T]):
    item: T
    key: Hashable
    """Only requests with equal keys run together: dtypes, row shapes, and whose they are."""
    rows: int
    nbytes: int
    arrived: float


class Batcher(Generic[T]):
    """The requests for one model that wait for an agent."""

    def __init__(self, settings: BatchSettings) -> None:
        self._settings = settings
        self._waiting: list[Waiting[T]] = []
        self._company = 1.0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, item: T, key: Hashable, rows: int, nbytes: int, now: float) -> Waiting[T]:
        waiting = Waiting(item, key, rows, nbytes, now)
        self._waiting.append(waiting)
        return waiting

    def cancel(self, waiting: Waiting[T]) -> bool:
        """Whether it still waited."""
        if waiting not in self._waiting:
            return False
        self._waiting.remove(waiting)
        return True

    def due(self, now: float) -> list[Waiting[T]] | float | None:
        """An agent is free: the requests that it should run now, or the time when to ask again at the latest (sooner if
        a request comes), or None if nothing waits."""
        if not self._waiting:
            return None
        batch = self._batch()
        full = len(batch) < self._same_key() or len(batch) >= self._settings.most_requests
        wait = self._settings.delay if self._company > COMPANY and not full else 0.0
        if now < batch[0].arrived + wait:
            return batch[0].arrived + wait
        for waiting in batch:
            self._waiting.remove(waiting)
        self._company += SMOOTHING * (len(batch) - self._company)
        return batch

    def take_all(self) -> list[Waiting[T]]:
        """Everything that waits: there is no agent for it."""
        taken, self._waiting = self._waiting, []
        return taken

    def _same_key(self) -> int:
        return sum(w.key == self._waiting[0].key for w in self._waiting)

    def _batch(self) -> list[Waiting[T]]:
        """The oldest request and those that fit to it, in order of arrival."""
        s = self._settings
        first = self._waiting[0]
        batch, rows, size = [first], first.rows, first.nbytes
        for other in self._waiting[1:]:
            if len(batch) >= s.most_requests:
                break
            if other.key == first.key and rows + other.rows <= s.most_rows and size + other.nbytes <= s.most_bytes:
                batch.append(other)
                rows, size = rows + other.rows, size + other.nbytes
        return batch
