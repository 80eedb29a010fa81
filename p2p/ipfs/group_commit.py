"""Many tasks, one fsync: whoever comes first commits what all others have handed in meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from p2p.ipfs.line import Line, Ticket

T = TypeVar("T")


class _Items(Ticket, Generic[T]):
    __slots__ = ("items",)

    def __init__(self, items: list[T]) -> None:
        super().__init__()
        self.items = items


class GroupCommit(Line[_Items[T]]):
    """``commit(items)`` is called for a batch, and if that fails, for each of those in it by itself: one who asks for too much is not in
    the others' way."""

    def __init__(self, commit: Callable[[list[T]], Awaitable[None]], max_batch: int = 256) -> None:
        super().__init__(lanes=1, most=max_batch)
        self._commit = commit

    async def submit(self, items: list[T]) -> None:
        """Returns once the items are committed; raises what ``commit`` raised for them."""
        await self._go(_Items(items))

    async def _ready(self, ticket: _Items[T]) -> None:
        """Nothing to wait for."""

    async def _do(self, batch: list[_Items[T]]) -> None:
        try:
            await self._commit([item for ticket in batch for item in ticket.items])
        except Exception as error:  # noqa: BLE001 - handed to whom it concerns
            if len(batch) == 1:
                batch[0].error = error
                return
            for ticket in batch:
                await self._do([ticket])
