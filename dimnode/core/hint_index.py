"""What owners said about their jobs by gossip: who owns what, as far as somebody heard, and which copies here seem behind.

Hints may be lost, late or wrong. Nothing is decided by them but whom to ask.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Heard:
    owner: str
    epoch: int
    digest: bytes
    terminal: bool


class HintIndex:
    """Bounded: the jobs heard of longest ago are forgotten first. Times are monotonic seconds."""

    def __init__(self, most: int, grace: float) -> None:
        """``grace``: what the owner said and what is here may differ for so long; copies travel, too."""
        self._most = most
        self._grace = grace
        self._heard: OrderedDict[str, Heard] = OrderedDict()
        self._behind: OrderedDict[str, float] = OrderedDict()
        """Jobs that differed -> when to look again; in that order."""

    def __len__(self) -> int:
        return len(self._heard)

    def get(self, job: str) -> Heard | None:
        return self._heard.get(job)

    def hear(self, job: str, heard: Heard) -> bool:
        """Whether it is news; of a former owner nothing is."""
        known = self._heard.get(job)
        if known is not None and (heard.epoch < known.epoch or known == heard):
            return False
        self._heard[job] = heard
        self._heard.move_to_end(job)
        while len(self._heard) > self._most:
            self._behind.pop(self._heard.popitem(last=False)[0], None)
        return True

    def differs(self, job: str, now: float) -> None:
        """What is here is not what its owner has just told of."""
        self._behind[job] = now + self._grace
        self._behind.move_to_end(job)

    def agrees(self, job: str) -> None:
        self._behind.pop(job, None)

    def take_due(self, now: float, most: int) -> dict[str, list[str]]:
        """Jobs that have differed for longer than the grace time, by owner; each is told once."""
        due: dict[str, list[str]] = {}
        for job, at in list(self._behind.items()):
            if at > now or most <= 0:
                break
            del self._behind[job]
            due.setdefault(self._heard[job].owner, []).append(job)
            most -= 1
        return due

    def next_at(self) -> float | None:
        return next(iter(self._behind.values()), None)

    def forget(self, jobs: Iterable[str]) -> None:
        for job in jobs:
            self._heard.pop(job, None)
            self._behind.pop(job, None)
