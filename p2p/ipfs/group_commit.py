"""Many tasks, one fsync: whoever comes first commits what all others have handed in meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class _Ticket(Generic[T]):
    def __init__(self, items: list[T]) -> None:
        self.items = items
        self.done = False
        self.error: BaseException | None = None


class GroupCommit(Generic[T]):
    """``commit(items)`` must not be cancellable half way (a thread that is waited for is not)."""

    def __init__(self, commit: Callable[[list[T]], Awaitable[None]], max_batch: int = 256) -> None:
        self._commit = commit
        self._max_batch = max_batch
        self._pending: list[_Ticket[T]] = []
        self._lock = trio.Lock()

    async def submit(self, items: list[T]) -> None:
        """Returns once the items are committed; raises what ``commit`` raised for their batch.
        Cancelled while it waits, the items may or may not be committed."""
        ticket = _Ticket(items)
        self._pending.append(ticket)
        try:
            async with self._lock:
                if not ticket.done:
                    await self._run()
        finally:
            if not ticket.done and ticket in self._pending:
                self._pending.remove(ticket)
        if ticket.error is not None:
            raise ticket.error

    async def _run(self) -> None:
        batch, self._pending = self._pending[: self._max_batch], self._pending[self._max_batch :]
        # Tickets are served in the order of the lock, so the caller's own one is always in this batch.
        try:
            await self._commit([item for ticket in batch for item in ticket.items])
        except Exception as error:  # noqa: BLE001 - handed to every waiting caller, none is swallowed
            for ticket in batch:
                ticket.error = error
                ticket.done = True
        except BaseException:
            # Cancelled before anything was handed over: the others try again by themselves.
            self._pending = [ticket for ticket in batch if not ticket.done] + self._pending
            raise
        for ticket in batch:
            ticket.done = True
