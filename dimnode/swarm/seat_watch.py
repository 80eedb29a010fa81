"""What both electors have in common: waiting for seats, and telling that the holders changed."""

from __future__ import annotations

from abc import ABC, abstractmethod

import trio

from dimnode.domain.node import Seat


class SeatWatch(ABC):
    """The waiting half of `dimnode.ports.Elector`. A shell calls `_look` when time passed and `_wake` when its seat changed."""

    def __init__(self) -> None:
        self._changed = trio.Event()
        self._holders: frozenset[tuple[int, str, str]] = frozenset()
        self._version = 0

    @abstractmethod
    def seats(self) -> tuple[Seat, ...]: ...

    @abstractmethod
    def mine(self) -> Seat | None: ...

    async def wait_seat(self) -> Seat:
        await trio.lowlevel.checkpoint()
        while (seat := self.mine()) is None:
            await self._changed.wait()
        return seat

    async def wait_lost(self, seat: Seat) -> None:
        await trio.lowlevel.checkpoint()
        while (mine := self.mine()) is not None and (mine.seat, mine.n) == (seat.seat, seat.n):
            await self._changed.wait()

    def changed(self) -> int:
        return self._version

    async def wait_changed(self, since: int) -> int:
        await trio.lowlevel.checkpoint()
        while self._version <= since:
            await self._changed.wait()
        return self._version

    def _look(self) -> None:
        """Whether the holders that this node sees are others than before."""
        holders = frozenset((s.seat, s.peer, s.boot) for s in self.seats())
        if holders != self._holders:
            self._holders = holders
            self._version += 1
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
