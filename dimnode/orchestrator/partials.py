"""Partial outputs of the jobs that are driven here, for whoever watches them."""

from __future__ import annotations

import trio

from dimnode.core.partial_text import Board, Seen
from dimnode.domain.task import PartialOutput, TextPiece

EACH = 256 << 10
MOST = 16 << 20
"""Characters of one task, and of all jobs."""


class PartialOutputs:
    def __init__(self, each: int = EACH, most: int = MOST) -> None:
        self._board = Board(each, most)
        self._waiting: dict[str, trio.Event] = {}

    def tell(self, job: str, task: str, attempt: int, piece: TextPiece) -> None:
        if self._board.add(job, task, attempt, piece) and (event := self._waiting.pop(job, None)) is not None:
            event.set()

    def after(self, job: str, seen: Seen) -> list[PartialOutput]:
        """What a watcher has not got yet."""
        return self._board.after(job, seen)

    async def wait(self, job: str, seen: Seen) -> None:
        """Returns when there is something to tell."""
        while not self._board.after(job, seen):
            event = self._waiting.setdefault(job, trio.Event())
            try:
                await event.wait()
            finally:
                if not event.is_set() and not event.statistics().tasks_waiting and self._waiting.get(job) is event:
                    del self._waiting[job]
