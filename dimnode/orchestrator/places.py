"""So many jobs are driven at once. One that can do nothing but wait for the swarm lends its place to others."""

from __future__ import annotations

import trio


class Places:
    def __init__(self, most: int) -> None:
        self._free = trio.Semaphore(most)
        self.lent = 0
        """Jobs that wait without a place."""

    async def take(self) -> Place:
        await self._free.acquire()
        return Place(self, self._free)


class Place:
    """Of one job, from `Places.take` until `close`."""

    __slots__ = ("_free", "_held", "_places", "_retaking")

    def __init__(self, places: Places, free: trio.Semaphore) -> None:
        self._places = places
        self._free = free
        self._held = True
        self._retaking = trio.Lock()

    @property
    def held(self) -> bool:
        return self._held

    @property
    def lent(self) -> int:
        """How many jobs wait without a place."""
        return self._places.lent

    def lend(self) -> None:
        """Until `retake` somebody else may have it. More than once is once."""
        if self._held:
            self._held = False
            self._places.lent += 1
            self._free.release()

    async def retake(self) -> None:
        if self._held:
            return
        async with self._retaking:
            if not self._held:
                await self._free.acquire()
                self._held = True
                self._places.lent -= 1

    def close(self) -> None:
        if self._held:
            self._free.release()
        else:
            self._places.lent -= 1
