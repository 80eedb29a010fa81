"""Journal writes that share a transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from dimnode.errors import DimError


async def together(*calls: Callable[[], Awaitable[object]]) -> None:
    """Runs all of them side by side: journal writes that wait at the same time share one commit. Each runs to its
    end; then the first `DimError` is raised, if there was one."""
    errors: list[DimError] = []

    async def one(call: Callable[[], Awaitable[object]]) -> None:
        try:
            await call()
        except DimError as e:
            errors.append(e)

    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(one, call)
    if errors:
        raise errors[0]
