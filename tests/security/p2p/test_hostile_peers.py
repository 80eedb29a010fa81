"""What a member with bad intentions, or a stranger, can send."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest
import trio
from libp2p import new_host
from libp2p.custom_types import TProtocol
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamReset
from libp2p.pubsub.pb import rpc_pb2
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport

from p2p import frames
from p2p.api import RequestTimeout, Unreachable
from p2p.frames import Kind
from p2p.gossip import PROTOCOL, Judge, Verdict, signed_part
from p2p.host import parse_address
from p2p.identity import ID_PREFIX, Identity, peer_id_bytes
from p2p.network import REQUEST, Libp2pNetwork
from p2p.settings import GossipSettings, RequestSettings
from tests.support.network_contract import accept, echo, eventually, first_gossip, gossip_flows
from tests.support.networks import identity, opened, two

Networks = tuple[Libp2pNetwork, Libp2pNetwork]
KEY, OTHER_KEY = "11" * 32, "22" * 32


@pytest.fixture
async def pair() -> AsyncGenerator[Networks, None]:
    async with two() as networks:
        yield networks


# --- gossip --------------------------------------------------------------------------------------


def message(author: Identity, data: bytes = b"data", topic: str = "t", number: int = 1) -> rpc_pb2.Message:
    made = rpc_pb2.Message(data=data, topicIDs=[topic], from_id=peer_id_bytes(author.peer_id), seqno=number.to_bytes(8, "big"))
    made.signature = author.sign(signed_part(made))
    return made


def judge() -> tuple[Judge, list[bytes]]:
    from p2p.gossip import Topic
    from p2p.queues import DropOldest

    made = Judge(cast(bytes, peer_id_bytes(identity(9).peer_id)), GossipSettings())
    heard: list[bytes] = []

    def validator(author: str, data: bytes) -> bool:
        heard.append(data)
        return data != b"bad"

    queue = DropOldest[Any](100)
    made.topics["t"] = Topic([(validator, queue)])
    cast(Any, made).reader = queue.reader()
    return made, heard


def test_a_signed_message_is_accepted_once() -> None:
    decides, heard = judge()
    assert decides.judge(message(identity(1)), 0.0) is Verdict.ACCEPT
    assert decides.judge(message(identity(1)), 1.0) is Verdict.IGNORE
    assert heard == [b"data"]


def test_forged_messages_never_reach_a_validator() -> None:
    decides, heard = judge()
    unsigned = message(identity(1))
    unsigned.ClearField("signature")
    altered = message(identity(1))
    altered.data = b"date"
    stolen = message(identity(1))
    stolen.from_id = cast(bytes, peer_id_bytes(identity(2).peer_id))
    renumbered = message(identity(1))
    renumbered.seqno = (2).to_bytes(8, "big")
    short = message(identity(1))
    short.seqno = b"1"
    short.signature = identity(1).sign(signed_part(short))
    keyed = message(identity(1))
    keyed.from_id = b"\x12\x20" + bytes(32)
    keyed.key = b"\x08\x01\x12\x20" + identity(1).key_pair.public_key.to_bytes()
    weak = message(identity(1))
    weak.from_id = ID_PREFIX + bytes(32)  # a point of small order
    weak.signature = bytes(64)
    forged = [unsigned, altered, stolen, renumbered, short, keyed, rpc_pb2.Message(topicIDs=["t"])]
    assert [decides.judge(each, 0.0) for each in forged] == [Verdict.FORGED] * len(forged)
    assert heard == []
    assert decides.counters.forged == len(forged)
    assert decides.judge(message(identity(1)), 0.0) is Verdict.ACCEPT, "forgeries must not make the true one look seen"
    decides.judge(weak, 0.0)


def test_foreign_topics_and_own_messages_are_ignored() -> None:
    decides, heard = judge()
    several = message(identity(1))
    several.topicIDs.append("u")
    for each in (message(identity(1), topic="u"), several, message(identity(9)), rpc_pb2.Message()):
        assert decides.judge(each, 0.0) is Verdict.IGNORE
    assert heard == []


def test_refused_and_oversized_messages_are_not_forwarded() -> None:
    decides, _ = judge()
    assert decides.judge(message(identity(1), b"bad"), 0.0) is Verdict.REFUSE
    assert decides.judge(message(identity(1), bytes(300_000), number=2), 0.0) is Verdict.REFUSE
    assert decides.counters.refused == 2


async def test_forged_gossip_on_the_wire_is_counted_and_dropped(pair: Networks) -> None:
    a, b = pair
    inbox = b.subscribe("t", accept)
    await first_gossip(a, inbox, "t")
    forged = message(identity(3), b"forged")
    forged.signature = bytes(64)
    stream = await a.open_stream(b.peer_id, PROTOCOL)
    await stream.write(_framed(rpc_pb2.RPC(publish=[forged]).SerializeToString()))
    await eventually(lambda: b.statistics().refused == 1)
    await a.publish("t", b"true")
    with trio.fail_after(5):
        assert (await inbox.receive()).data == b"true"


async def test_a_replay_of_what_another_published_is_not_delivered_twice(pair: Networks) -> None:
    a, b = pair
    inbox = b.subscribe("t", accept)
    await first_gossip(a, inbox, "t")
    stream = await a.open_stream(b.peer_id, PROTOCOL)
    old = _framed(rpc_pb2.RPC(publish=[message(identity(3), b"old")]).SerializeToString())
    for _ in range(3):
        await stream.write(old)
    await gossip_flows(a, inbox, "t")
    assert b.statistics().refused == 0


async def test_random_bytes_on_the_gossip_protocol_do_no_harm(pair: Networks) -> None:
    a, b = pair
    inbox = b.subscribe("t", accept)
    await first_gossip(a, inbox, "t")
    rng = random.Random(1)
    for number in range(30):
        stream = await a.open_stream(b.peer_id, PROTOCOL)
        body = rng.randbytes(rng.randrange(1, 2000))
        await stream.write(body if number % 2 else _framed(body))
        await stream.close()
    await gossip_flows(a, inbox, "t")
    assert b.peers() == {a.peer_id}


# --- requests ------------------------------------------------------------------------------------


async def test_random_bytes_on_the_request_protocol_do_no_harm(pair: Networks) -> None:
    a, b = pair
    b.serve("echo", echo)
    rng = random.Random(1)
    for _ in range(30):
        stream = await a.open_stream(b.peer_id, REQUEST)
        await stream.write(rng.randbytes(rng.randrange(1, 2000)))
        await stream.close()
    assert await a.request(b.peer_id, "echo", b"x", timeout=5) == b"x"
    await eventually(lambda: b._server._loads[a.peer_id].streams == 1)


@pytest.mark.parametrize(
    "wire",
    [
        frames.encode(Kind.ANSWER, 1, b"\0\0\0\0"),
        frames.encode(Kind.FAULT, 1),
        b"".join([frames.encode(Kind.BEGIN, 1, frames._BEGIN.pack(1000, 9, 0))] * 2),
        frames.encode(Kind.BEGIN, 1, frames._BEGIN.pack(1000, 1, 0)) + frames.encode(Kind.DATA, 1, b"xx"),
        frames.encode(Kind.BEGIN, 1, b"short"),
    ],
)
async def test_violations_end_the_stream(pair: Networks, wire: bytes) -> None:
    a, b = pair
    stream = await a.open_stream(b.peer_id, REQUEST)
    await stream.write(wire)
    with pytest.raises(StreamReset), trio.fail_after(5):
        await _read_all(stream)


async def test_what_one_peer_keeps_busy_is_bounded() -> None:
    async with two(requests=RequestSettings(per_peer=4, assembling=1000)) as (a, b):
        b.serve("echo", echo)
        stream = await a.open_stream(b.peer_id, REQUEST)
        for number in range(10):  # announced, never completed
            await stream.write(frames.encode(Kind.BEGIN, number, frames._BEGIN.pack(60_000, 10, 4) + b"echo"))
        reader = frames.FrameReader()
        refused: list[str] = []
        with trio.fail_after(5):
            while len(refused) < 5:
                refused += [frames.decode_fault(f.payload)[0] for f in reader.feed(await stream.read(1000)) if f.kind is Kind.FAULT]
        assert set(refused) == {"RESOURCE_EXHAUSTED"}
        assert b._server._loads[a.peer_id].requests == 4
        await stream.reset()
        await eventually(lambda: a.peer_id not in b._server._loads)
        assert await a.request(b.peer_id, "echo", b"x", timeout=5) == b"x"


async def test_an_announced_size_beyond_the_limit_is_refused(pair: Networks) -> None:
    a, b = pair
    stream = await a.open_stream(b.peer_id, REQUEST)
    await stream.write(frames.encode(Kind.BEGIN, 1, frames._BEGIN.pack(1000, 0xFFFFFFFF, 0)))
    with trio.fail_after(5):
        (frame,) = frames.FrameReader().feed(await stream.read(1000))
    assert frames.decode_fault(frame.payload)[0] == "INVALID_ARGUMENT"


async def test_a_hostile_answer_ends_the_request_and_not_the_node(pair: Networks) -> None:
    a, b = pair

    async def lie(stream: Any) -> None:
        await stream.read(1000)
        await stream.write(frames.encode(Kind.ANSWER, 1, b"\xff\xff\xff\xff"))
        await trio.sleep_forever()

    b.host.set_stream_handler(TProtocol(REQUEST), lie)
    with pytest.raises((Unreachable, RequestTimeout)):
        await a.request(b.peer_id, "echo", b"x", timeout=5)
    assert a.peers() == {b.peer_id}


# --- admission -----------------------------------------------------------------------------------


async def test_the_right_swarm_key_joins() -> None:
    async with two(psk=KEY) as (a, b):
        b.serve("echo", echo)
        inbox = b.subscribe("t", accept)
        assert await a.request(b.peer_id, "echo", bytes(100_000), timeout=5) == bytes(100_000)
        await gossip_flows(a, inbox, "t")
        assert a.remote_host(b.peer_id) == "127.0.0.1"


@pytest.mark.parametrize(("one", "other"), [(KEY, OTHER_KEY), (KEY, None), (None, KEY)])
async def test_another_swarm_key_or_none_stays_out(one: str | None, other: str | None) -> None:
    async with opened(1, psk=one) as a, opened(2, psk=other) as b:
        with pytest.raises(Unreachable):
            await b.connect(a.addresses()[0])
        assert a.peers() == b.peers() == frozenset()


async def test_only_peers_on_the_allow_list_connect() -> None:
    allowed = identity(2).peer_id
    async with opened(1, allow=frozenset({allowed})) as a, opened(2) as b, opened(3) as c:
        for _ in range(8):  # more than the failures that close libp2p's circuit breaker for everybody
            with pytest.raises(Unreachable):
                await _connect_and_stay(c, a)
        assert c.peer_id not in a.peers()
        await b.connect(a.addresses()[0])
        await eventually(lambda: a.peers() == {allowed})
        with pytest.raises(Unreachable):
            await a.connect(c.addresses()[0])


async def _connect_and_stay(network: Libp2pNetwork, other: Libp2pNetwork) -> None:
    """The refused side may believe for a moment that it is connected."""
    await network.connect(other.addresses()[0])
    await eventually(lambda: other.peer_id not in network.peers())
    raise Unreachable("dropped")


async def test_plaintext_with_a_stolen_identity_is_refused() -> None:
    async with opened(1) as a:
        pair = identity(2).key_pair
        thief = new_host(key_pair=pair, sec_opt={TProtocol(PLAINTEXT_PROTOCOL_ID): InsecureTransport(pair)})
        async with thief.run([]):
            peer, address = parse_address(a.addresses()[0])
            with pytest.raises(SwarmException), trio.fail_after(5):
                await cast(Any, thief.get_network()).dial_addr(address, a.host.get_id())
            await trio.sleep(0.1)
            assert a.peers() == frozenset()
            assert peer == a.peer_id


async def test_an_address_with_the_wrong_peer_id_is_not_connected() -> None:
    async with opened(1) as a, opened(2) as b:
        false = b.addresses()[0].replace(b.peer_id, identity(3).peer_id)
        with pytest.raises(Unreachable):
            await a.connect(false)
        with pytest.raises(Unreachable):
            await a.connect(a.addresses()[0])


async def test_strangers_that_connect_and_say_nothing_do_no_harm() -> None:
    async with opened(1) as a, opened(2) as b:
        port = int(a.addresses()[0].split("/")[4])
        silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(30)]
        garbage = await trio.open_tcp_stream("127.0.0.1", port)
        await garbage.send_all(random.Random(1).randbytes(5000))
        started = time.monotonic()
        await b.connect(a.addresses()[0])
        assert time.monotonic() - started < 2
        for stream in (*silent, garbage):
            await stream.aclose()


async def _read_all(stream: Any) -> None:
    while True:
        await stream.read(100)


def _framed(body: bytes) -> bytes:
    length, out = len(body), bytearray()
    while length > 0x7F:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*out, length]) + body
