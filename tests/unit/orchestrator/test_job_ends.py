"""How jobs end: results and their copies, cancelling and time limits, on virtual time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from dimnode.domain.record import OutcomeEntry
from dimnode.errors import FailedPrecondition, NotReady
from dimnode.orchestrator import Orchestrator
from dimnode.ports import Copied, Written
from dimnode.records.no_copies import NoCopies
from dimnode.records.table import RecordTable
from dimnode.state.memory_journal import MemoryJournal
from tests.support.orchestrated_jobs import double_model, form, outcome, running
from tests.support.orchestration import FakeNode, FakeSwarm, identity


class Copies(NoCopies):
    """Takes ``seconds`` to get a result's blocks, and takes down which it had when the end of a job came."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.blocks: set[str] = set()
        self.before_the_end: set[str] = set()

    async def write(self, jobs: Sequence[Written], *, wanted: int | None = None) -> list[Copied]:
        for w in jobs:
            if any(isinstance(e.body(), OutcomeEntry) for e in w.entries):
                self.before_the_end = set(self.blocks)
            if w.blocks and not w.new:
                await trio.sleep(self.seconds)
                self.blocks.update(w.blocks)
        return await super().write(jobs, wanted=wanted)


@asynccontextmanager
async def with_a_large_result(copies: Copies, journal: MemoryJournal) -> AsyncGenerator[Orchestrator]:
    swarm = FakeSwarm([FakeNode("a")])
    await double_model(swarm)
    table = RecordTable(journal, identity("orchestrator"), copies)
    async with running(swarm, table=table, inline_bytes=8, inline_result_bytes=8) as orchestrator:
        yield orchestrator


LARGE = {"pattern": "collaborative", "config": {"model_id": "double", "aggregation": {"method": "concat"}}}


async def test_the_copies_get_a_results_blocks_before_the_end_is_shown(autojump_clock: MockClock) -> None:
    copies = Copies(5.0)
    async with with_a_large_result(copies, MemoryJournal()) as orchestrator:
        document = await outcome(orchestrator, form(**LARGE))
        result = await orchestrator.result(document["job_id"])
    assert result["outputs"]["y"].cid
    assert copies.before_the_end == {result["result_cid"], result["outputs"]["y"].cid}


async def test_a_stop_does_not_wait_for_a_copy_that_is_slow_to_fetch_a_result(autojump_clock: MockClock) -> None:
    journal = MemoryJournal()
    async with with_a_large_result(Copies(9.0), journal) as orchestrator:
        accepted = await orchestrator.submit(form(**LARGE), "me")
        await trio.sleep(3)
        assert (await orchestrator.get(accepted.job_id))["status"] == "aggregating"
        stopped = trio.current_time()
    assert trio.current_time() - stopped < 0.1
    assert list(await journal.unfinished()) == [accepted.job_id], "it is the next owner's"


async def test_a_cancel_does_not_wait_for_a_copy_that_is_slow_to_fetch_a_result(autojump_clock: MockClock) -> None:
    async with with_a_large_result(Copies(9.0), MemoryJournal()) as orchestrator:
        accepted = await orchestrator.submit(form(**LARGE), "me")
        await trio.sleep(3)
        asked = trio.current_time()
        assert (await orchestrator.cancel(accepted.job_id))["status"] == "cancelled"
        assert trio.current_time() - asked < 0.1


async def test_a_job_whose_result_is_there_in_time_is_not_too_late_for_a_slow_copy(autojump_clock: MockClock) -> None:
    async with with_a_large_result(Copies(9.0), MemoryJournal()) as orchestrator:
        began = trio.current_time()
        document = await outcome(orchestrator, form(**LARGE, timeout=4))
        assert document["status"] == "completed", document["error"]
        assert trio.current_time() - began < 5, "copies are not waited for any longer then"


async def test_cancelling_is_durable_tells_the_node_and_never_turns_into_completed(autojump_clock: MockClock) -> None:
    async def hang(order: Any) -> None:
        await trio.sleep(100)

    a = FakeNode("a", behave=hang)
    swarm = FakeSwarm([a])
    await double_model(swarm)
    journal = MemoryJournal()
    async with running(swarm, journal) as orchestrator:
        accepted = await orchestrator.submit(form(), "me")
        await trio.sleep(1)
        assert (await orchestrator.cancel(accepted.job_id))["status"] == "cancelled"
        assert a.cancelled == ["step-1"]  # by the time of the answer: this node may die after it
        await trio.sleep(200)
        assert (await orchestrator.get(accepted.job_id))["status"] == "cancelled"
        assert (await orchestrator.cancel(accepted.job_id))["status"] == "cancelled"
        with pytest.raises(FailedPrecondition):
            await orchestrator.result(accepted.job_id)
    assert a.cancelled == ["step-1"]
    assert await journal.unfinished() == ()


async def test_a_completed_job_cannot_be_cancelled(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("a")])
    await double_model(swarm)
    async with running(swarm) as orchestrator:
        last = await outcome(orchestrator, form())
        with pytest.raises(FailedPrecondition, match="completed already"):
            await orchestrator.cancel(last["job_id"])


async def test_the_jobs_timeout_expires_it_and_says_what_it_waited_for(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("a", state="suspect")])
    await double_model(swarm)
    swarm.by_peer[next(iter(swarm.by_peer))].state = "alive"
    swarm.touch()
    async with running(swarm) as orchestrator:
        node = next(iter(swarm.by_peer.values()))
        node.loaders = ("pt2",)
        swarm.touch()
        last = await outcome(orchestrator, form(timeout=30))
    assert last["status"] == "expired"
    assert last["error"]["code"] == "DEADLINE_EXCEEDED"
    assert "has no loader for onnx" in last["error"]["message"]


async def test_a_steps_timeout_fails_the_job(autojump_clock: MockClock) -> None:
    async def hang(order: Any) -> None:
        await trio.sleep_forever()

    a = FakeNode("a", behave=hang)
    swarm = FakeSwarm([a])
    await double_model(swarm)
    async with running(swarm) as orchestrator:
        last = await outcome(orchestrator, form(config={"pipeline": [{"step": 1, "model_id": "double", "timeout": 5}]}))
    assert last["status"] == "failed"
    assert last["error"]["code"] == "DEADLINE_EXCEEDED"
    assert a.orders[0].timeout == pytest.approx(5, abs=0.1)
    assert a.cancelled == ["step-1"]


async def test_a_result_can_be_waited_for(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("a", seconds=5.0)])
    await double_model(swarm)
    async with running(swarm) as orchestrator:
        accepted = await orchestrator.submit(form(), "me")
        with pytest.raises(NotReady):
            await orchestrator.result(accepted.job_id, wait=2.0)
        assert (await orchestrator.result(accepted.job_id, wait=30.0))["status"] == "completed"
        assert trio.current_time() < 6.0
