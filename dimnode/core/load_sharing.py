"""Which seat drives a new job: decided before it is accepted, never afterwards.

Seats tell each other how many unfinished jobs they drive (with every beat, so the number is up to a beat old). What was
handed over since counts on top of it: otherwise a burst would go to one seat as a whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoadSharingSettings:
    slack: int = 2
    """A job is handed over only to a seat that drives at least this many fewer: handing over costs a request."""
    memory: float = 1.5
    """Seconds for which jobs handed over are added to what a seat told: longer than a beat takes to show them."""


class LoadSharing:
    def __init__(self, settings: LoadSharingSettings | None = None) -> None:
        self._settings = settings or LoadSharingSettings()
        self._handed: dict[str, deque[tuple[float, int]]] = {}

    def place(self, own: int, others: Mapping[str, int], count: int, now: float) -> list[str | None]:
        """For each of ``count`` new jobs the seat that shall have it, None for this one. ``own`` and ``others``: unfinished
        jobs here and, by peer, as told."""
        loads = {peer: jobs + self._recent(peer, now) for peer, jobs in others.items()}
        placed: list[str | None] = []
        for _ in range(count):
            freest = min(loads, key=lambda p: (loads[p], p), default=None)
            if freest is None or loads[freest] + self._settings.slack > own:
                placed.append(None)
                own += 1
            else:
                placed.append(freest)
                loads[freest] += 1
        for peer in others:
            if handed := placed.count(peer):
                self._handed.setdefault(peer, deque()).append((now, handed))
        return placed

    def _recent(self, peer: str, now: float) -> int:
        handed = self._handed.get(peer)
        if handed is None:
            return 0
        while handed and now - handed[0][0] > self._settings.memory:
            handed.popleft()
        if not handed:
            del self._handed[peer]
        return sum(n for _, n in handed)
