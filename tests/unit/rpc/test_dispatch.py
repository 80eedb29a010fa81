"""A call's trio side: what it tells of failures and cancellations."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from dimnode.errors import Cancelled, Code, DeadlineExceeded, DimError, NotFound
from dimnode.rpc.dispatch import Dispatcher, _Job


class Desk:
    """`Dispatcher`, as far as a call that runs already needs it."""

    def left(self, job: Any) -> None:
        assert job


async def end_of(work: Any, cancel_with: DimError | None = None, *, cancelled: bool = False) -> DimError | None:
    ends: list[tuple[Any, DimError | None]] = []
    desk: Dispatcher = Desk()  # type: ignore[assignment]
    job = _Job(desk, "Method", work, lambda value, error: ends.append((value, error)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(job.run)
        await trio.testing.wait_all_tasks_blocked()
        if cancelled:
            job.cancel(cancel_with)
    ((_, error),) = ends
    return error


async def fails_while_it_is_cancelled() -> None:
    """As a question to another node whose connection breaks just then."""

    async def breaks() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise OSError("the connection broke")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(breaks)
        await trio.sleep_forever()


async def test_a_call_that_fails_in_the_moment_of_its_cancellation_was_cancelled(capsys: pytest.CaptureFixture[str]):
    assert isinstance(await end_of(fails_while_it_is_cancelled, cancelled=True), Cancelled)
    assert "a handler failed" not in capsys.readouterr().out


async def test_the_reason_of_a_cancellation_is_told():
    late = DeadlineExceeded("too late")
    assert await end_of(fails_while_it_is_cancelled, late, cancelled=True) is late
    assert await end_of(trio.sleep_forever, late, cancelled=True) is late


async def test_a_failure_of_its_own_is_told():
    async def lacks() -> None:
        raise NotFound("no such job")

    async def breaks() -> None:
        raise OSError("a bug")

    assert isinstance(await end_of(lacks), NotFound)
    told = await end_of(breaks)
    assert told is not None
    assert told.code is Code.INTERNAL
