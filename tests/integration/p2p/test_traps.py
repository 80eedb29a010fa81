"""What py-libp2p does wrong and `p2p` must not: one test for each trap."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest
import trio
from libp2p.network.stream.exceptions import StreamReset

from p2p.api import PortInUse, RemoteFault, RequestTimeout, Unreachable
from p2p.host import live_connections
from p2p.network import Libp2pNetwork, open_network
from p2p.settings import NetworkSettings, RequestSettings, TunnelSettings
from tests.support.network_contract import accept, echo, eventually, first_gossip
from tests.support.networks import identity, opened, two

Networks = tuple[Libp2pNetwork, Libp2pNetwork]


@pytest.fixture
async def pair() -> AsyncGenerator[Networks, None]:
    async with two() as networks:
        yield networks


async def test_a_burst_of_1000_messages_arrives_in_order(pair: Networks) -> None:
    a, b = pair
    inbox = b.subscribe("t", accept, capacity=2000)
    await first_gossip(a, inbox, "t")
    for number in range(1000):
        await a.publish("t", number.to_bytes(2, "big"))
    with trio.fail_after(20):
        received = [int.from_bytes((await inbox.receive()).data, "big") for _ in range(1000)]
    assert received == list(range(1000))
    assert b.statistics().dropped == 0


async def test_a_burst_travels_through_a_third() -> None:
    async with opened(1) as a, opened(2) as b, opened(3) as c:
        await a.connect(b.addresses()[0])
        await c.connect(b.addresses()[0])
        b.subscribe("t", accept)
        inbox = c.subscribe("t", accept, capacity=2000)
        await first_gossip(a, inbox, "t")
        for number in range(300):
            await a.publish("t", number.to_bytes(2, "big"))
            await trio.sleep(0.001)
        received = set[bytes]()
        with trio.fail_after(20):
            while len(received) < 300:
                received.add((await inbox.receive()).data)


async def test_message_ids_are_new_after_a_restart() -> None:
    async with opened(1) as a:
        inbox = a.subscribe("t", accept, capacity=1000)
        for life in range(2):
            async with opened(2) as b:
                await b.connect(a.addresses()[0])
                await first_gossip(b, inbox, "t")
                for number in range(100):
                    await b.publish("t", bytes([life, number]))
                with trio.fail_after(10):
                    assert [(await inbox.receive()).data for _ in range(100)] == [bytes([life, n]) for n in range(100)]


async def test_one_slow_reader_does_not_hold_up_the_publisher_for_ever(pair: Networks) -> None:
    a, b = pair
    inbox = b.subscribe("t", accept)
    await first_gossip(a, inbox, "t")
    queue = a.pubsub.peer_queues[next(iter(a.pubsub.peer_queues))]
    hold = trio.Lock()

    async def stuck() -> None:
        await hold.acquire()
        await trio.sleep_forever()

    queue.pop = stuck  # type: ignore[method-assign, assignment]
    with trio.fail_after(10):
        for _ in range(60):
            await a.publish("t", b"x")


async def test_more_requests_and_tunnels_than_yamux_has_slots(pair: Networks) -> None:
    a, b = pair
    b.serve("echo", echo)
    b.serve_tunnel("echo", _echo_tunnel)
    with trio.fail_after(60):
        for number in range(300):
            assert await a.request(b.peer_id, "echo", bytes([number % 256]), timeout=5) == bytes([number % 256])
            stream = await a.open_tunnel(b.peer_id, "echo", timeout=5)
            async with stream:
                await stream.send_all(b"x")
                await stream.send_eof()
                assert await stream.receive_some() == b"x"
    await eventually(lambda: _open_streams(a) < 10 and _open_streams(b) < 10)


async def test_cancelled_requests_leak_nothing(pair: Networks) -> None:
    a, b = pair

    async def slow(peer: str, data: bytes) -> bytes:
        await trio.sleep_forever()
        return b""

    b.serve("slow", slow)
    b.serve("echo", echo)
    for _ in range(300):
        with pytest.raises(RequestTimeout):
            await a.request(b.peer_id, "slow", b"", timeout=0.003)
    assert await a.request(b.peer_id, "echo", b"x", timeout=5) == b"x"
    assert a._client._channels[b.peer_id].pending == 0
    await eventually(lambda: b._server._loads[a.peer_id].requests == 0)
    await eventually(lambda: _open_streams(a) < 10 and _open_streams(b) < 10)


async def test_cancelled_writes_do_not_break_the_connection(pair: Networks) -> None:
    a, b = pair
    b.serve_tunnel("sink", _sink)
    b.serve("echo", echo)
    connection = live_connections(a.host, b.peer_id)[0]
    for number in range(40):
        stream = await a.open_tunnel(b.peer_id, "sink", timeout=5)
        with trio.move_on_after(0.001 * (number % 7)):
            await stream.send_all(bytes(9_000_000))
        await trio.aclose_forcefully(stream)
    assert await a.request(b.peer_id, "echo", b"x", timeout=5) == b"x"
    assert live_connections(a.host, b.peer_id) == [connection]


async def test_a_cancelled_big_request_does_not_break_the_connection(pair: Networks) -> None:
    a, b = pair
    b.serve("echo", echo)
    connection = live_connections(a.host, b.peer_id)[0]
    for number in range(10):
        with trio.move_on_after(0.005 * number):
            await a.request(b.peer_id, "echo", bytes(8_000_000), timeout=20)
    assert await a.request(b.peer_id, "echo", b"x", timeout=5) == b"x"
    assert live_connections(a.host, b.peer_id) == [connection]


async def test_an_exception_in_any_stream_handler_stays_there(pair: Networks) -> None:
    a, b = pair

    async def fail(stream: Any) -> None:
        await stream.read(1)
        raise RuntimeError("a bug")

    b.host.set_stream_handler(cast(Any, "/test/fail"), fail)
    b.serve("echo", echo)
    stream = await a.open_stream(b.peer_id, "/test/fail")
    await stream.write(b"x")
    with pytest.raises(StreamReset), trio.fail_after(5):
        await stream.read(1)
    assert await a.request(b.peer_id, "echo", b"x", timeout=5) == b"x"


async def test_an_occupied_port_is_an_error_that_names_the_address() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"/ip4/127.0.0.1/tcp/{other.getsockname()[1]}"
        with pytest.raises(PortInUse, match=address):
            async with opened(1, listen=(address,)):
                pytest.fail("it opened")


async def test_two_nodes_never_share_a_port() -> None:
    async with opened(1) as a:
        address = a.addresses()[0].split("/p2p/")[0]
        with pytest.raises(PortInUse, match=address):
            async with opened(2, listen=(address,)):
                pytest.fail("it opened")


async def test_a_closed_node_frees_its_port() -> None:
    async with opened(1) as a:
        address = a.addresses()[0].split("/p2p/")[0]
    async with opened(2, listen=(address,)) as b:
        assert b.addresses() == (f"{address}/p2p/{b.peer_id}",)


async def test_a_wildcard_tells_the_real_addresses() -> None:
    async with opened(1, listen=("/ip4/0.0.0.0/tcp/0",)) as a:
        assert not any("/0.0.0.0/" in address or "/tcp/0/" in address for address in a.addresses())
        assert any("/127.0.0.1/" in address for address in a.addresses())


async def test_announced_addresses_replace_the_others() -> None:
    async with opened(1, announce=("/dns4/node.example/tcp/4101",)) as a:
        assert a.addresses() == (f"/dns4/node.example/tcp/4101/p2p/{a.peer_id}",)


async def test_a_failed_dial_does_not_block_the_peer() -> None:
    async with opened(1) as a:
        async with opened(2) as b:
            address = b.addresses()[0]
        with pytest.raises(Unreachable):
            await a.connect(address)
        async with opened(2, listen=(address.split("/p2p/")[0],)) as b:
            with trio.fail_after(2):
                assert await a.connect(address) == b.peer_id


async def test_what_was_sent_before_a_close_is_read_after_it() -> None:
    size = 2_000_000
    received = 0
    async with opened(1) as a:
        async with opened(2) as b:
            done = trio.Event()

            async def read_slowly(peer: str, stream: trio.abc.HalfCloseableStream) -> None:
                nonlocal received
                async for piece in stream:
                    received += len(piece)
                    await trio.sleep(0.001)
                done.set()

            a.serve_tunnel("upload", read_slowly)
            await b.connect(a.addresses()[0])
            stream = await b.open_tunnel(a.peer_id, "upload", timeout=5)
            async with stream:
                await stream.send_all(bytes(size))
        with trio.fail_after(5):
            await done.wait()
    assert received == size


async def test_a_stalled_reader_does_not_break_its_tunnel(pair: Networks) -> None:
    a, b = pair
    size = 9_000_000
    go = trio.Event()

    async def stall(peer: str, stream: trio.abc.HalfCloseableStream) -> None:
        await go.wait()
        total = 0
        async for piece in stream:
            total += len(piece)
        await stream.send_all(str(total).encode())

    b.serve_tunnel("stall", stall)
    stream = await a.open_tunnel(b.peer_id, "stall", timeout=5)
    async with stream, trio.open_nursery() as nursery:

        async def feed() -> None:
            await stream.send_all(bytes(size))
            await stream.send_eof()

        nursery.start_soon(feed)
        await trio.sleep(6)  # py-libp2p gave up after 5 s with a full window
        go.set()
        with trio.fail_after(10):
            assert await stream.receive_some() == str(size).encode()


async def test_tunnels_of_one_peer_are_limited() -> None:
    async with two(tunnels=TunnelSettings(per_peer=2)) as (a, b):

        async def hold(peer: str, stream: trio.abc.HalfCloseableStream) -> None:
            await stream.receive_some()

        b.serve_tunnel("hold", hold)
        first = await a.open_tunnel(b.peer_id, "hold", timeout=5)
        await a.open_tunnel(b.peer_id, "hold", timeout=5)
        with pytest.raises(RemoteFault) as caught:
            await a.open_tunnel(b.peer_id, "hold", timeout=5)
        assert caught.value.code == "RESOURCE_EXHAUSTED"
        await first.aclose()
        await eventually(lambda: b._tunnels._open[a.peer_id] < 2)
        await a.open_tunnel(b.peer_id, "hold", timeout=5)


async def test_requests_beyond_the_bounds_are_refused() -> None:
    async with two(requests=RequestSettings(backlog=2)) as (a, b):
        go = trio.Event()

        async def wait(peer: str, data: bytes) -> bytes:
            await go.wait()
            return b"ok"

        b.serve("wait", wait, concurrency=1)
        answers: list[bytes] = []

        async def ask() -> None:
            answers.append(await a.request(b.peer_id, "wait", b"", timeout=10))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask)
            await eventually(lambda: b._methods._methods["wait"].limiter.statistics().tasks_waiting == 2)
            with pytest.raises(RemoteFault) as caught:
                await a.request(b.peer_id, "wait", b"", timeout=5)
            assert caught.value.code == "RESOURCE_EXHAUSTED"
            go.set()
        assert answers == [b"ok"] * 3


async def test_an_error_of_the_body_is_that_error() -> None:
    with pytest.raises(KeyError):
        async with open_network(identity=identity(1), settings=NetworkSettings()):
            raise KeyError("mine")


async def test_unsubscribing_leaves_the_topic(pair: Networks) -> None:
    a, b = pair
    inbox = b.subscribe("t", accept)
    await first_gossip(a, inbox, "t")
    inbox.close()
    await eventually(lambda: "t" not in b.pubsub.topic_ids)
    again = b.subscribe("t", accept)
    await first_gossip(a, again, "t")


def _open_streams(network: Libp2pNetwork) -> int:
    return sum(len(c.muxed_conn.streams) for peer in network.peers() for c in cast(Any, live_connections(network.host, peer)))


async def _echo_tunnel(peer: str, stream: trio.abc.HalfCloseableStream) -> None:
    async for piece in stream:
        await stream.send_all(piece)


async def _sink(peer: str, stream: trio.abc.HalfCloseableStream) -> None:
    async for _ in stream:
        pass
