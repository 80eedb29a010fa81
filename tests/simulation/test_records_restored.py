"""Copies that were lost with a node are made anew soon, in a large swarm, too; nothing else is moved."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio
from trio.testing import MockClock

from dimnode.core.records_sync import heirs
from dimnode.records.anti_entropy import AntiEntropySettings
from tests.support import entries as e
from tests.support.record_nodes import RecordSwarm, holders, record_swarm, until

RECORDS = {
    job: [e.core(job), e.claim(1, "p0", job=job), e.outcome(1, "completed", "p0", job=job)] for job in (f"job-{i}" for i in range(30))
}
"""Of jobs that p0 drove, and that have ended."""
RARE = AntiEntropySettings(interval=10.0)
"""To meet everybody takes ten minutes in a swarm of sixty."""


@asynccontextmanager
async def walked(nodes: int, *parts: str) -> AsyncGenerator[RecordSwarm]:
    """After the walk that there is in any case after a start."""
    async with record_swarm([f"p{i}" for i in range(nodes)], *parts, anti_entropy=RARE) as swarm:
        await trio.sleep(40)
        yield swarm


async def test_in_a_large_swarm_the_last_copy_does_not_wait_until_everybody_has_been_met(autojump_clock: MockClock) -> None:
    async with walked(60, "anti_entropy", "restoration") as swarm:
        nodes = swarm.nodes
        for job, record in RECORDS.items():
            for peer in ("p0", "p1"):
                await nodes[peer].table.merge(job, record)
        swarm.crash("p0")
        crashed = trio.current_time()

        async def inherited() -> bool:
            found = [await holders(nodes, job, RECORDS[job]) for job in RECORDS]
            return all(set(heirs(job, nodes, 1)) <= has for job, has in zip(RECORDS, found, strict=True))

        await until(inherited, 60)
        assert trio.current_time() - crashed > 29, "it might have come back"
        assert nodes["p1"].restoration.statistics()["looked_at"] >= len(RECORDS)


async def test_in_a_large_swarm_a_copy_lost_long_after_the_end_is_made_anew_by_the_owner(autojump_clock: MockClock) -> None:
    """The owner is there, and does not know any more who had it."""
    async with walked(60, "anti_entropy", "restoration") as swarm:
        nodes = swarm.nodes
        for job, record in RECORDS.items():
            nodes["p0"].chosen[job] = ("p2",)
            for peer in ("p0", "p1"):
                await nodes[peer].table.merge(job, record)
        swarm.crash("p1")
        crashed = trio.current_time()

        async def anew() -> bool:
            return all([{"p0", "p2"} <= await holders(nodes, job, RECORDS[job]) for job in RECORDS])

        await until(anew, 60)
        assert trio.current_time() - crashed > 29, "it might have come back"


async def test_after_a_loss_only_what_was_lost_is_made_anew(autojump_clock: MockClock) -> None:
    """Of jobs that ended so long ago that the owner has them on its disk only. The others stay where they are."""
    async with walked(12, "restoration") as swarm:
        nodes = swarm.nodes
        for job, record in RECORDS.items():
            nodes["p0"].chosen[job] = ("p1",)
            for peer in ("p0", "p1"):
                await nodes[peer].journal.append(record)

        async def on(*peers: str) -> bool:
            found = [{p for p, n in nodes.items() if await n.journal.load(job)} for job in RECORDS]
            return found == [set(peers)] * len(RECORDS)

        swarm.crash("p5")  # which had none of them
        await trio.sleep(80)
        assert nodes["p0"].restoration.statistics()["looked_at"] >= len(RECORDS)
        assert await on("p0", "p1")
        for job in RECORDS:
            nodes["p0"].chosen[job] = ("p2",)
        swarm.crash("p1")
        await until(lambda: on("p0", "p2"), 80)
