"""An orchestrator whose node comes late begins no further jobs until it keeps up."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from tests.support.orchestrated_jobs import double_model, form, running
from tests.support.orchestration import FakeNode, FakeSwarm


async def test_a_late_node_finishes_what_it_has_before_it_begins_more(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("n", seconds=20.0, slots=1000)])
    await double_model(swarm)
    async with running(swarm) as orchestrator, trio.open_nursery() as nursery:
        busy = trio.Event()

        async def work() -> None:
            while not busy.is_set():
                await trio.sleep(0.04)
                autojump_clock.jump(0.3)  # so long nothing else ran

        nursery.start_soon(work)
        await trio.sleep(1.0)
        await orchestrator.submit_many([form(labels={"n": str(n)}) for n in range(60)], "me")
        await trio.sleep(3.0)
        least = orchestrator._pace.settings.least
        assert least <= orchestrator.statistics()["driven"] <= least + 8
        assert orchestrator.statistics()["late_ms"] >= 100
        busy.set()
        await trio.sleep(5.0)
        assert orchestrator.statistics()["driven"] == 60


async def test_jobs_that_only_wait_keep_no_other_from_being_begun(autojump_clock: MockClock) -> None:
    node = FakeNode("n", seconds=20.0, slots=1000)
    swarm = FakeSwarm([node, FakeNode("away")])
    await double_model(swarm)
    async with running(swarm) as orchestrator, trio.open_nursery() as nursery:

        async def work() -> None:
            while True:
                await trio.sleep(0.04)
                autojump_clock.jump(0.3)

        away = [form(labels={"n": str(n)}, config={"pipeline": [{"step": 1, "model_id": "double", "node_id": "away"}]}) for n in range(20)]
        await orchestrator.submit_many(away, "me")
        swarm.kill("away")
        await trio.sleep(15.0)
        assert orchestrator.statistics()["driven"] == 20
        nursery.start_soon(work)
        await trio.sleep(1.0)
        mine = await orchestrator.submit_many([form(priority="critical", labels={"n": f"c{n}"}) for n in range(4)], "me")
        await trio.sleep(60.0)
        for accepted in mine:
            assert (await orchestrator.get(accepted.job_id))["status"] in ("running", "completed")  # type: ignore[union-attr]
        nursery.cancel_scope.cancel()
