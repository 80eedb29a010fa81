"""Nodes that have no room for a task when it comes to that: it goes elsewhere or waits, and nothing of its retries is used up; on virtual time."""

from __future__ import annotations

from typing import Any

import trio
from trio.testing import MockClock

from dimnode.domain.record import Attempt
from dimnode.errors import DimError
from dimnode.state.memory_journal import MemoryJournal
from tests.support.orchestrated_jobs import double_model, finished, form, outcome, running
from tests.support.orchestration import FakeNode, FakeSwarm, failing


def full() -> DimError:
    """What a node says in a signed attempt that had no room."""
    e = failing("not enough free memory", code="RESOURCE_EXHAUSTED")
    e.shortage = True  # type: ignore[attr-defined]
    return e


def short(name: str, times: int, **more: Any) -> FakeNode:
    left = iter(range(times))

    async def behave(order: Any) -> None:
        if next(left, None) is not None:
            raise full()

    return FakeNode(name, behave=behave, **more)


async def test_a_task_that_found_no_room_is_tried_again_without_using_a_retry(autojump_clock: MockClock) -> None:
    node = short("a", 5)
    swarm = FakeSwarm([node])
    await double_model(swarm)
    async with running(swarm, retries=0) as orchestrator:
        last = await outcome(orchestrator, form())
    assert last["status"] == "completed", last["error"]
    assert [o.attempt for o in node.orders] == [1, 2, 3, 4, 5, 6]


async def test_it_goes_to_another_node_first(autojump_clock: MockClock) -> None:
    cheap, dear = short("a", 100, price=0.1), FakeNode("b", price=5.0)
    swarm = FakeSwarm([cheap, dear])
    await double_model(swarm)
    async with running(swarm, retries=0) as orchestrator:
        last = await outcome(orchestrator, form())
    assert last["status"] == "completed", last["error"]
    assert (len(cheap.orders), len(dear.orders)) == (1, 1)


async def test_who_waits_is_told_why_and_after_so_many_times_it_is_a_failure(autojump_clock: MockClock) -> None:
    node = short("a", 10_000)
    swarm = FakeSwarm([node])
    await double_model(swarm)
    async with running(swarm, retries=1, shortages=7) as orchestrator:
        accepted = await orchestrator.submit(form(), "me")
        await trio.sleep(2)
        shown = (await orchestrator.get(accepted.job_id))["tasks"]
        assert {t["error"]["message"] for t in shown if t["status"] == "failed"} == {"not enough free memory"}
        last = await finished(orchestrator, accepted.job_id)
    assert last["status"] == "failed"
    assert "no node had room for task" in last["error"]["message"]
    assert "not enough free memory" in last["error"]["message"]
    assert len(node.orders) == 7 + 2, "the bound, then one try and one retry"


async def test_a_job_whose_time_is_up_says_what_it_waited_for(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([short("a", 10_000)])
    await double_model(swarm)
    async with running(swarm) as orchestrator:
        last = await outcome(orchestrator, form(timeout=10))
    assert last["error"]["code"] == "DEADLINE_EXCEEDED"
    assert "node a, which has no room for it now (not enough free memory)" in last["error"]["message"]


async def test_the_next_owner_counts_on(autojump_clock: MockClock) -> None:
    node = short("a", 10_000)
    swarm = FakeSwarm([node])
    await double_model(swarm)
    journal = MemoryJournal()
    async with running(swarm, journal, retries=0, shortages=6) as first:
        job = (await first.submit(form(), "me")).job_id
        await trio.sleep(2)
    assert 1 < len(node.orders) < 6
    async with running(swarm, journal, retries=0, shortages=6) as second:
        assert (await finished(second, job))["status"] == "failed"
    attempts = [b for e in await journal.load(job) if isinstance(b := e.body(), Attempt)]
    assert len(attempts) == 7
    assert all(a.shortage for a in attempts)
