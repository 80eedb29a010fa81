"""Which records changed here, in the order of their last change. Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import takewhile


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
        self._at: OrderedDict[str, int] = OrderedDict()

    def note(self, job: str) -> None:
        self._count += 1
        self._at[job] = self._count
        self._at.move_to_end(job)
        while len(self._at) > self._most:
            self._at.popitem(last=False)

    def forget(self, job: str) -> None:
        self._at.pop(job, None)

    @property
    def count(self) -> int:
        """Of all changes so far: where the next one comes after."""
        return self._count

    def after(self, since: int, until: int, limit: int) -> Changes:
        """The first ``limit`` whose last change came after ``since`` (0: all that are remembered) and not after ``until``."""
        newer = [i for i in takewhile(lambda item: item[1] > since, reversed(self._at.items())) if i[1] <= until]
        part = newer[::-1][:limit]
        return Changes(tuple(job for job, _ in part), part[-1][1] if part else since, len(newer) > limit)
