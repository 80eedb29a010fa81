"""Blocks that go to a node after the record: one that does not work is in nobody's way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from dimnode.domain import codec
from dimnode.domain.record import OutcomeEntry
from dimnode.records.anti_entropy import AntiEntropySettings
from dimnode.records.holder import HolderSettings
from dimnode.records.messages import BLOCKS
from p2p.api import RequestTimeout
from p2p.ipfs.api import StoreUnavailable
from tests.support import entries as e
from tests.support.record_nodes import QUICK, RecordNode, RecordSwarm, record_swarm

JOBS = ("job-a", "job-b", "job-c")


async def with_inputs(node: RecordNode, job: str, count: int) -> list[str]:
    """A job that the node owns, and its blocks."""
    cids = [await node.store.add_bytes(f"{job} {n}".encode()) for n in range(count)]
    spec = codec.encode({"client_data": {f"x{n}": {"cid": cid} for n, cid in enumerate(cids)}})
    await node.table.merge(job, [e.core(job, spec=spec), e.claim(1, node.peer, job=job)])
    node.chosen[job] = ("holder",)
    return cids


async def owner_and_holder(swarm: RecordSwarm, settings: AntiEntropySettings = QUICK, **kw: Any) -> tuple[RecordNode, RecordNode]:
    owner = await swarm.add("owner", anti_entropy=settings)
    return owner, await swarm.add("holder", anti_entropy=replace(QUICK, interval=1e9), **kw)


async def test_a_record_whose_blocks_are_refused_holds_up_no_other(autojump_clock: MockClock) -> None:
    async with record_swarm([], "anti_entropy") as swarm:
        owner, holder = await owner_and_holder(swarm, holder=HolderSettings(max_blocks=2))
        blocks = [await with_inputs(owner, job, 3 if n == 0 else 1) for n, job in enumerate(JOBS)]
        await trio.sleep(100)
        assert set(await holder.store.pins()) == {*blocks[1], *blocks[2]}


async def test_more_blocks_than_one_request_may_name_go_in_several(autojump_clock: MockClock) -> None:
    async with record_swarm([], "anti_entropy") as swarm:
        owner, holder = await owner_and_holder(swarm, replace(QUICK, max_blocks=2), holder=HolderSettings(max_blocks=2))
        blocks = await with_inputs(owner, JOBS[0], 5)
        await trio.sleep(100)
        assert set(await holder.store.pins()) == set(blocks)
        assert owner.anti_entropy._owed.of("holder") == ()


async def test_a_node_that_answers_nothing_takes_no_try_from_what_was_not_asked(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one meeting with it comes to an end."""
    settings = replace(QUICK, blocks_timeout=30.0, giving=60.0)
    asked: list[float] = []
    async with record_swarm([], "anti_entropy") as swarm:
        owner, holder = await owner_and_holder(swarm, settings)
        jobs = [f"job-{n}" for n in range(20)]
        blocks = [(await with_inputs(owner, job, 1))[0] for job in jobs]
        request = owner.network.request

        async def slow(peer: str, method: str, data: bytes, *, timeout: float, **kw: Any) -> bytes:
            if method != BLOCKS:
                return await request(peer, method, data, timeout=timeout, **kw)
            asked.append(trio.current_time())
            await trio.sleep(timeout)
            raise RequestTimeout("no answer")

        monkeypatch.setattr(owner.network, "request", slow)
        await trio.sleep(30 * 60)
        assert len(asked) >= 40
        assert len(owner.anti_entropy._owed.of("holder")) == len(jobs), "each was tried a few times, and none is forgotten"
        monkeypatch.undo()
        assert owner.anti_entropy.statistics()["rounds"] >= len(asked) // 2, "after two of them it went on"
        await trio.sleep(100)
        assert set(await holder.store.pins()) == set(blocks)


async def test_a_store_that_is_away_for_long_ends_no_node_and_nothing_is_forgotten(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: str) -> bool:
        raise StoreUnavailable("away")

    async with record_swarm([], "anti_entropy") as swarm:
        owner, holder = await owner_and_holder(swarm)
        (block,) = await with_inputs(owner, JOBS[0], 1)
        monkeypatch.setattr(owner.store, "has", away)
        await trio.sleep(600)
        assert holder.table.holds(JOBS[0])
        assert not await holder.store.pins()
        monkeypatch.undo()
        await trio.sleep(20)
        assert set(await holder.store.pins()) == {block}


async def test_a_result_that_is_no_cid_ends_no_node_and_the_rest_is_given(autojump_clock: MockClock) -> None:
    async with record_swarm([], "anti_entropy") as swarm:
        owner, holder = await owner_and_holder(swarm)
        (block,) = await with_inputs(owner, JOBS[0], 1)
        foreign = OutcomeEntry(job=JOBS[0], ballot=e.ballot(1, "owner"), status="failed", at=2.0, result_cid="QmForeign")
        await owner.table.merge(JOBS[0], [e.signed(foreign)])
        await trio.sleep(20)
        assert set(await holder.store.pins()) == {block}
        assert owner.anti_entropy._owed.of("holder") == ()
