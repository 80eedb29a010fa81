"""Which of several servers that are as good as each other to ask first: by how they answered lately. Pure; time is
passed in (monotonic seconds)."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class StandingSettings:
    rest_min: float = 0.5
    """Seconds for which one that failed goes to the end of the order; doubled with each failure in a row."""
    rest_hung: float = 5.0
    """The same for one that said nothing at all: asking it costs a timeout."""
    rest_max: float = 30.0
    remembered: int = 1024
    """Servers of which anything is known; the one heard of longest ago is forgotten first."""


@dataclass(slots=True)
class _Record:
    served: float = -math.inf
    failures: int = 0
    rests_until: float = -math.inf


class Standing(Generic[K]):
    """Never leaves anybody out: who failed comes last, and is asked again when the others fail, too."""

    def __init__(self, settings: StandingSettings | None = None) -> None:
        self.settings = settings or StandingSettings()
        self._records: OrderedDict[K, _Record] = OrderedDict()

    def served(self, key: K, now: float) -> None:
        """It did what it was asked: it comes first from now on."""
        record = self._record(key)
        record.served, record.failures, record.rests_until = now, 0, -math.inf

    def answered(self, key: K) -> None:
        """It is there: what it missed is forgiven, and its place is what it was before."""
        record = self._record(key)
        record.failures, record.rests_until = 0, -math.inf

    def failed(self, key: K, now: float, *, hung: bool = False) -> None:
        s, record = self.settings, self._record(key)
        first = s.rest_hung if hung else s.rest_min
        record.rests_until = now + min(s.rest_max, first * 2.0 ** min(record.failures, 32))
        record.failures += 1

    def forget(self, key: K) -> None:
        self._records.pop(key, None)

    def rests(self, key: K, now: float) -> bool:
        return key in self._records and self._records[key].rests_until > now

    def order(self, keys: Iterable[K], now: float) -> tuple[K, ...]:
        """Best first: who served last, then in the order given, then those that rest, by the end of their rest."""

        def place(key: K) -> tuple[bool, float, float]:
            record = self._records.get(key) or _Record()
            rests = record.rests_until > now
            return rests, record.rests_until if rests else -math.inf, -record.served

        return tuple(sorted(dict.fromkeys(keys), key=place))

    def _record(self, key: K) -> _Record:
        record = self._records.setdefault(key, _Record())
        self._records.move_to_end(key)
        while len(self._records) > self.settings.remembered:
            self._records.popitem(last=False)
        return record
