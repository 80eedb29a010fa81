"""Any seat answers for any job."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from dimnode.domain.node import Seat
from dimnode.domain.tensors import to_numpy
from dimnode.errors import Code, DimError, NotFound, Unavailable
from dimnode.orchestrator.any_seat import METHOD, AnySeat, JobAnswers
from dimnode.state.memory_journal import MemoryJournal
from p2p.api import RemoteFault
from p2p.memory import MemoryHub
from tests.support.orchestration import FakeNode, FakeSwarm, identity
from tests.unit.orchestrator.test_jobs import double_model, finished, form


class Seats:
    """Only what `AnySeat` asks of an elector."""

    def __init__(self, peers: list[str]) -> None:
        self._peers = peers

    def seats(self) -> tuple[Seat, ...]:
        return tuple(Seat(seat=i, n=i + 1, peer=p, boot="b") for i, p in enumerate(self._peers))


@asynccontextmanager
async def two_seats(swarm: FakeSwarm, hub: MemoryHub) -> AsyncIterator[tuple[AnySeat, AnySeat]]:
    peers = [identity("seat-a").peer_id, identity("seat-b").peer_id]
    networks = [hub.network(p) for p in peers]
    hub.connect_all()
    locals_ = [swarm.orchestrator(MemoryJournal(), boot=f"boot-{i}") for i in range(2)]
    for network, local in zip(networks, locals_, strict=True):
        JobAnswers(network, lambda local=local: local)
    async with trio.open_nursery() as nursery:
        for local in locals_:
            await nursery.start(local.run)
        yield tuple(AnySeat(local, n, Seats(peers)) for local, n in zip(locals_, networks, strict=True))  # type: ignore[arg-type, misc]
        nursery.cancel_scope.cancel()


async def test_status_watch_result_and_list_through_the_other_seat(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("n", seconds=30.0)])
    await double_model(swarm)
    async with two_seats(swarm, MemoryHub(seed=1)) as (a, b):
        job = (await a.submit(form(), "me")).job_id
        assert (await b.get(job))["job_id"] == job
        with pytest.raises(DimError) as e:
            await b.result(job)
        assert e.value.code is Code.NOT_READY
        with pytest.raises(DimError):
            await b.result(job, wait=3.0)
        seen = [d["status"] async for d in b.watch(job)]
        assert seen[-1] == "completed"
        assert len(seen) > 1
        assert seen.count("completed") == 1
        result = await b.result(job, wait=3.0)
        assert [d["job_id"] for d in await b.list_jobs(False, 10)] == [job]
    np.testing.assert_array_equal(to_numpy(result["outputs"]["y"]), np.full((3, 2), 2, np.float32))
    assert result["tasks"][0]["receipt"]


async def test_cancelling_through_the_other_seat(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("n", seconds=1000.0)])
    await double_model(swarm)
    async with two_seats(swarm, MemoryHub(seed=1)) as (a, b):
        job = (await a.submit(form(), "me")).job_id
        assert (await b.cancel(job))["status"] == "cancelled"
        assert (await a.get(job))["status"] == "cancelled"


async def test_what_no_seat_knows_is_not_found_and_a_silent_seat_is_unavailable(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("n")])
    await double_model(swarm)
    hub = MemoryHub(seed=1)
    async with two_seats(swarm, hub) as (a, b):
        with pytest.raises(NotFound):
            await a.get("job-nobody")
        job = (await a.submit(form(), "me")).job_id
        await finished(a, job)  # type: ignore[arg-type]
        hub.partition([identity("seat-a").peer_id], [identity("seat-b").peer_id])
        with pytest.raises(Unavailable):
            await b.get(job)
        assert await b.list_jobs(False, 10) == []


@pytest.mark.parametrize("question", [b"\xff", b"\xa1bopczzz"])
async def test_nonsense_from_a_peer_is_refused(autojump_clock: MockClock, question: bytes) -> None:
    hub = MemoryHub(seed=1)
    one, other = (hub.network(identity(n).peer_id) for n in "ab")
    hub.connect_all()
    holder: list[Any] = [None]
    JobAnswers(other, lambda: holder[0])
    with pytest.raises(RemoteFault, match="UNAVAILABLE"):
        await one.request(other.peer_id, METHOD, question, timeout=1)
    swarm = FakeSwarm([FakeNode("n")])
    holder[0] = swarm.orchestrator(MemoryJournal())
    with pytest.raises((RemoteFault, DimError)):
        await one.request(other.peer_id, METHOD, question, timeout=1)


async def test_a_key_sent_to_another_seat_again_is_the_same_job_driven_once(autojump_clock: MockClock) -> None:
    node = FakeNode("n", seconds=5.0)
    swarm = FakeSwarm([node])
    await double_model(swarm)
    async with two_seats(swarm, MemoryHub(seed=1)) as (a, b):
        job = (await a.submit(form(idempotency_key="k"), "me")).job_id
        assert (await b.submit(form(idempotency_key="k"), "me")).job_id == job
        new = form(idempotency_key="other")
        again, other = await b.submit_many([form(idempotency_key="k"), new], "me")
        assert again.job_id == job  # type: ignore[union-attr]
        assert (await b.get(job))["status"] in ("fetching", "running")
        await trio.sleep(60)
        assert (await a.get(other.job_id))["status"] == "completed"  # type: ignore[union-attr]
    assert len(node.orders) == 2
