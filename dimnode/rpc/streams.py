"""One-way message streams between the asyncio thread and the trio thread, with bounded buffering.

The sender spends a credit for each message and waits when it has none; the receiver gives credits back in
batches of half the buffer, so that a fast stream costs about one wake-up for several messages.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, TypeVar

import trio

T = TypeVar("T")
Post = Callable[..., None]


class _End:
    """What is queued after the last message."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class ToTrio(Generic[T]):
    """Sent from asyncio, received in trio. ``capacity`` counts messages, at least 1."""

    def __init__(self, to_trio: Post, to_asyncio: Post, capacity: int) -> None:
        self._to_trio = to_trio
        self._to_asyncio = to_asyncio
        self._credits = asyncio.Semaphore(capacity)
        self._batch = max(1, capacity // 2)
        self._arrived: deque[Any] = deque()  # bounded by the credits, plus the end mark
        self._reader = trio.lowlevel.ParkingLot()
        self._taken = 0
        self._ended = False

    async def send(self, message: T) -> None:
        """In asyncio. Waits while the buffer is full."""
        await self._credits.acquire()
        self._to_trio(self._arrive, message)

    def finish(self, error: BaseException | None = None) -> None:
        """In asyncio, once, last. With an error the receiver raises it after the messages before it."""
        self._to_trio(self._arrive, _End(error))

    def _arrive(self, message: Any) -> None:
        self._arrived.append(message)
        self._reader.unpark()

    def _grant(self, count: int) -> None:
        for _ in range(count):
            self._credits.release()

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        """In trio."""
        if self._ended:
            raise StopAsyncIteration
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._arrived:
            await self._reader.park()
        message = self._arrived.popleft()
        if isinstance(message, _End):
            self._ended = True
            if message.error is not None:
                raise message.error
            raise StopAsyncIteration
        self._taken += 1
        if self._taken >= self._batch:
            self._to_asyncio(self._grant, self._taken)
            self._taken = 0
        return message


class ToAsyncio(Generic[T]):
    """Sent from trio, received in asyncio. ``capacity`` counts messages, at least 1."""

    def __init__(self, to_trio: Post, to_asyncio: Post, capacity: int) -> None:
        self._to_trio = to_trio
        self._to_asyncio = to_asyncio
        self._credits = trio.Semaphore(capacity)
        self._batch = max(1, capacity // 2)
        self._queue: asyncio.Queue[Any] = asyncio.Queue()  # bounded by the credits
        self._taken = 0
        self._ended = False

    async def send(self, message: T) -> None:
        """In trio. Waits while the buffer is full."""
        await self._credits.acquire()
        self._to_asyncio(self._queue.put_nowait, message)

    def finish(self, error: BaseException | None = None) -> None:
        """In trio, once, last."""
        self._to_asyncio(self._queue.put_nowait, _End(error))

    def refuse(self, error: BaseException) -> None:
        """In asyncio: end the stream without a sender."""
        self._queue.put_nowait(_End(error))

    def _grant(self, count: int) -> None:
        for _ in range(count):
            self._credits.release()

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        """In asyncio."""
        if self._ended:
            raise StopAsyncIteration
        message = await self._queue.get()
        if isinstance(message, _End):
            self._ended = True
            if message.error is not None:
                raise message.error
            raise StopAsyncIteration
        self._taken += 1
        if self._taken >= self._batch:
            self._to_trio(self._grant, self._taken)
            self._taken = 0
        return message
