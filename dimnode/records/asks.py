"""Writers that wait for copies."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from dimnode.domain.record import Ballot, SignedEntry
from dimnode.ports import Copied


class Waiter:
    """One call: it is woken once, when all its jobs are settled."""

    __slots__ = ("_open", "done")

    def __init__(self, jobs: int) -> None:
        self._open = jobs
        self.done = trio.Event()

    def less(self) -> None:
        self._open -= 1
        if self._open == 0:
            self.done.set()

    @property
    def idle(self) -> bool:
        return self._open == 0


class Ask:
    """One job of a call: ``wanted`` nodes shall have everything up to write number ``length``, and these blocks."""

    __slots__ = ("_waiter", "blocks", "copied", "job", "length", "wanted")

    def __init__(self, job: str, length: int, wanted: int, blocks: Sequence[str], waiter: Waiter) -> None:
        self.job = job
        self.length = length
        self.wanted = wanted
        self.blocks = frozenset(blocks)
        self.copied: Copied | None = None
        """Set when it is settled."""
        self._waiter = waiter

    def settle(self, others: int, *, enough: bool = True) -> None:
        self._close(Copied(self.job, others, enough=enough))

    def fence(self, ballot: Ballot, proof: Sequence[SignedEntry]) -> None:
        self._close(Copied(self.job, 0, ballot, proof))

    def _close(self, copied: Copied) -> None:
        if self.copied is None:
            self.copied = copied
            self._waiter.less()
