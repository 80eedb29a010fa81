"""Which records changed here, in the order of their last change. Pure; times are the caller's monotonic seconds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import dropwhile, takewhile


@dataclass(frozen=True, slots=True)
class Changes:
    """A part of them, the oldest first."""

    jobs: tuple[str, ...] = ()
    until: int = 0
    """What comes after these is after this."""
    more: bool = False


class RecentChanges:
    """``most``: jobs that are remembered; of more, those that changed last."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._last: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """Job -> number and time of its last change."""

    def note(self, job: str, now: float) -> None:
        self._count += 1
        self._last[job] = (self._count, now)
        self._last.move_to_end(job)
        while len(self._last) > self._most:
            self._last.popitem(last=False)

    def forget(self, job: str) -> None:
        self._last.pop(job, None)

    def after(self, since: int, before: float, limit: int) -> Changes:
        """The first ``limit`` whose last change came after number ``since`` (0: all that are remembered), and at ``before`` at the latest."""
        part: list[tuple[str, int]] = []
        for job, (number, at) in self._newer(since):
            if at > before or len(part) > limit:
                break
            part.append((job, number))
        until = part[min(limit, len(part)) - 1][1] if part else since
        return Changes(tuple(job for job, _ in part[:limit]), until, len(part) > limit)

    def _newer(self, since: int) -> Iterable[tuple[str, tuple[int, float]]]:
        """In their order. Looked for from the end that is nearer: a burst leaves thousands, and few are asked for at once."""
        if 2 * (self._count - since) > len(self._last):
            return dropwhile(lambda item: item[1][0] <= since, self._last.items())
        return reversed(list(takewhile(lambda item: item[1][0] > since, reversed(self._last.items()))))
