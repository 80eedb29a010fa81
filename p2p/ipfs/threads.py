"""Short blocking calls in threads: those that come while threads are busy go to the next one together.

Handing a call to a thread and its result back costs a quarter of a millisecond of processor time on a small machine, more than most of
what the store asks of a disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import trio

T = TypeVar("T")


class _Ticket(Generic[T]):
    """A call that somebody waits for."""

    __slots__ = ("_call", "_error", "_value", "leads", "woken")

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._value: T | None = None
        self._error: Exception | None = None
        self.leads = False
        """It takes the next batch to a thread."""
        self.woken = trio.Event()

    def make(self) -> None:
        try:
            self._value = self._call()
        except Exception as error:  # noqa: BLE001 - handed to the caller
            self._error = error

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # it was made


class Together:
    """``lanes`` threads at once, ``most`` calls in one go. A caller waits for all that went with its own: so this is for calls that
    take about as long as each other, and none for long. All methods belong to the trio thread."""

    def __init__(self, limiter: trio.CapacityLimiter, *, lanes: int, most: int) -> None:
        self._limiter = limiter
        self._most = most
        self._free = lanes
        self._waiting: deque[_Ticket[Any]] = deque()

    async def run(self, call: Callable[[], T]) -> T:
        """What ``call`` returns or raises. Cancelled while it waits, the call may or may not be made."""
        ticket = _Ticket(call)
        if self._free:
            self._free -= 1
            await self._lead(ticket)
        else:
            await self._follow(ticket)
        return ticket.result()

    async def _follow(self, ticket: _Ticket[Any]) -> None:
        self._waiting.append(ticket)
        try:
            await ticket.woken.wait()
        except trio.Cancelled:
            if ticket.leads:
                self._pass_on()
            elif ticket in self._waiting:
                self._waiting.remove(ticket)
            raise
        if ticket.leads:
            await self._lead(ticket)

    async def _lead(self, ticket: _Ticket[Any]) -> None:
        try:
            await trio.lowlevel.checkpoint()  # so that those who are about to call, do
            batch = [ticket, *(self._waiting.popleft() for _ in range(min(len(self._waiting), self._most - 1)))]
            await trio.to_thread.run_sync(_make_all, batch, limiter=self._limiter)
            for each in batch:
                each.woken.set()
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        """The lane is the next one's, or free."""
        if self._waiting:
            following = self._waiting.popleft()
            following.leads = True
            following.woken.set()
        else:
            self._free += 1


def _make_all(tickets: list[_Ticket[Any]]) -> None:
    for ticket in tickets:
        ticket.make()
