"""A node that lives and cannot be reached is waited for: that is no attempt, and what runs there is not run again. Virtual time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
import trio
from trio.testing import MockClock

from dimnode.domain.task import TaskOrder, TaskUpdate
from dimnode.errors import Unavailable
from tests.support.orchestrated_jobs import double_model, finished, form, outcome, running
from tests.support.orchestration import FakeNode, FakeSwarm

PINNED = {"pipeline": [{"step": 1, "model_id": "double", "node_id": "a"}]}
AWAY = 60.0
"""Seconds: many times what all the attempts of a task would last."""


class Cut(FakeSwarm):
    """Orders do not reach some nodes, which live on; streams to them break."""

    def __init__(self, nodes: Sequence[FakeNode]) -> None:
        super().__init__(nodes)
        self.cut: set[str] = set()
        self.breaks = 0
        """So many streams break after the task has begun; the node is cut off from then on."""

    async def run_task(self, peer: str, order: TaskOrder) -> AsyncGenerator[TaskUpdate, None]:
        if peer in self.cut:
            await trio.sleep(0.1)
            raise Unavailable("the node cannot be reached")
        async with aclosing(super().run_task(peer, order)) as updates:
            async for update in updates:
                yield update
                if update.stage == "running" and self.breaks:
                    self.breaks -= 1
                    self.cut.add(peer)
                    raise Unavailable("the connection broke")


async def swarm_of(*nodes: FakeNode) -> Cut:
    swarm = Cut(nodes)
    await double_model(swarm)
    return swarm


async def test_a_node_out_of_reach_is_waited_for_and_costs_no_retry(autojump_clock: MockClock) -> None:
    a = FakeNode("a")
    swarm = await swarm_of(a, FakeNode("b"))
    swarm.cut.add(a.peer)
    async with running(swarm) as orchestrator:
        job = (await orchestrator.submit(form(config=PINNED, retries=0), "me")).job_id
        await trio.sleep(AWAY)
        assert (await orchestrator.get(job))["status"] not in ("failed", "completed")
        swarm.cut.clear()
        last = await finished(orchestrator, job)
    assert last["status"] == "completed"
    assert [(t["attempt"], t["status"]) for t in last["tasks"]] == [(1, "completed")]


async def test_a_job_that_expires_meanwhile_says_what_it_waited_for(autojump_clock: MockClock) -> None:
    a = FakeNode("a")
    swarm = await swarm_of(a)
    swarm.cut.add(a.peer)
    async with running(swarm) as orchestrator:
        last = await outcome(orchestrator, form(config=PINNED, timeout=30))
    assert last["status"] == "expired"
    assert "node a, which cannot be reached" in last["error"]["message"]


async def test_another_node_is_taken_at_once_if_there_is_one(autojump_clock: MockClock) -> None:
    a, b = FakeNode("a", price=0.0), FakeNode("b")
    for unreachable, other in ((a, b), (b, a)):
        swarm = await swarm_of(a, b)
        swarm.cut.add(unreachable.peer)
        async with running(swarm) as orchestrator:
            with trio.fail_after(3):
                last = await outcome(orchestrator, form(retries=0))
        assert last["tasks"][-1]["node"] == other.name


async def test_a_running_task_whose_connection_breaks_is_waited_for_and_runs_once(autojump_clock: MockClock) -> None:
    a, b = FakeNode("a", seconds=5.0), FakeNode("b", seconds=5.0)
    swarm = await swarm_of(a, b)
    swarm.breaks = 1
    async with running(swarm) as orchestrator:
        job = (await orchestrator.submit(form(retries=0), "me")).job_id
        await trio.sleep(AWAY)
        assert swarm.cut
        assert (await orchestrator.get(job))["status"] == "running"
        swarm.cut.clear()
        last = await finished(orchestrator, job)
    assert last["status"] == "completed"
    assert len(a.runs) + len(b.runs) == 1


async def test_its_death_lets_the_task_go_elsewhere_and_counts_as_a_failure(autojump_clock: MockClock) -> None:
    for retries, status in ((0, "failed"), (1, "completed")):
        nodes = {name: FakeNode(name, seconds=5.0) for name in ("a", "b")}
        swarm = await swarm_of(*nodes.values())
        swarm.breaks = 1
        async with running(swarm) as orchestrator:
            job = (await orchestrator.submit(form(retries=retries), "me")).job_id
            await trio.sleep(AWAY)
            (first,) = (n for n in nodes.values() if n.runs)
            swarm.kill(first.name)
            assert (await finished(orchestrator, job))["status"] == status


async def test_a_task_that_the_job_can_do_without_waits_less(autojump_clock: MockClock) -> None:
    nodes = [FakeNode(n) for n in "abc"]
    swarm = await swarm_of(*nodes)
    swarm.cut.add(nodes[2].peer)
    config: dict[str, Any] = {
        "model_id": "double",
        "nodes": ["a", "b", "c"],
        "data_source": "ward",
        "min_nodes": 2,
        "aggregation": {"method": "mean"},
    }
    for n in nodes:
        n.cabinets["ward"] = {"x": np.ones((2, 2), np.float32)}
    async with running(swarm) as orchestrator:
        with trio.fail_after(30):
            last = await outcome(orchestrator, form(pattern="collaborative", config=config, client_data=None))
    assert last["status"] == "completed"
