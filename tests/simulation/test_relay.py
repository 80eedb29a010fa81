"""Where the relay leads, on virtual time: seats that are gone, silent, slow, or seats no more."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from dimnode.domain.node import Seat
from dimnode.swarm.relay import TUNNEL, Relay, RelaySettings
from p2p.memory import MemoryHub

SETTINGS = RelaySettings(open_timeout=3.0, stagger=0.3, first_word=2.0, seat_grace=1.5, linger=5.0)
Stream = trio.abc.HalfCloseableStream


class Seats:
    """`dimnode.ports.Elector`, as far as the relay looks."""

    def __init__(self, *peers: str) -> None:
        self._version = 0
        self._event = trio.Event()
        self.hold(*peers)

    def hold(self, *peers: str, jobs: dict[str, int] | None = None) -> None:
        self._seats = tuple(Seat(seat=n, n=1, peer=p, boot="b", jobs=(jobs or {}).get(p, 0)) for n, p in enumerate(peers))
        self._version += 1
        self._event.set()
        self._event = trio.Event()

    def seats(self) -> tuple[Seat, ...]:
        return self._seats

    def changed(self) -> int:
        return self._version

    async def wait_changed(self, since: int) -> int:
        while self._version <= since:
            await self._event.wait()
        return self._version


Behaviour = Callable[[str, Stream], Awaitable[None]]


def echo(name: str) -> Behaviour:
    """As a gRPC server it speaks first; then it answers everything."""

    async def serve(_peer: str, stream: Stream) -> None:
        await stream.send_all(name.encode())
        while data := await stream.receive_some():
            await stream.send_all(data)

    return serve


async def mute(_peer: str, _stream: Stream) -> None:
    await trio.sleep_forever()


async def shut(_peer: str, _stream: Stream) -> None:
    """A node that has just lost its seat."""


class World:
    def __init__(self, hub: MemoryHub, relay: Relay, seats: Seats, nursery: trio.Nursery) -> None:
        self.hub = hub
        self.relay = relay
        self.seats = seats
        self.nursery = nursery

    def node(self, name: str, behaviour: Behaviour) -> None:
        network = self.hub.networks.get(name) or self.hub.network(name)
        network.serve_tunnel(TUNNEL, behaviour)
        self.hub.connect_all()

    def connect(self) -> Stream:
        client, server = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.relay.serve, server)
        return client

    async def led_to(self) -> str:
        """Who answers a new connection; empty if it is closed."""
        stream = self.connect()
        try:
            return (await stream.receive_some()).decode()
        finally:
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def world(*peers: str) -> AsyncGenerator[World]:
    async with MemoryHub(seed=1) as hub, trio.open_nursery() as nursery:
        seats = Seats(*peers)
        relay = Relay(hub.network("me"), seats, lambda: None, SETTINGS)  # type: ignore[arg-type]
        nursery.start_soon(relay.follow_seats)
        yield World(hub, relay, seats, nursery)
        nursery.cancel_scope.cancel()


async def test_it_leads_to_the_seat_with_the_fewest_jobs_and_stays_there(autojump_clock: MockClock) -> None:
    async with world() as w:
        for name in "abc":
            w.node(name, echo(name))
        w.seats.hold("a", "b", "c", jobs={"a": 3, "b": 1, "c": 2})
        assert await w.led_to() == "b"
        w.seats.hold("a", "b", "c", jobs={"b": 9})
        assert await w.led_to() == "b"


async def test_bytes_go_both_ways_until_both_have_ended(autojump_clock: MockClock) -> None:
    async with world("a") as w:
        w.node("a", echo("a"))
        stream = w.connect()
        await stream.send_all(b"bc")
        got = b""
        while len(got) < 3:
            got += await stream.receive_some()
        assert got == b"abc"
        await stream.send_eof()
        assert await stream.receive_some() == b""


async def test_a_seat_that_does_not_answer_costs_a_moment_and_then_nothing(autojump_clock: MockClock) -> None:
    async with world("a", "b") as w:
        w.node("a", echo("a"))
        w.node("b", echo("b"))
        w.hub.cut("me", "a")
        began = trio.current_time()
        assert await w.led_to() == "b"
        assert trio.current_time() - began == pytest.approx(SETTINGS.stagger)
        began = trio.current_time()
        assert await w.led_to() == "b"
        assert trio.current_time() == began


async def test_a_seat_that_is_gone_is_passed_over_at_once(autojump_clock: MockClock) -> None:
    async with world("a", "b") as w:
        w.node("b", echo("b"))
        began = trio.current_time()
        assert await w.led_to() == "b"
        assert trio.current_time() == began


@pytest.mark.parametrize(("behaviour", "seconds"), [(mute, SETTINGS.first_word), (shut, 0.0)])
async def test_a_seat_that_says_nothing_is_left_and_comes_last(autojump_clock: MockClock, behaviour: Any, seconds: float) -> None:
    async with world("a", "b") as w:
        w.node("a", behaviour)
        w.node("b", echo("b"))
        began = trio.current_time()
        assert await w.led_to() == "", "closed: the client connects again"
        assert trio.current_time() - began == pytest.approx(seconds)
        assert await w.led_to() == "b"


async def test_a_client_that_leaves_at_once_is_not_the_seats_fault(autojump_clock: MockClock) -> None:
    async with world("a", "b") as w:

        async def slow(peer: str, stream: Stream) -> None:
            await trio.sleep(0.5)
            with trio.move_on_after(1):
                await echo("a")(peer, stream)

        w.node("a", slow)
        w.node("b", echo("b"))
        stream = w.connect()
        await trio.sleep(0.1)
        await stream.aclose()
        await trio.sleep(10)
        assert await w.led_to() == "a"


async def test_a_connection_to_a_node_that_lost_its_seat_ends_after_a_grace(autojump_clock: MockClock) -> None:
    async with world("a", "b") as w:
        w.node("a", echo("a"))
        w.node("b", echo("b"))
        stream = w.connect()
        assert await stream.receive_some() == b"a"
        began = trio.current_time()
        w.seats.hold("b")
        assert await stream.receive_some() == b""
        assert trio.current_time() - began == pytest.approx(SETTINGS.seat_grace)
        assert await w.led_to() == "b"


async def test_a_seat_that_comes_back_within_the_grace_keeps_its_connections(autojump_clock: MockClock) -> None:
    async with world("a", "b") as w:
        w.node("a", echo("a"))
        stream = w.connect()
        assert await stream.receive_some() == b"a"
        w.seats.hold("b")
        await trio.sleep(SETTINGS.seat_grace / 2)
        w.seats.hold("a", "b")
        await trio.sleep(60)
        await stream.send_all(b"x")
        assert await stream.receive_some() == b"x"


async def test_a_broken_tunnel_closes_the_clients_connection(autojump_clock: MockClock) -> None:
    async with world("a") as w:
        w.node("a", echo("a"))
        stream = w.connect()
        assert await stream.receive_some() == b"a"
        began = trio.current_time()
        w.hub.crash("a")
        assert await stream.receive_some() == b""
        assert trio.current_time() == began


async def test_one_that_ends_its_side_is_not_waited_for_for_ever(autojump_clock: MockClock) -> None:
    async def ends(_peer: str, stream: Stream) -> None:
        await stream.send_all(b"a")
        await stream.send_eof()
        await trio.sleep_forever()

    async with world("a") as w:
        w.node("a", ends)
        stream = w.connect()
        assert await stream.receive_some() == b"a"
        began = trio.current_time()
        assert await stream.receive_some() == b""
        with suppress(trio.BrokenResourceError):
            while trio.current_time() < began + 60:
                await stream.send_all(b"x")
                await trio.sleep(0.5)
        assert trio.current_time() - began == pytest.approx(SETTINGS.linger, abs=0.6)


async def test_without_seats_the_client_is_told_at_once(autojump_clock: MockClock) -> None:
    async with world() as w:
        began = trio.current_time()
        assert await w.led_to() == ""
        assert trio.current_time() == began
