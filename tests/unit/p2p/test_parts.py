"""The small parts: queues, outbox, what was seen, settings, addresses, health, mDNS records, single errors."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio
import trio.testing
from multiaddr import Multiaddr

from p2p import health, mdns
from p2p import host as hosts
from p2p.api import NetworkError, Unreachable
from p2p.gossip import take_frame
from p2p.groups import collapse
from p2p.identity import Identity
from p2p.outbox import BATCH, Closed, Outbox
from p2p.queues import DropOldest
from p2p.seen import SeenMessages
from p2p.settings import HealthSettings, NetworkSettings, mdns_service


async def test_the_oldest_gives_way() -> None:
    queue = DropOldest[int](2)
    reader = queue.reader()
    assert all(queue.put(number) for number in range(5))
    assert [reader.receive_nowait(), reader.receive_nowait()] == [3, 4]
    assert queue.dropped == 3
    queue.close()
    with pytest.raises(trio.EndOfChannel):
        reader.receive_nowait()


def test_who_has_another_kind_of_key_is_not_admitted() -> None:
    """Such a peer could not be answered: its id does not say its key."""
    gate = hosts.Gate(NetworkSettings())
    rsa, ed25519 = hosts.ID(b"\x12\x20" + bytes(32)), hosts.to_id(Identity.generate().peer_id)
    assert gate.open_connection(rsa) is None
    assert gate.refused == 1
    assert gate.open_connection(ed25519) is not None
    assert gate.open_connection(None) is not None, "before the handshake nobody is known"


async def test_a_queue_without_reader_takes_nothing() -> None:
    queue = DropOldest[int](2)
    assert not queue.put(1)
    reader = queue.reader()
    clone = reader.clone()
    reader.close()
    assert queue.put(1)
    clone.close()
    assert not queue.put(2)
    with pytest.raises(ValueError, match="capacity"):
        DropOldest[int](0)


async def test_an_outbox_keeps_order_and_joins_small_frames(autojump_clock: trio.testing.MockClock) -> None:
    box = Outbox(limit=100)
    for number in range(10):
        await box.put(bytes([number]))
    assert await box.take() == bytes(range(10))
    await box.put(bytes(BATCH))
    box.put_nowait(b"x")
    assert len(await box.take()) == BATCH
    assert await box.take() == b"x"


async def test_an_outbox_makes_writers_wait(autojump_clock: trio.testing.MockClock) -> None:
    box = Outbox(limit=10)
    await box.put(bytes(10))
    with trio.move_on_after(1) as scope:
        await box.put(b"more")
    assert scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(box.put, b"more")
        await trio.testing.wait_all_tasks_blocked()
        assert len(await box.take()) == 10
    assert await box.take() == b"more"


async def test_a_closed_outbox_wakes_everyone(autojump_clock: trio.testing.MockClock) -> None:
    box, empty = Outbox(limit=1), Outbox(limit=1)
    await box.put(b"x")

    async def wait(function: Any, *args: Any) -> None:
        with pytest.raises(Closed):
            await function(*args)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, box.put, b"y")
        nursery.start_soon(wait, empty.take)
        await trio.testing.wait_all_tasks_blocked()
        box.close()
        empty.close()


def test_seen_messages_expire_and_are_bounded() -> None:
    seen = SeenMessages(ttl=10, most=3)
    seen.add(b"a", 0)
    assert seen.has(b"a", 9.9)
    assert not seen.has(b"a", 10)
    for number in range(10):
        seen.add(bytes([number]), 11)
    assert len(seen) == 3
    assert seen.has(bytes([9]), 11)
    seen.add(b"z", 100)
    assert len(seen) == 1


def test_gossip_frames_of_any_cut() -> None:
    rng = random.Random(1)
    bodies = [rng.randbytes(size) for size in (0, 1, 127, 128, 300, 20_000)]
    wire = b"".join(_varint(len(body)) + body for body in bodies)
    buffer, found = bytearray(), list[bytes]()
    for byte in wire:
        buffer.append(byte)
        while (frame := take_frame(buffer, 30_000)) is not None:
            found.append(frame)
    assert found == bodies
    with pytest.raises(ValueError, match="30001"):
        take_frame(bytearray(_varint(30_001)), 30_000)
    with pytest.raises(ValueError, match="not a gossip frame"):
        take_frame(bytearray(b"\xff" * 5), 30_000)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def test_swarm_keys_are_checked() -> None:
    NetworkSettings(psk="aB" * 32)
    for bad in ("", "ab", "zz" * 32):
        with pytest.raises(ValueError, match="64 hexadecimal"):
            NetworkSettings(psk=bad)


def test_swarms_have_service_names_of_their_own() -> None:
    assert mdns_service("one") != mdns_service("two")
    assert all(len(mdns_service(name).split(".")[0]) <= 16 for name in ("", "x" * 500, "é"))


def test_mdns_records() -> None:
    addresses = tuple(f"/ip4/10.0.0.{number}/tcp/1/p2p/x" for number in range(20))
    record = {key.encode(): value.encode() for key, value in mdns.encode_addresses(addresses).items()}  # type: ignore[union-attr]
    assert mdns.decode_addresses(record) == addresses[: mdns.MOST_ADDRESSES]  # type: ignore[arg-type]
    assert mdns.decode_addresses({b"other": b"x", b"dnsaddr": None, b"dnsaddr2": b"\xff"}) == ("\ufffd",)


def test_addresses_of_peers() -> None:
    peer = Identity(bytes(32)).peer_id
    assert hosts.parse_address(f"/ip4/10.0.0.1/tcp/4101/p2p/{peer}") == (peer, Multiaddr("/ip4/10.0.0.1/tcp/4101"))
    rsa = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
    for bad in ("", "nonsense", "/ip4/10.0.0.1/tcp/4101", f"/p2p/{peer}", f"/ip4/1.1.1.1/tcp/1/p2p/{rsa}"):
        with pytest.raises(Unreachable):
            hosts.parse_address(bad)
    with pytest.raises(Unreachable):
        hosts.to_id(rsa)


def test_loopback_is_tried_last() -> None:
    found = hosts.dialable(["/ip4/127.0.0.1/tcp/1", "junk", "/ip4/10.0.0.1/udp/1", "/ip4/10.0.0.1/tcp/1/p2p/x", "/ip4/10.0.0.1/tcp/1"])
    assert [str(address) for address in found] == ["/ip4/10.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/1"]


def test_wildcards_expand() -> None:
    interfaces = ("10.0.0.1", "fd00::1", "127.0.0.1")
    assert [str(a) for a in hosts.expand(Multiaddr("/ip4/0.0.0.0/tcp/1"), interfaces)] == ["/ip4/10.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/1"]
    assert [str(a) for a in hosts.expand(Multiaddr("/ip6/::/tcp/1"), interfaces)] == ["/ip6/fd00::1/tcp/1"]
    assert [str(a) for a in hosts.expand(Multiaddr("/ip4/10.9.9.9/tcp/1"), interfaces)] == ["/ip4/10.9.9.9/tcp/1"]
    assert "127.0.0.1" in hosts.interface_addresses()


def test_an_address_that_is_not_here_cannot_be_bound() -> None:
    with pytest.raises(NetworkError, match=r"192\.0\.2\.1"):
        hosts.check_port("/ip4/192.0.2.1/tcp/0")


@pytest.mark.parametrize(
    ("now", "pinged", "heard", "silent"),
    [(3.9, 0.0, -1.0, False), (4.0, 0.0, -1.0, True), (4.0, 0.0, 0.5, False), (100.0, 0.0, 0.0, False), (100.0, 99.0, 98.0, False)],
)
def test_silence(now: float, pinged: float, heard: float, silent: bool) -> None:
    assert health.is_silent(now, pinged, heard, HealthSettings(timeout=4.0)) is silent


async def test_one_error_in_nurseries_is_that_error() -> None:
    with pytest.raises(KeyError), collapse():
        async with trio.open_nursery(), trio.open_nursery():
            raise KeyError("x")
    with pytest.raises(ExceptionGroup), collapse():
        raise ExceptionGroup("two", [KeyError("x"), ValueError("y")])
