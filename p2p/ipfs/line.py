"""Many tasks that want the same kind of thing done: whoever comes first does it for those who come meanwhile, too."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import Generic, TypeVar

import trio


class Ticket:
    """Somebody in the line."""

    __slots__ = ("done", "error", "task")

    def __init__(self) -> None:
        self.task: trio.lowlevel.Task | None = None
        self.done = False
        self.error: BaseException | None = None


T = TypeVar("T", bound=Ticket)


class Line(ABC, Generic[T]):
    """``lanes`` batches at once, of ``most`` tickets. All methods belong to the trio thread.

    A task can be cancelled while it waits. Once its ticket is in a batch, it waits until that is done: what it wanted is done then, and it is
    told so, as by a thread that is waited for; the cancellation comes to it afterwards.
    """

    def __init__(self, *, lanes: int, most: int) -> None:
        self._free = lanes
        self._most = most
        self._waiting: deque[T] = deque()

    @abstractmethod
    async def _ready(self, ticket: T) -> None:
        """What has to be waited for before a batch is taken; may be cancelled, or fail, which harms nobody else."""

    @abstractmethod
    async def _do(self, batch: list[T]) -> None:
        """Not cancelled. Gives the tickets their errors; what it raises is everybody's."""

    def _leave(self, ticket: T) -> None:
        """The batch of a ticket for which `_ready` was called is done, or was not made."""

    async def _go(self, ticket: T) -> None:
        """Returns when the ticket is done; raises its error."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(ticket)
        if not ticket.done:
            await self._lead(ticket)
        if ticket.error is not None:
            raise ticket.error

    async def _wait(self, ticket: T) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            if ticket not in self._waiting:
                return trio.lowlevel.Abort.FAILED
            self._waiting.remove(ticket)
            return trio.lowlevel.Abort.SUCCEEDED

        ticket.task = trio.lowlevel.current_task()
        self._waiting.append(ticket)
        await trio.lowlevel.wait_task_rescheduled(abort)

    async def _lead(self, ticket: T) -> None:
        batch: list[T] = []
        try:
            await trio.lowlevel.checkpoint()  # so that those who are about to come, do
            await self._ready(ticket)
            try:
                batch = [ticket, *(self._waiting.popleft() for _ in range(min(len(self._waiting), self._most - 1)))]
                with trio.CancelScope(shield=True):
                    await self._do(batch)
            except BaseException as error:  # noqa: BLE001 - handed to everybody in the batch
                for each in batch:
                    each.error = error
            finally:
                self._leave(ticket)
        finally:
            for each in batch:
                each.done = True
                if each is not ticket:
                    assert each.task is not None
                    trio.lowlevel.reschedule(each.task)
            self._pass_on()

    def _pass_on(self) -> None:
        """The lane is the next one's, or free."""
        if self._waiting:
            task = self._waiting.popleft().task
            assert task is not None
            trio.lowlevel.reschedule(task)
        else:
            self._free += 1
