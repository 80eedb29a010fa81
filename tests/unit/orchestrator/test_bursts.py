"""Bursts of new jobs: accepted first, driven without haste, but driven."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.support.garbage import left_to_the_collector
from tests.support.orchestrated_jobs import double_model, form, running
from tests.support.orchestration import FakeNode, FakeSwarm


async def begun(jobs: int, after: float, **settings: Any) -> int:
    """How many of so many jobs, submitted at once, have a task this many seconds later."""
    orders: list[str] = []

    async def note(task: Any) -> None:
        orders.append(task.job)

    swarm = FakeSwarm([FakeNode("a", behave=note)])
    await double_model(swarm)
    async with running(swarm, **settings) as orchestrator:
        await orchestrator.submit_many([form() for _ in range(jobs)], "me")
        await trio.sleep(after)
        return len(orders)


@pytest.mark.parametrize(
    ("jobs", "settings", "least", "most"),
    [
        (3, {}, 3, 3),
        (40, {}, 2, 5),
        (40, {"burst_stock": 10}, 30, 33),
    ],
)
async def test_jobs_of_a_burst_are_begun_one_by_one_unless_many_wait(
    autojump_clock: MockClock, jobs: int, settings: dict[str, Any], least: int, most: int
) -> None:
    assert least <= await begun(jobs, 0.6, **settings) <= most


async def test_after_the_burst_all_are_driven(autojump_clock: MockClock) -> None:
    assert await begun(40, 2.5) == 40


async def test_a_burst_that_does_not_end_holds_no_job_for_ever(autojump_clock: MockClock) -> None:
    orders: list[str] = []

    async def note(task: Any) -> None:
        orders.append(task.job)

    swarm = FakeSwarm([FakeNode("a", behave=note)])
    await double_model(swarm)
    async with running(swarm) as orchestrator:
        accepted = await orchestrator.submit_many([form() for _ in range(8)], "me")
        for _ in range(30):
            await orchestrator.submit_many([form() for _ in range(8)], "me")
            await trio.sleep(0.1)
        assert {a.job_id for a in accepted} <= set(orders)  # type: ignore[union-attr]


async def test_what_ended_jobs_leave_needs_no_garbage_collection(autojump_clock: MockClock) -> None:
    """Collections of what thousands of jobs left held a node's loop up for 0.1 s and more."""
    swarm = FakeSwarm([FakeNode("a")])
    await double_model(swarm)
    async with running(swarm) as orchestrator:
        with left_to_the_collector() as garbage:
            for accepted in await orchestrator.submit_many([form() for _ in range(10)], "me"):
                assert (await orchestrator.result(accepted.job_id, wait=60))["job_id"] == accepted.job_id  # type: ignore[union-attr]
            del accepted
            await trio.sleep(10)
        assert garbage == {}
