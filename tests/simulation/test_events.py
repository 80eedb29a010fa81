"""What members hear of jobs and nodes, on the in-memory network and on virtual time: real registries, electors, records and events."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from dimnode.domain import events
from dimnode.domain.events import Event
from dimnode.errors import InvalidArgument, ResourceExhausted
from dimnode.events.manager import EventManager
from dimnode.events.publisher import TYPE
from dimnode.events.settings import EventSettings
from dimnode.records.table import RecordTable
from dimnode.security import jws
from p2p.memory import MemoryHub
from tests.support.entries import FakeSigner, claim, core, fake_verify, outcome
from tests.support.swarm import SwarmNode

SETTINGS = EventSettings(channel="c", max_age=1e12)
"""The entries of `tests.support.entries` are of the year 1970."""


class EventNode(SwarmNode):
    def __init__(self, hub: MemoryHub, peer: str, settings: EventSettings = SETTINGS, **kw: Any) -> None:
        super().__init__(hub, peer, **kw)
        self.table = RecordTable(self.journal, FakeSigner(peer))
        self.events = EventManager(
            network=self.network, table=self.table, registry=self.registry, elector=self.elector, clock=self.clock, signer=FakeSigner(peer),
            boot="b", settings=settings, verify=fake_verify,
        )  # fmt: skip

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.registry.run)
                await nursery.start(self.elector.run)
                await nursery.start(self.events.run)
                task_status.started()

    async def heard(self, kind: str) -> list[dict[str, Any]]:
        return [e async for e in self.events.watch([kind], follow=False)]


@pytest.fixture
async def hub() -> AsyncIterator[MemoryHub]:
    async with MemoryHub(seed=3, delay=(0.001, 0.01)) as made:
        yield made


async def started(hub: MemoryHub, nursery: trio.Nursery, *peers: str, settings: EventSettings = SETTINGS) -> list[EventNode]:
    nodes = [EventNode(hub, peer, settings, start="alone" if peer == peers[0] else "join") for peer in peers]
    for node in nodes:
        await nursery.start(node.run)
        await trio.sleep(2)
        hub.connect_all()
    await trio.sleep(10)
    return nodes


def words(found: list[dict[str, Any]], node: str) -> list[str]:
    return [e["event"] for e in found if e["node"] == node]


async def test_members_and_seats_are_told_once_to_everybody(autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery) -> None:
    a, _, c = await started(hub, nursery, "a", "b", "c")
    observer = EventNode(hub, "o", eligible=False)
    await nursery.start(observer.run)
    hub.connect_all()
    await trio.sleep(5)
    told = await a.heard("nodes")
    assert words(told, "b") == ["joined", "seat_won"]
    assert words(told, "c") == ["joined", "seat_won"]
    assert words(told, "a") == ["seat_won"]
    assert words(told, "o") == ["joined"]
    await c.elector.release()
    c.registry.announce(leaving=True)
    await trio.sleep(2)
    assert "seat_lost" in words(await observer.heard("nodes"), "c")
    a.crash()  # who has told of members so far
    await trio.sleep(15)
    heard = await observer.heard("nodes")
    assert words(heard, "a") == ["suspected", "died"]
    assert "left" in words(heard, "c")
    assert {e["publisher"] for e in heard if e["node"] == "a"} == {"b"}
    assert max(Counter((e["event"], e["node"], e.get("term")) for e in heard).values()) == 1


async def test_a_job_is_heard_from_its_owner_and_after_a_takeover_from_the_new_one(
    autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery
) -> None:
    a, b, c = await started(hub, nursery, "a", "b", "c")
    record = [core(), claim(1, "a")]
    for node in (a, b):
        await node.table.merge("job-a", record)
    await trio.sleep(1)
    assert [(e["event"], e["publisher"]) for e in await c.heard("jobs")] == [("accepted", "a")]
    for node in (a, b):
        await node.table.merge("job-a", [claim(2, "b"), outcome(2, "completed", "b", result=b"the secret")])
    await trio.sleep(1)
    found = await c.heard("jobs")
    assert [(e["event"], e["publisher"], e["epoch"]) for e in found] == [
        ("accepted", "a", 1),
        ("taken_over", "b", 2),
        ("completed", "b", 2),
    ]
    assert found == await a.heard("jobs")
    assert all(set(e) <= {"kind", "publisher", "event", "at", "job", "epoch"} for e in found)


async def test_a_burst_of_jobs_is_paced_bounded_and_counted(autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery) -> None:
    settings = replace(SETTINGS, queue=300, batch=50, remember=5000)
    a, b = await started(hub, nursery, "a", "b", settings=settings)
    before = a.network.statistics().published
    jobs = [(f"job-{n}", [core(f"job-{n}"), claim(1, "a", job=f"job-{n}")]) for n in range(1000)]
    await a.table.merge_many(jobs)
    await trio.sleep(10)
    told = a.events.status()["swarm"]
    assert told["dropped"] > 0
    of_nodes = [e for e in await a.heard("nodes") if e["publisher"] == "a"]
    assert told["published"] + told["dropped"] == 1000 + len(of_nodes)
    assert a.events.statistics()["missed_jobs"] == 0
    assert (len(await b.heard("jobs")), told["waiting"]) == (1000 - told["dropped"], 0)
    assert b.events.statistics()["refused"] == {}
    assert a.network.statistics().published - before < 40, "heartbeats, and about twenty messages"


@pytest.mark.parametrize(("off", "heard"), [("jobs", {"nodes": 3, "jobs": 0}), ("nodes", {"nodes": 0, "jobs": 1})])
async def test_what_is_switched_off_is_not_told(
    autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery, off: str, heard: dict[str, int]
) -> None:
    a, b = await started(hub, nursery, "a", "b", settings=replace(SETTINGS, **{off: False}))
    await a.table.merge("job-a", [core(), claim(1, "a")])
    await trio.sleep(2)
    for node in (a, b):
        assert {kind: len(await node.heard(kind)) for kind in heard} == {**heard, "nodes": heard["nodes"] - (node is b and off == "jobs")}


async def test_what_is_forged_repeated_or_too_large_is_not_heard(autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery) -> None:
    a, b = await started(hub, nursery, "a", "b")
    topic = events.topic("c", "jobs")
    mallory = hub.network("mallory")
    hub.connect_all()
    await trio.sleep(1)

    def signed(by: str, publisher: str, seq: int, at: float | None = None) -> bytes:
        told = (Event(event="completed", at=1.0, job=f"job-{seq}"),)
        message = events.Message(
            kind="jobs", channel="c", publisher=publisher, seq=seq, at=a.clock.wall() if at is None else at, dropped=0, events=told
        )
        return jws.sign(events.encode(message), TYPE, FakeSigner(by))

    good = signed("mallory", "mallory", 1)
    header, payload, _ = good.split(b".")
    theirs = signed("a", "a", 2)  # somebody else's, passed on as one's own
    for data in (good, good, theirs, signed("mallory", "a", 3), header + b"." + payload + b".AAAA", b"x" * 70_000, b"\x00"):
        await mallory.publish(topic, data)
    await trio.sleep(1)
    assert [(e["job"], e["publisher"]) for e in await b.heard("jobs")] == [("job-1", "mallory")]
    assert b.events.statistics()["refused"] == {"repeated": 2, "forged": 2, "oversized": 1, "malformed": 1}


async def test_followers_hear_what_comes_and_are_bounded(autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery) -> None:
    (a,) = await started(hub, nursery, "a", settings=replace(SETTINGS, watchers=1, watcher_queue=5))
    heard: list[str] = []
    opened = trio.Event()

    async def follow(scope: trio.CancelScope) -> None:
        with scope:
            async for event in a.events.watch((), follow=True):
                opened.set()
                heard.append(event["event"])
                await trio.sleep(1)

    scope = trio.CancelScope()
    nursery.start_soon(follow, scope)
    await opened.wait()
    with pytest.raises(ResourceExhausted):
        await a.events.watch((), follow=False).__anext__()
    with pytest.raises(InvalidArgument):
        a.events.watch(["weather"], follow=False)
    for n in range(20):
        a.events.listener.hear(
            events.Message(kind="jobs", channel="c", publisher="a", seq=n, at=1.0, dropped=0, events=(Event(event=f"e{n}", at=1.0),))
        )
    await trio.sleep(10)
    assert heard == ["seat_won", *(f"e{n}" for n in range(15, 20))], "a slow one misses the oldest"
    scope.cancel()
    await trio.sleep(0.1)
    assert a.events.statistics()["watchers"] == 0
