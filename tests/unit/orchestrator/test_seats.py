"""One job at several seats: accepted once, driven once. On virtual time."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from tests.support.orchestrated_jobs import double_model, form
from tests.support.orchestration import FakeNode, FakeSwarm
from tests.support.several_seats import SeatNode, town


async def test_a_key_sent_to_two_seats_is_one_job_driven_once(autojump_clock: MockClock) -> None:
    worker = FakeNode("n", seconds=5.0)
    swarm = FakeSwarm([worker])
    await double_model(swarm)
    async with town(swarm, ["a", "b"]) as here:
        jobs: list[str] = []

        async def send(node: SeatNode) -> None:
            assert node.orchestrator is not None
            jobs.append((await node.orchestrator.submit(form(idempotency_key="k"), "me")).job_id)

        await send(here.nodes["a"])
        await send(here.nodes["b"])
        assert len(set(jobs)) == 1
        await trio.sleep(60)
        assert [n.table.view(jobs[0]).status for n in here.living()] == ["completed", "completed"]
    assert len(worker.orders) == 1
