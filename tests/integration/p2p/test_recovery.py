"""Peers that die, stop, return, and the ways to find them again."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio

from p2p.api import GossipMessage, PeerEvent, RequestTimeout, Unreachable
from p2p.host import live_connections
from p2p.network import Libp2pNetwork
from p2p.settings import HealthSettings
from tests.support.network_contract import accept, echo, eventually, gossip_flows
from tests.support.networks import identity, opened, two

BINDABLE = "/ip4/127.0.0.1/tcp/0"


@asynccontextmanager
async def process(number: int, listen: str = BINDABLE, *bootstrap: str) -> AsyncGenerator[tuple[trio.Process, str], None]:
    """(process, its address); killed at the end."""
    command = [sys.executable, "-m", "tests.support.network_peer", str(number), listen, *bootstrap]
    child = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        line = b""
        with trio.fail_after(20):
            while not line.endswith(b"\n"):
                line += await child.stdout.receive_some()
        yield child, line.decode().strip()
    finally:
        child.kill()
        with trio.CancelScope(shield=True):
            await child.wait()


async def expect(events: trio.MemoryReceiveChannel[PeerEvent], event: PeerEvent, within: float) -> float:
    """How long it took."""
    start = trio.current_time()
    with trio.fail_after(within):
        assert await events.receive() == event
    return trio.current_time() - start


async def hear(inbox: trio.MemoryReceiveChannel[GossipMessage], author: str, within: float) -> None:
    with trio.fail_after(within):
        async for message in inbox:
            if message.author == author:
                return


def forget(inbox: trio.MemoryReceiveChannel[GossipMessage]) -> None:
    while inbox.statistics().current_buffer_used:
        inbox.receive_nowait()


async def test_a_killed_peer_is_noticed_and_heard_again_when_it_returns() -> None:
    peer = identity(2).peer_id
    async with opened(1) as a:
        inbox, events = a.subscribe("t", accept), a.peer_events()
        listen = BINDABLE
        for _ in range(2):
            async with process(2, listen, a.addresses()[0]) as (child, address):
                listen = address.split("/p2p/")[0]
                await expect(events, PeerEvent(peer, connected=True), 10)
                await hear(inbox, peer, 5)
                assert await a.request(peer, "echo", b"x", timeout=5) == b"x"
                child.kill()
                assert await expect(events, PeerEvent(peer, connected=False), 5) < 2
            forget(inbox)


async def test_a_stopped_peer_is_noticed_in_seconds_and_comes_back() -> None:
    peer = identity(2).peer_id
    async with opened(1) as a, process(2, BINDABLE, a.addresses()[0]) as (child, _):
        inbox, events = a.subscribe("t", accept), a.peer_events()
        await eventually(lambda: peer in a.peers())
        await hear(inbox, peer, 10)
        forget_events(events)
        assert await a.request(peer, "echo", b"x", timeout=5) == b"x"
        child.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises((Unreachable, RequestTimeout)):
                await a.request(peer, "echo", b"x", timeout=10)
            await expect(events, PeerEvent(peer, connected=False), 5)
        finally:
            child.send_signal(signal.SIGCONT)
        await expect(events, PeerEvent(peer, connected=True), 10)
        forget(inbox)
        await hear(inbox, peer, 10)
        assert await a.request(peer, "echo", b"x", timeout=5) == b"x"


async def test_a_stopped_peer_with_full_buffers_is_closed_all_the_same() -> None:
    peer = identity(2).peer_id
    async with opened(1) as a, process(2, BINDABLE, a.addresses()[0]) as (child, _):
        await eventually(lambda: peer in a.peers())
        events = a.peer_events()
        child.send_signal(signal.SIGSTOP)
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(_ask_in_vain, a, peer)
                await expect(events, PeerEvent(peer, connected=False), 10)
        finally:
            child.send_signal(signal.SIGCONT)


async def test_a_busy_connection_is_not_taken_for_dead() -> None:
    async with two(health=HealthSettings(interval=0.05, timeout=0.5)) as (a, b):
        b.serve("echo", echo)
        events = a.peer_events()
        for _ in range(6):
            await a.request(b.peer_id, "echo", bytes(8_000_000), timeout=30)
        with pytest.raises(trio.WouldBlock):
            events.receive_nowait()


async def test_a_peer_that_returns_over_a_stale_connection_gets_gossip_and_requests() -> None:
    """The peer's machine lost power: no goodbye, and the old connection seems open still."""
    async with opened(1) as a, stalling_proxy(a.addresses()[0]) as (through, stall):
        a.serve("echo", echo)
        inbox = a.subscribe("t", accept)
        async with opened(2) as b:
            await b.connect(through)
            at_b = b.subscribe("t", accept)
            await gossip_flows(a, at_b, "t")
            stale = live_connections(a.host, b.peer_id)[0]
            stall()
            async with opened(2) as again:
                await again.connect(a.addresses()[0])
                at_again = again.subscribe("t", accept)
                again.serve("echo", echo)
                assert await again.request(a.peer_id, "echo", b"x", timeout=5) == b"x"
                await gossip_flows(a, at_again, "t")
                await gossip_flows(again, inbox, "t")
                await eventually(lambda: stale.is_closed)
                assert await a.request(again.peer_id, "echo", b"x", timeout=5) == b"x"
                await gossip_flows(a, at_again, "t")


