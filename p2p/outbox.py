"""What is waiting to be written to one stream: bounded, in order, many writers, one sender."""

from __future__ import annotations

from collections import deque

import trio

BATCH = 64 * 1024


class Closed(Exception):
    """The stream behind the outbox is gone."""


class Outbox:
    """Writers hand over whole frames; being cancelled never leaves half a frame."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._filled = trio.Event()
        self._room = trio.Event()
        self._closed = False

    async def put(self, frame: bytes) -> None:
        """Waits while ``limit`` bytes are queued. Raises `Closed`."""
        while not self._closed and self._bytes >= self._limit:
            await self._room.wait()
        self.put_nowait(frame)

    def put_nowait(self, frame: bytes) -> None:
        """Beyond the limit: for a cancellation or a refusal, of which each request causes one at the most."""
        if self._closed:
            raise Closed
        self._frames.append(frame)
        self._bytes += len(frame)
        self._filled.set()

    async def take(self) -> bytes:
        """The next frames, joined up to about 64 KiB: one write costs more than the bytes in it."""
        while not self._frames:
            if self._closed:
                raise Closed
            self._filled = trio.Event()
            await self._filled.wait()
        batch = [self._frames.popleft()]
        size = len(batch[0])
        while self._frames and size + len(self._frames[0]) <= BATCH:
            batch.append(self._frames.popleft())
            size += len(batch[-1])
        self._bytes -= size
        self._room.set()
        self._room = trio.Event()
        return b"".join(batch)

    def close(self) -> None:
        """Everything that waits gets `Closed`; what is queued is discarded."""
        self._closed = True
        self._frames.clear()
        self._filled.set()
        self._room.set()
