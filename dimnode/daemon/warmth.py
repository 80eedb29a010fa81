"""Which models should be loaded before anybody asks for them. Pure; time is passed in.

Pinned models come first, then those that queued tasks need, then the frequently used; those that are warm already stay
until something more wanted needs their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dimnode.daemon.settings import PrewarmSettings

REMEMBERED = 1024


@dataclass(slots=True)
class _Use:
    count: float
    at: float


class Warmth:
    """How often models have been used lately: each use counts 1, and half after each half-life."""

    def __init__(self, settings: PrewarmSettings) -> None:
        self._settings = settings
        self._uses: dict[str, _Use] = {}

    def used(self, cid: str, now: float) -> None:
        count = self.count(cid, now) + 1
        self._uses.pop(cid, None)
        while len(self._uses) >= REMEMBERED:
            del self._uses[next(iter(self._uses))]  # the longest unused
        self._uses[cid] = _Use(count, now)

    def forget(self, cid: str) -> None:
        self._uses.pop(cid, None)

    def count(self, cid: str, now: float) -> float:
        use = self._uses.get(cid)
        return use.count * 0.5 ** ((now - use.at) / self._settings.half_life) if use is not None else 0.0

    def wanted(self, *, pinned: Iterable[str], queued: Mapping[str, int], now: float) -> list[str]:
        """CIDs, the most wanted first, at most ``most``. ``queued``: CID to waiting tasks."""
        often = sorted(((self.count(cid, now), cid) for cid in self._uses), reverse=True)
        frequent = [cid for count, cid in often if count >= self._settings.frequent]
        waiting = sorted(queued, key=lambda cid: -queued[cid])
        return list(dict.fromkeys([*pinned, *waiting, *frequent]))[: self._settings.most]
