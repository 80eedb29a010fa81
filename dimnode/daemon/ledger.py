"""The tasks that this node answers for, across restarts: one small journal value for each.

A row is written with the acceptance, rewritten with the attempt, and free again when the attempt has been delivered or
is given up for newer ones. Rows are taken again, lowest first, so their number stays that of the most tasks there ever were
at once. A free row may still say what it said before: whoever takes it overwrites that, and `tidy` does some time
later. A crash until then brings a delivered attempt back as one to offer, or marks a task twice that was ordered again after
its caller left in the middle of the acceptance; neither does harm.
"""

from __future__ import annotations

import heapq
import logging
from functools import partial

import msgspec
import trio

from dimnode.daemon.execution import Key
from dimnode.daemon.together import together
from dimnode.domain import codec
from dimnode.domain.record import Ballot
from dimnode.domain.task import TaskOrder
from dimnode.errors import DimError
from dimnode.ports import Journal

COUNT = "daemon.tasks"
"""Rows there may be."""
CHUNK = 64
"""Rows that are added at once: each time costs a commit of its own."""
_log = logging.getLogger(__name__)


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """One row: a task that was accepted."""

    job: str
    task: str
    attempt: int
    task_key: str
    ballot: Ballot
    entry: str = ""
    """Id of its attempt once it has finished."""

    @property
    def key(self) -> Key:
        return (self.job, self.task, self.attempt, self.task_key)

    def order(self) -> TaskOrder:
        """What is left of the order: enough to say that it came to nothing."""
        return TaskOrder(
            job=self.job, task=self.task, attempt=self.attempt, ballot=self.ballot, task_key=self.task_key,
            model_id="", model_cid="", manifest_cid="",
        )  # fmt: skip


def mark(order: TaskOrder) -> Mark:
    return Mark(job=order.job, task=order.task, attempt=order.attempt, task_key=order.task_key, ballot=order.ballot)


def name(row: int) -> str:
    """The row's key in the journal."""
    return f"daemon.task.{row}"


class Ledger:
    def __init__(self, journal: Journal, *, delay: float) -> None:
        """``delay``: seconds between a row becoming free and its value being cleared."""
        self._journal = journal
        self._delay = delay
        self._marks: dict[int, Mark] = {}
        self._free: list[int] = []
        self._stale: set[int] = set()
        """Free rows with an old value on disk."""
        self._rows = 0
        self._growing = trio.Lock()
        self._work = trio.Event()

    async def open(self) -> dict[int, Mark]:
        """What was accepted and not delivered when the node ended."""
        self._rows = int(await self._journal.get(COUNT) or 0)
        for row in range(self._rows):
            data = await self._journal.get(name(row))
            try:
                found = codec.decode(data, Mark) if data else None
            except codec.CodecError:
                _log.warning("a task's mark in the journal cannot be read", extra={"row": row})
                found = None
            if found is not None:
                self._marks[row] = found
            else:
                self._free.append(row)
        return dict(self._marks)

    async def reserve(self, task: Mark) -> int:
        """A row for this task; nothing is on disk before `write`. Raises what `Journal.put` raises."""
        while not self._free:
            async with self._growing:
                if not self._free:
                    await self._journal.put(COUNT, str(self._rows + CHUNK).encode())
                    for row in range(self._rows, self._rows + CHUNK):
                        heapq.heappush(self._free, row)
                    self._rows += CHUNK
        row = heapq.heappop(self._free)
        self._stale.discard(row)
        self._marks[row] = task
        return row

    async def write(self, row: int) -> None:
        await self._journal.put(name(row), codec.encode(self._marks[row]))

    def finished(self, row: int, entry_id: str) -> tuple[str, bytes]:
        """The value that is to be written with the attempt, and its key."""
        self._marks[row] = msgspec.structs.replace(self._marks[row], entry=entry_id)
        return name(row), codec.encode(self._marks[row])

    def release(self, row: int) -> None:
        del self._marks[row]
        self._stale.add(row)
        heapq.heappush(self._free, row)
        self._work.set()

    async def run(self) -> None:
        """Clears what is stale, now and then, until cancelled."""
        while True:
            await self._work.wait()
            await trio.sleep(self._delay)
            try:
                await self.tidy()
            except DimError:
                _log.debug("free task rows could not be cleared")

    async def tidy(self) -> None:
        """Clears the free rows that still say something, in one commit. Raises what `Journal.put` raises."""
        self._work = trio.Event()
        rows, self._stale = self._stale, set()
        # not to be taken while their old values are being overwritten: that write could come last
        self._free = [row for row in self._free if row not in rows]
        heapq.heapify(self._free)
        cleared = False
        try:
            await together(*[partial(self._journal.put, name(row), b"") for row in rows])
            cleared = True
        finally:
            for row in rows:
                heapq.heappush(self._free, row)
            if not cleared:
                self._stale |= rows
                self._work.set()
