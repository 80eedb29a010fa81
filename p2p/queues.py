"""Bounded queues whose oldest item gives way: for hints, of which the newest matter most."""

from __future__ import annotations

from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class DropOldest(Generic[T]):
    """A trio channel that never makes the sender wait. ``dropped`` counts what gave way."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("capacity must be at least 1")
        self._send, self._receive = trio.open_memory_channel[T](capacity)
        self.dropped = 0

    def reader(self) -> trio.MemoryReceiveChannel[T]:
        """The reader's end; closing it (and its clones) ends the interest."""
        return self._receive.clone()

    def put(self, item: T) -> bool:
        """False once every reader has closed."""
        if self.abandoned:
            return False
        try:
            self._send.send_nowait(item)
        except trio.WouldBlock:
            self._receive.receive_nowait()
            self.dropped += 1
            self._send.send_nowait(item)
        return True

    @property
    def abandoned(self) -> bool:
        """Whether only the own end, which evicts, is left."""
        return self._send.statistics().open_receive_channels <= 1

    def close(self) -> None:
        """Readers get what is queued, then the end of the channel."""
        self._send.close()
        self._receive.close()
