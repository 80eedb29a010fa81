"""What of this node's content the swarm's DHT is told, and when again. Pure: time is the caller's, in seconds of any one clock.

Announcements are kept in others' memory only, and swarms change: each is repeated. A failed one is tried again sooner.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProvideSettings:
    repeat: float = 3_600.0
    """Between two announcements of the same content (``dht.reprovide``)."""
    retry: float = 60.0
    """After one that nobody took note of."""
    most: int = 512
    """Contents that are announced (``dht.most_provided``); the first ones named go before others."""
    pace: float = 0.25
    """Least seconds between two announcements."""
    look: float = 15.0
    """Between two looks at what there is."""
    jitter: float = 0.1
    """Share of ``repeat`` that is random, so that not everything is due at once."""


class ProvidePlan:
    def __init__(self, settings: ProvideSettings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self._due: dict[str, float] = {}
        self._left_out = 0

    @property
    def provided(self) -> int:
        return len(self._due)

    @property
    def left_out(self) -> int:
        """Contents beyond the bound."""
        return self._left_out

    def update(self, roots: Iterable[str], now: float) -> list[str]:
        """What there is now, the most important first; returns what is gone and was announced, or was about to be."""
        wanted = list(dict.fromkeys(roots))
        self._left_out = max(0, len(wanted) - self._settings.most)
        kept = {root: self._due.get(root, now) for root in wanted[: self._settings.most]}
        gone = [root for root in self._due if root not in kept]
        self._due = kept
        return gone

    def next(self, now: float) -> str | None:
        """What to announce now: what has waited longest."""
        root = min(self._due, key=lambda each: self._due[each], default=None)
        return root if root is not None and self._due[root] <= now else None

    def announced(self, root: str, taken: int, now: float) -> None:
        """``taken``: how many nodes took note."""
        s = self._settings
        if root in self._due:
            self._due[root] = now + (s.repeat * (1 + s.jitter * self._rng.uniform(-1, 1)) if taken else s.retry)

    def withheld(self, root: str, now: float) -> None:
        """It must not be announced: looked at again as late as if it had been."""
        self.announced(root, 1, now)
