"""What every `p2p.api.Network` must do. A test module subclasses `NetworkContract` and gives the fixture ``pair``:
two connected networks."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio

from p2p.api import (
    MAX_GOSSIP_BYTES,
    MAX_REQUEST_BYTES,
    GossipMessage,
    Network,
    PeerEvent,
    RemoteFault,
    RequestTimeout,
    Unreachable,
)

Pair = tuple[Network, Network]
STRANGER = "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"


def accept(author: str, data: bytes) -> bool:
    return True


async def eventually(condition: Callable[[], bool], within: float = 10.0) -> None:
    """For states of another component that tell nobody when they change."""
    with trio.fail_after(within):
        while not condition():
            await trio.sleep(0.01)


async def gossip_flows(sender: Network, receiver: trio.MemoryReceiveChannel[GossipMessage], topic: str, within: float = 10.0) -> None:
    """Returns when something published from now on arrives. Single messages may get lost while a mesh forms."""
    token = secrets.token_bytes(8)
    async with trio.open_nursery() as nursery:

        async def knock() -> None:
            while True:
                await sender.publish(topic, token)
                await trio.sleep(0.05)

        nursery.start_soon(knock)
        with trio.fail_after(within):
            while (await receiver.receive()).data != token:
                pass
        nursery.cancel_scope.cancel()


async def first_gossip(sender: Network, receiver: trio.MemoryReceiveChannel[GossipMessage], topic: str) -> None:
    """Returns when gossip flows, and drains what it sent for that."""
    await gossip_flows(sender, receiver, topic)
    await gossip_flows(sender, receiver, topic)  # the first may have come by a replay, ahead of the mesh
    await sender.publish(topic, b"end of knocks")
    with trio.fail_after(10):
        async for message in receiver:
            if message.data == b"end of knocks":
                return


async def echo(peer: str, data: bytes) -> bytes:
    return data


class NetworkContract:
    """Each test gets a fresh pair."""

    async def test_peers_know_each_other(self, pair: Pair) -> None:
        a, b = pair
        await eventually(lambda: b.peer_id in a.peers() and a.peer_id in b.peers())
        assert a.remote_host(b.peer_id) == "127.0.0.1"
        assert a.remote_host(STRANGER) is None
        assert all(address.endswith(f"/p2p/{a.peer_id}") for address in a.addresses())
        assert a.statistics().connected == 1

    async def test_disconnecting_is_told_to_both(self, pair: Pair) -> None:
        a, b = pair
        await eventually(lambda: a.peer_id in b.peers())
        events_a, events_b = a.peer_events(), b.peer_events()
        await a.disconnect(b.peer_id)
        with trio.fail_after(5):
            assert await events_a.receive() == PeerEvent(b.peer_id, connected=False)
            assert await events_b.receive() == PeerEvent(a.peer_id, connected=False)
            assert await a.connect(b.addresses()[0]) == b.peer_id
            assert await events_a.receive() == PeerEvent(b.peer_id, connected=True)
            assert await events_b.receive() == PeerEvent(a.peer_id, connected=True)

    async def test_gossip_reaches_the_other_and_not_oneself(self, pair: Pair) -> None:
        a, b = pair
        at_a, at_b = a.subscribe("topic", accept), b.subscribe("topic", accept)
        await first_gossip(a, at_b, "topic")
        await a.publish("topic", b"hello")
        with trio.fail_after(5):
            assert await at_b.receive() == GossipMessage("topic", a.peer_id, b"hello")
        with pytest.raises(trio.WouldBlock):
            at_a.receive_nowait()

    async def test_a_refused_message_is_counted_and_not_delivered(self, pair: Pair) -> None:
        a, b = pair
        at_b = b.subscribe("topic", lambda author, data: author == a.peer_id and data != b"bad")
        await first_gossip(a, at_b, "topic")
        await a.publish("topic", b"bad")
        await a.publish("topic", b"good")
        with trio.fail_after(5):
            assert (await at_b.receive()).data == b"good"
        await eventually(lambda: b.statistics().refused == 1)

    async def test_a_validator_that_fails_refuses(self, pair: Pair) -> None:
        a, b = pair

        def validator(author: str, data: bytes) -> bool:
            if data == b"bad":
                raise RuntimeError("a bug")
            return True

        at_b = b.subscribe("topic", validator)
        await first_gossip(a, at_b, "topic")
        await a.publish("topic", b"bad")
        await a.publish("topic", b"good")
        with trio.fail_after(5):
            assert (await at_b.receive()).data == b"good"

    async def test_a_full_queue_drops_the_oldest(self, pair: Pair) -> None:
        a, b = pair
        at_b = b.subscribe("topic", accept, capacity=2)
        await first_gossip(a, at_b, "topic")
        before = b.statistics()
        for number in range(5):
            await a.publish("topic", bytes([number]))
        await eventually(lambda: b.statistics().delivered == before.delivered + 5)
        kept = [at_b.receive_nowait().data[0] for _ in range(2)]
        assert len(set(kept)) == 2
        assert b.statistics().dropped == before.dropped + 3

    async def test_too_large_gossip_is_an_error(self, pair: Pair) -> None:
        with pytest.raises(ValueError, match="gossip"):
            await pair[0].publish("topic", bytes(MAX_GOSSIP_BYTES + 1))

    async def test_the_largest_gossip_arrives(self, pair: Pair) -> None:
        a, b = pair
        at_b = b.subscribe("topic", accept)
        await first_gossip(a, at_b, "topic")
        await a.publish("topic", b"x" * MAX_GOSSIP_BYTES)
        with trio.fail_after(10):
            assert len((await at_b.receive()).data) == MAX_GOSSIP_BYTES

    async def test_request_and_answer(self, pair: Pair) -> None:
        a, b = pair

        async def who(peer: str, data: bytes) -> bytes:
            return peer.encode() + b" " + data

        b.serve("who", who)
        assert await a.request(b.peer_id, "who", b"asks", timeout=5) == f"{a.peer_id} asks".encode()
        assert a.statistics().requests == 1

    @pytest.mark.parametrize("size", [0, 1, 32 * 1024, 32 * 1024 + 1, 1_000_000])
    async def test_sizes(self, pair: Pair, size: int) -> None:
        a, b = pair
        b.serve("echo", echo)
        data = bytes(range(256)) * (size // 256) + bytes(size % 256)
        assert await a.request(b.peer_id, "echo", data, timeout=20) == data

    async def test_too_large_a_request_is_an_error(self, pair: Pair) -> None:
        a, b = pair
        with pytest.raises(ValueError, match="request"):
            await a.request(b.peer_id, "echo", bytes(MAX_REQUEST_BYTES + 1), timeout=5)

    async def test_a_request_to_oneself(self, pair: Pair) -> None:
        a, _ = pair
        a.serve("echo", echo)
        assert await a.request(a.peer_id, "echo", b"me", timeout=5) == b"me"

        async def slow(peer: str, data: bytes) -> bytes:
            await trio.sleep_forever()
            return b""

        a.serve("slow", slow)
        with pytest.raises(RequestTimeout):
            await a.request(a.peer_id, "slow", b"me", timeout=0.1)

    async def test_refusals_keep_their_code(self, pair: Pair) -> None:
        a, b = pair

        async def refuse(peer: str, data: bytes) -> bytes:
            raise RemoteFault("FENCED", "a higher ballot: é")

        b.serve("refuse", refuse)
        with pytest.raises(RemoteFault) as caught:
            await a.request(b.peer_id, "refuse", b"", timeout=5)
        assert (caught.value.code, caught.value.message) == ("FENCED", "a higher ballot: é")

    async def test_a_handler_that_fails_tells_nothing(self, pair: Pair) -> None:
        a, b = pair

        async def fail(peer: str, data: bytes) -> bytes:
            raise RuntimeError("secret path")

        b.serve("fail", fail)
        b.serve("echo", echo)
        with pytest.raises(RemoteFault) as caught:
            await a.request(b.peer_id, "fail", b"", timeout=5)
        assert caught.value.code == "INTERNAL"
        assert "secret" not in str(caught.value)
        assert await a.request(b.peer_id, "echo", b"still there", timeout=5) == b"still there"

    async def test_an_unknown_method(self, pair: Pair) -> None:
        a, b = pair
        with pytest.raises(RemoteFault) as caught:
            await a.request(b.peer_id, "nothing", b"", timeout=5)
        assert caught.value.code == "UNIMPLEMENTED"

    async def test_a_request_times_out_and_its_handler_ends(self, pair: Pair) -> None:
        a, b = pair
        ended = trio.Event()
        b.serve("slow", _forever(ended))
        with pytest.raises(RequestTimeout):
            await a.request(b.peer_id, "slow", b"", timeout=0.2)
        with trio.fail_after(5):
            await ended.wait()
        assert a.statistics().request_failures == 1

    async def test_cancelling_a_request_cancels_its_handler(self, pair: Pair) -> None:
        a, b = pair
        started, ended = trio.Event(), trio.Event()
        b.serve("slow", _forever(ended, started))
        b.serve("echo", echo)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_ask_for_ever, a, b.peer_id)
            with trio.fail_after(5):
                await started.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(5):
            await ended.wait()
        assert await a.request(b.peer_id, "echo", b"on", timeout=5) == b"on"

    async def test_concurrency_is_bounded_and_the_rest_waits(self, pair: Pair) -> None:
        a, b = pair
        running = most = 0

        async def count(peer: str, data: bytes) -> bytes:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await trio.sleep(0.01)
            running -= 1
            return b""

        b.serve("count", count, concurrency=3)
        async with trio.open_nursery() as nursery:
            for _ in range(12):
                nursery.start_soon(lambda: a.request(b.peer_id, "count", b"", timeout=10))
        assert most == 3

    async def test_a_stranger_is_unreachable(self, pair: Pair) -> None:
        a, _ = pair
        with pytest.raises(Unreachable):
            await a.request(STRANGER, "echo", b"", timeout=5)
        with pytest.raises(Unreachable):
            await a.open_tunnel(STRANGER, "echo", timeout=5)
        with pytest.raises(Unreachable):
            await a.connect("nonsense")

    async def test_requests_dial_known_addresses(self, pair: Pair) -> None:
        a, b = pair
        b.serve("echo", echo)
        await a.disconnect(b.peer_id)
        a.add_address(b.peer_id, b.addresses())
        assert await a.request(b.peer_id, "echo", b"again", timeout=5) == b"again"

    async def test_a_tunnel_is_a_stream_with_two_ends(self, pair: Pair) -> None:
        a, b = pair

        async def shout(peer: str, stream: trio.abc.HalfCloseableStream) -> None:
            heard = b"".join([piece async for piece in stream])  # until the other side's end
            await stream.send_all(peer.encode() + heard.upper())

        b.serve_tunnel("shout", shout)
        stream = await a.open_tunnel(b.peer_id, "shout", timeout=5)
        async with stream:
            await stream.send_all(b"hello ")
            await stream.send_all(b"there")
            await stream.send_eof()
            with trio.fail_after(5):
                answer = b"".join([piece async for piece in stream])
        assert answer == a.peer_id.encode() + b"HELLO THERE"
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"more")

    async def test_a_tunnel_carries_much_data_both_ways(self, pair: Pair) -> None:
        a, b = pair
        size = 3_000_000

        async def back(peer: str, stream: trio.abc.HalfCloseableStream) -> None:
            async for piece in stream:
                await stream.send_all(piece)

        b.serve_tunnel("back", back)
        received = 0
        stream = await a.open_tunnel(b.peer_id, "back", timeout=5)
        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(_send_and_end, stream, bytes(size))
            with trio.fail_after(30):
                async for piece in stream:
                    received += len(piece)
        assert received == size

    async def test_an_unknown_tunnel(self, pair: Pair) -> None:
        a, b = pair
        with pytest.raises(RemoteFault) as caught:
            await a.open_tunnel(b.peer_id, "nothing", timeout=5)
        assert caught.value.code == "UNIMPLEMENTED"

    async def test_a_tunnel_handler_that_fails_ends_its_tunnel_only(self, pair: Pair) -> None:
        a, b = pair

        async def fail(peer: str, stream: trio.abc.HalfCloseableStream) -> None:
            raise RuntimeError("a bug")

        b.serve_tunnel("fail", fail)
        b.serve("echo", echo)
        with suppress(Unreachable, trio.BrokenResourceError), trio.fail_after(5):
            async with await a.open_tunnel(b.peer_id, "fail", timeout=5) as stream:
                assert await stream.receive_some() == b""
        assert await a.request(b.peer_id, "echo", b"on", timeout=5) == b"on"


def _forever(ended: trio.Event, started: trio.Event | None = None) -> Callable[[str, bytes], Awaitable[bytes]]:
    async def handler(peer: str, data: bytes) -> bytes:
        if started is not None:
            started.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()
        return b""

    return handler


async def _ask_for_ever(network: Network, peer: str) -> None:
    await network.request(peer, "slow", b"", timeout=1000)


async def _send_and_end(stream: trio.abc.HalfCloseableStream, data: bytes) -> None:
    await stream.send_all(data)
    await stream.send_eof()
