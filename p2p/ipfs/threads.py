"""Short blocking calls in threads: those that come while threads are busy go to the next one together.

Handing a call to a thread and its result back costs a quarter of a millisecond of processor time on a small machine, more than most of
what the store asks of a disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import trio

from p2p.ipfs.line import Line, Ticket

T = TypeVar("T")


class _Call(Ticket, Generic[T]):
    """A call that somebody waits for."""

    __slots__ = ("_call", "value")

    def __init__(self, call: Callable[[], T]) -> None:
        super().__init__()
        self._call = call
        self.value: T | None = None

    def make(self) -> None:
        try:
            self.value = self._call()
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            self.error = error


class Together(Line[_Call[Any]]):
    """``lanes`` threads at once, ``most`` calls in one go. A caller waits for all that went with its own: so this is for calls that
    take about as long as each other, and none for long."""

    def __init__(self, limiter: trio.CapacityLimiter, *, lanes: int, most: int) -> None:
        super().__init__(lanes=lanes, most=most)
        self._limiter = limiter
        self._unlimited = trio.CapacityLimiter(math.inf)

    async def run(self, call: Callable[[], T]) -> T:
        """What ``call`` returns or raises."""
        ticket = _Call(call)
        await self._go(ticket)
        return cast(T, ticket.value)

    async def _ready(self, ticket: _Call[Any]) -> None:
        await self._limiter.acquire_on_behalf_of(ticket)

    def _leave(self, ticket: _Call[Any]) -> None:
        self._limiter.release_on_behalf_of(ticket)

    async def _do(self, batch: list[_Call[Any]]) -> None:
        await trio.to_thread.run_sync(_make_all, batch, limiter=self._unlimited)


def _make_all(calls: list[_Call[Any]]) -> None:
    for each in calls:
        each.make()