async def test_bootstrap_never_gives_up() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listen = f"/ip4/127.0.0.1/tcp/{probe.getsockname()[1]}"
    address = f"{listen}/p2p/{identity(2).peer_id}"
    async with opened(1, bootstrap=(address,)) as a:
        events = a.peer_events()
        failures = 0
        original = a._dialer._plan.failed

        def count(peer: str, now: float) -> None:
            nonlocal failures
            failures += 1
            original(peer, now)

        cast(Any, a._dialer._plan).failed = count
        await eventually(lambda: failures > 10)
        for _ in range(2):
            async with opened(2, listen=(listen,)):
                await expect(events, PeerEvent(identity(2).peer_id, connected=True), 5)
            await expect(events, PeerEvent(identity(2).peer_id, connected=False), 5)
            seen = failures
            await eventually(lambda seen=seen: failures > seen + 3)


async def test_peers_known_by_hearsay_replace_a_lost_bootstrap_peer() -> None:
    async with opened(1) as a, opened(3) as c:
        async with opened(2) as b:
            await a.connect(b.addresses()[0])
            await c.connect(b.addresses()[0])
            a.add_address(c.peer_id, ("/ip4/127.0.0.1/tcp/1", *c.addresses()))
        await eventually(lambda: a.peers() == {c.peer_id})


async def test_the_second_of_two_addresses_is_tried() -> None:
    async with opened(1) as a, opened(2) as b:
        a.add_address(b.peer_id, ("/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/2", "garbage", *b.addresses()))
        b.serve("echo", echo)
        assert await a.request(b.peer_id, "echo", b"x", timeout=5) == b"x"


async def test_both_dial_at_once() -> None:
    async with opened(1) as a, opened(2) as b:
        at_a, at_b = a.subscribe("t", accept), b.subscribe("t", accept)
        a.serve("echo", echo)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.connect, b.addresses()[0])
            nursery.start_soon(b.connect, a.addresses()[0])
        await gossip_flows(a, at_b, "t")
        await gossip_flows(b, at_a, "t")
        assert await b.request(a.peer_id, "echo", b"x", timeout=5) == b"x"


async def test_two_swarms_of_one_name_find_each_other_by_mdns() -> None:
    from p2p.settings import MdnsSettings

    local = MdnsSettings(enabled=True, interfaces=("127.0.0.1",))
    async with (
        opened(1, mdns=local, swarm="one") as a,
        opened(2, mdns=local, swarm="one") as b,
        opened(3, mdns=local, swarm="two") as c,
    ):
        try:
            await eventually(lambda: a.peer_id in b.peers() and b.peer_id in a.peers(), within=12)
        except trio.TooSlowError:
            pytest.skip("no multicast on loopback here")
        assert c.peers() == frozenset()


def forget_events(events: trio.MemoryReceiveChannel[PeerEvent]) -> None:
    while events.statistics().current_buffer_used:
        events.receive_nowait()


async def _ask_in_vain(network: Libp2pNetwork, peer: str) -> None:
    with pytest.raises((Unreachable, RequestTimeout)):
        await network.request(peer, "echo", bytes(8_000_000), timeout=9)


@asynccontextmanager
async def stalling_proxy(address: str) -> AsyncGenerator[tuple[str, Callable[[], None]], None]:
    """(address through the proxy, a function that makes it swallow everything and close nothing)."""
    port = int(address.split("/")[4])
    stalled = trio.Event()

    async def pump(source: trio.SocketStream, target: trio.SocketStream) -> None:
        async for data in source:
            if stalled.is_set():
                await trio.sleep_forever()
            await target.send_all(data)

    async def serve(client: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as upstream, trio.open_nursery() as nursery:
            nursery.start_soon(pump, client, upstream)
            nursery.start_soon(pump, upstream, client)

    async with trio.open_nursery() as nursery:
        listeners = cast(list[trio.SocketListener], await nursery.start(trio.serve_tcp, serve, 0))
        own = listeners[0].socket.getsockname()[1]
        yield address.replace(f"/tcp/{port}/", f"/tcp/{own}/"), stalled.set
        nursery.cancel_scope.cancel()
