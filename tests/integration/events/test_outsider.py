"""A listener with nothing but libp2p and what docs/events.md says, on a host of its own."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from dimnode.clock import SystemClock
from dimnode.core.event_flow import Numbers
from dimnode.domain.events import Event, channel_of, topic
from dimnode.events.listener import EventListener
from dimnode.events.outlets import SwarmOutlet
from dimnode.events.publisher import Desk, Lane
from dimnode.events.settings import EventSettings
from tests.support.documented_events import documented_reader
from tests.support.network_contract import accept, echo, first_gossip
from tests.support.networks import identity, opened, two

CHANNEL = channel_of("ab" * 32)
JOBS = topic(CHANNEL, "jobs")


def event(number: int) -> Event:
    return Event(event="accepted", at=1.0, job=f"job-{number}", epoch=1)


def lane(network: Any, settings: EventSettings) -> Lane:
    return Lane(SwarmOutlet(network), Desk(identity(1), SystemClock(), Numbers(), settings.channel), settings)


async def test_whoever_reads_the_document_hears_and_checks_events() -> None:
    read = documented_reader()
    settings = EventSettings(channel=CHANNEL, interval=0.1)
    async with two() as (member, outsider), trio.open_nursery() as nursery:
        inbox = outsider.subscribe(JOBS, accept)
        await first_gossip(member, inbox, JOBS)
        out = lane(member, settings)
        nursery.start_soon(out.run)
        for number in range(3):
            out.put("jobs", event(number))
        heard: list[dict[str, Any]] = []
        with trio.fail_after(10):
            while len(heard) < 3:
                data = (await inbox.receive()).data
                document = read(data)
                assert (document["v"], document["kind"], document["channel"]) == (1, "jobs", CHANNEL)
                assert document["publisher"] == identity(1).peer_id
                heard += document["events"]
        assert heard == [{"event": "accepted", "at": 1.0, "job": f"job-{n}", "epoch": 1} for n in range(3)]
        middle = len(data) // 2
        for place in (5, middle, len(data) - 5):
            changed = bytearray(data)
            changed[place] = ord("A") if changed[place] != ord("A") else ord("B")
            with pytest.raises(Exception, match=r".*"):
                read(bytes(changed))
        nursery.cancel_scope.cancel()


async def test_a_burst_loses_nothing_but_what_the_queue_drops_and_delays_nobody() -> None:
    settings = EventSettings(channel=CHANNEL, interval=0.1, batch=200, queue=1000, remember=10_000)
    async with two() as (a, b), trio.open_nursery() as nursery:
        b.serve("echo", echo)
        listener = EventListener(b, SystemClock(), settings)
        nursery.start_soon(listener.run)
        out = lane(a, settings)
        nursery.start_soon(out.run)
        with trio.fail_after(10):
            while not listener.statistics()["heard"]:  # single ones may get lost while a mesh forms
                out.put("jobs", event(-1))
                await trio.sleep(0.1)
            while out.status()["waiting"]:
                await trio.sleep(0.02)
        began = trio.current_time()
        for number in range(5000):
            out.put("jobs", event(number))
        assert await a.request(b.peer_id, "echo", b"still here", timeout=2) == b"still here"
        assert trio.current_time() - began < 2
        told = out.status()
        assert told["dropped"] >= 3000
        got: list[str] = []
        with trio.fail_after(10):
            while not got or got[-1] != "job-4999":
                await trio.sleep(0.02)
                got = [e["job"] async for e in listener.watch(("jobs",), follow=False) if e["job"] != "job--1"]
        assert len(set(got)) == len(got) == 5000 - out.status()["dropped"]
        assert listener.statistics()["refused"] == {}
        nursery.cancel_scope.cancel()


async def test_nobody_listens_and_nothing_waits_for_it() -> None:
    async with opened(1) as alone, trio.open_nursery() as nursery:
        out = lane(alone, EventSettings(channel=CHANNEL, interval=0.1))
        nursery.start_soon(out.run)
        out.put("jobs", event(1))
        with trio.fail_after(5):
            while out.status()["published"] < 1:
                await trio.sleep(0.02)
        assert out.status()["ok"]
        nursery.cancel_scope.cancel()
