"""One task on its way through the daemon, and those who watch it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Literal

import trio

from dimnode.core.partial_text import PartialText
from dimnode.daemon.job_queue import Ticket
from dimnode.domain.record import Attempt, Ballot, ErrorInfo, SignedEntry
from dimnode.domain.task import TaskOrder, TaskUpdate, TextPiece
from dimnode.errors import Code, DimError, again

Why = Literal["", "cancelled", "stopping"]
Place = tuple[str, str, int]
"""(job, task, attempt)"""
Key = tuple[str, str, int, str]
"""(job, task, attempt, task_key): owners that did not know of each other may have given one number to unlike work."""
MAX_PARTIAL = 256 << 10
"""Characters of text that are kept for those who watch a task."""
FINAL = frozenset((Code.INVALID_ARGUMENT, Code.PERMISSION_DENIED))
"""Failures that no other node could avoid."""


def key_of(task: TaskOrder | Attempt) -> Key:
    return (task.job, task.task, task.attempt, task.task_key)


@dataclass(slots=True, eq=False)
class Execution:
    order: TaskOrder
    ballot: Ballot
    """The highest under which it was ordered."""
    row: int | None = None
    """In the ledger, until the attempt is delivered or kept."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    turn: trio.Event = field(default_factory=trio.Event)
    """Set when the queue has given it a slot."""
    ticket: Ticket[Execution] | None = None
    updates: list[TaskUpdate] = field(default_factory=list[TaskUpdate])
    entry: SignedEntry | None = None
    """Its attempt, once that is durable."""
    error: DimError | None = None
    """Why there is no attempt to tell of; passes if it can be written down later."""
    rides: bool = False
    """It runs beside another task for the same model and needs no slot of its own."""
    watchers: int = 0
    why: Why = ""
    started: float = 0.0
    """Wall clock when it got its slot."""
    text: PartialText = field(default_factory=lambda: PartialText(MAX_PARTIAL))
    """What its model has said so far."""
    _changed: trio.Event = field(default_factory=trio.Event)

    @property
    def key(self) -> Key:
        return key_of(self.order)

    @property
    def place(self) -> Place:
        return (self.order.job, self.order.task, self.order.attempt)

    def stage(self, stage: Literal["accepted", "fetching", "running"]) -> None:
        self._tell(TaskUpdate(stage=stage))

    def partial(self, piece: TextPiece) -> None:
        if self.text.add(piece):
            self._wake()

    def finish(self, entry: SignedEntry) -> None:
        self.entry, self.error = entry, None
        self._tell(TaskUpdate(stage="finished", entry=entry))

    def fail(self, error: DimError) -> None:
        """The attempt is not written down, or not yet: whoever watches turns elsewhere."""
        self.error = error
        self._wake()

    def cancel(self, why: Why) -> None:
        if self.entry is None and not self.why:
            self.why = why
            self.scope.cancel()

    async def watch(self) -> AsyncGenerator[TaskUpdate]:
        """All updates from the first on, text as far as it has come; the text is whole before the end is told."""
        seen, read = 0, dict[int, int]()
        while True:
            while seen < len(self.updates):
                if self.updates[seen].stage == "finished":
                    for update in self._unread(read):
                        yield update
                seen += 1
                yield self.updates[seen - 1]
            if unread := self._unread(read):
                for update in unread:
                    yield update
                continue
            if self.entry is not None:
                return
            if self.error is not None:
                raise again(self.error)
            await self._changed.wait()

    def _unread(self, read: dict[int, int]) -> list[TaskUpdate]:
        """Pieces beyond what was ``read`` of each row; now they count as read."""
        pieces = self.text.after(read)
        read.update((p.row, p.offset + len(p.text)) for p in pieces)
        return [TaskUpdate(stage="partial", piece=p) for p in pieces]

    def _tell(self, update: TaskUpdate) -> None:
        self.updates.append(update)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def failed_attempt(
    order: TaskOrder, node: str, error: DimError, why: Why = "", *, interrupted: bool = False, shortage: bool = False
) -> Attempt:
    return Attempt(
        job=order.job,
        ballot=order.ballot,
        task=order.task,
        attempt=order.attempt,
        task_key=order.task_key,
        status="cancelled" if why == "cancelled" else "failed",
        error=ErrorInfo(code=error.code.value, message=error.message, hint=error.hint),
        retryable=error.code not in FINAL,
        interrupted=interrupted,
        shortage=shortage,
        node=node,
    )
