"""One task on its way through the daemon, and those who watch it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Literal

import trio

from dimnode.daemon.job_queue import Ticket
from dimnode.domain.record import Attempt, ErrorInfo, SignedEntry
from dimnode.domain.task import TaskOrder, TaskUpdate
from dimnode.errors import Code, DimError

Why = Literal["", "cancelled", "stopping"]
Key = tuple[str, str, int]
FINAL = frozenset((Code.INVALID_ARGUMENT, Code.PERMISSION_DENIED))
"""Failures that no other node could avoid."""


@dataclass(slots=True, eq=False)
class Execution:
    order: TaskOrder
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    turn: trio.Event = field(default_factory=trio.Event)
    """Set when the queue has given it a slot."""
    ticket: Ticket[Execution] | None = None
    updates: list[TaskUpdate] = field(default_factory=list[TaskUpdate])
    finished: bool = False
    error: DimError | None = None
    watchers: int = 0
    why: Why = ""
    started: float = 0.0
    """Wall clock when it got its slot."""
    _changed: trio.Event = field(default_factory=trio.Event)

    @property
    def key(self) -> Key:
        return (self.order.job, self.order.task, self.order.attempt)

    def stage(self, stage: Literal["accepted", "fetching", "running"]) -> None:
        self._tell(TaskUpdate(stage=stage))

    def finish(self, entry: SignedEntry) -> None:
        self.finished = True
        self._tell(TaskUpdate(stage="finished", entry=entry))

    def fail(self, error: DimError) -> None:
        """The attempt could not even be written down."""
        self.finished, self.error = True, error
        self._wake()

    def cancel(self, why: Why) -> None:
        if not self.finished and not self.why:
            self.why = why
            self.scope.cancel()

    async def watch(self) -> AsyncGenerator[TaskUpdate]:
        """All updates from the first on. The last watcher that leaves early cancels the task."""
        self.watchers += 1
        seen = 0
        try:
            while True:
                while seen < len(self.updates):
                    seen += 1
                    yield self.updates[seen - 1]
                if self.error is not None:
                    raise self.error
                if self.finished:
                    return
                await self._changed.wait()
        finally:
            self.watchers -= 1
            if not self.watchers:
                self.cancel("cancelled")

    def _tell(self, update: TaskUpdate) -> None:
        self.updates.append(update)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def failed_attempt(order: TaskOrder, node: str, error: DimError, why: Why = "") -> Attempt:
    return Attempt(
        job=order.job,
        ballot=order.ballot,
        task=order.task,
        attempt=order.attempt,
        task_key=order.task_key,
        status="cancelled" if why == "cancelled" else "failed",
        error=ErrorInfo(code=error.code.value, message=error.message, hint=error.hint),
        retryable=error.code not in FINAL,
        node=node,
    )
