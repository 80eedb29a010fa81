"""Where the tasks of one job go, and what an orchestrator that has just come up must not take for a failure."""

from __future__ import annotations

from typing import Any

import trio
from trio.testing import MockClock

from dimnode.errors import PermissionDenied
from dimnode.state.memory_journal import MemoryJournal
from tests.support.orchestrated_jobs import double_model, finished, form, outcome, running
from tests.support.orchestration import FakeNode, FakeSwarm


async def test_a_job_taken_up_before_its_nodes_are_seen_again_waits_for_them(autojump_clock: MockClock) -> None:
    """A node that restarts knows nobody for a moment: what was accepted must not fail for that."""
    a, b = FakeNode("a"), FakeNode("b", seconds=60)
    swarm = FakeSwarm([a, b])
    await double_model(swarm)
    journal = MemoryJournal()
    config = {"pipeline": [{"step": 1, "model_id": "double", "node_id": "b"}]}
    async with running(swarm, journal) as orchestrator:
        accepted = await orchestrator.submit(form(config=config), "me")
    del swarm.by_peer[b.peer]
    refs, swarm.refs = swarm.refs, []
    swarm.touch()
    async with running(swarm, journal) as orchestrator:
        await trio.sleep(5)
        assert (await orchestrator.get(accepted.job_id))["status"] == "scheduling"
        swarm.refs = refs
        swarm.touch()
        await trio.sleep(5)
        assert (await orchestrator.get(accepted.job_id))["status"] == "scheduling"
        b.seconds = 0.01
        swarm.by_peer[b.peer] = b
        swarm.touch()
        last = await finished(orchestrator, accepted.job_id)
    assert last["status"] == "completed", last["error"]


async def test_a_node_that_does_not_know_of_the_seat_yet_is_asked_again_and_others_first(autojump_clock: MockClock) -> None:
    ignorant = True

    async def behave(_: Any) -> None:
        if ignorant:
            raise PermissionDenied("this node takes tasks only from nodes that hold a seat")

    a, b = FakeNode("a", price=0.5, behave=behave), FakeNode("b")
    swarm = FakeSwarm([a, b])
    await double_model(swarm)
    async with running(swarm) as orchestrator:
        last = await outcome(orchestrator, form(retries=0))
        assert [t["node"] for t in last["tasks"]] == ["a", "b"]
        config = {"pipeline": [{"step": 1, "model_id": "double", "node_id": "a"}]}
        accepted = await orchestrator.submit(form(config=config, retries=0), "me")
        await trio.sleep(2)
        ignorant = False
        assert (await finished(orchestrator, accepted.job_id))["status"] == "completed"


async def test_the_shards_of_a_job_go_to_different_nodes_though_one_ranks_higher(autojump_clock: MockClock) -> None:
    nodes = [FakeNode("a", price=0.1, slots=100), FakeNode("b", slots=1), FakeNode("c", slots=1)]
    swarm = FakeSwarm(nodes)
    await double_model(swarm)
    async with running(swarm) as orchestrator:
        config = {"model_id": "double", "aggregation": {"method": "concat"}}
        assert (await outcome(orchestrator, form(pattern="collaborative", config=config)))["status"] == "completed"
    assert [len(n.orders) for n in nodes] == [1, 1, 1]


async def test_jobs_begun_at_the_same_time_count_towards_the_load_before_their_assignments_are_durable(autojump_clock: MockClock) -> None:
    """Else all of them see the same idle node, and the others get none."""
    nodes = [FakeNode(name, price=price, seconds=60) for name, price in (("a", 0.9), ("b", 1.0), ("c", 1.0))]
    swarm = FakeSwarm(nodes)
    await double_model(swarm)
    async with running(swarm, MemoryJournal(sync=0.2), burst_stock=0) as orchestrator:
        await orchestrator.submit_many([form() for _ in range(12)], "me")
        await trio.sleep(30)
        assert [len(n.runs) for n in nodes] == [4, 4, 4]
