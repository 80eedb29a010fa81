"""The swarm's DHT between real hosts on loopback, in a line: who asks is not connected to who has."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.peerinfo import PeerInfo

from p2p.api import Unreachable
from p2p.dht.dht import SwarmDht
from p2p.dht.host import DhtStream
from p2p.dht.patches import PROTOCOL
from p2p.dht.settings import DhtSettings
from p2p.host import to_id
from p2p.ipfs import cid as cids
from p2p.ipfs.api import BlockMissing
from p2p.ipfs.embedded import EmbeddedStore, open_embedded
from p2p.ipfs.settings import ExchangeSettings, StoreSettings
from p2p.network import Libp2pNetwork
from p2p.settings import DialSettings
from tests.support.network_contract import eventually
from tests.support.networks import identity, opened
from tests.support.unixfs_reference import CHUNK, pattern

NOBODY_BY_ITSELF = DialSettings(timeout=2.0, target_peers=0)
QUICK = StoreSettings(reserve_bytes=0, exchange=ExchangeSettings(stall=1.0, hedge=0.5, tick=0.05, open_timeout=2))
SHORT = DhtSettings(timeout=5.0, answer_timeout=1.0, lacking=0.2)


class Numbers:
    """A kind of record: the number, larger ones are newer, and the name must be in it."""

    def check(self, name: str, value: bytes) -> None:
        if not value.startswith(name.encode() + b"=") or not value.partition(b"=")[2].isdigit():
            raise ValueError("forged")

    def newer(self, name: str, value: bytes, than: bytes) -> bool:
        return int(value.partition(b"=")[2]) > int(than.partition(b"=")[2])


class Swarm:
    def __init__(self, networks: list[Libp2pNetwork], dhts: list[SwarmDht], folder: Path, nursery: trio.Nursery) -> None:
        self.networks, self.dhts = networks, dhts
        self._folder, self._nursery = folder, nursery

    async def store(self, index: int, *, searches: bool = True) -> EmbeddedStore:
        return await self._nursery.start(self._hold, index, searches)

    async def _hold(self, index: int, searches: bool, task_status: trio.TaskStatus[EmbeddedStore]) -> None:
        network = self.networks[index]
        async with open_embedded(
            self._folder / str(index),
            host=network.host,
            connected=network.peers,
            open_stream=network.open_stream,
            find_providers=self.dhts[index].find_providers if searches else None,
            settings=QUICK,
        ) as store:
            task_status.started(store)
            await trio.sleep_forever()


@asynccontextmanager
async def line(folder: Path, count: int, settings: DhtSettings = SHORT) -> AsyncGenerator[Swarm]:
    """0 - 1 - 2 - ..., each connected to the next, and aware of where that one listens."""
    async with AsyncExitStack() as stack:
        networks = [await stack.enter_async_context(opened(n, dial=NOBODY_BY_ITSELF)) for n in range(1, count + 1)]
        for a, b in pairwise(networks):
            await a.connect(b.addresses()[0])
        dhts = [SwarmDht(network, {"numbers": Numbers()}, settings) for network in networks]
        async with trio.open_nursery() as nursery:
            for dht in dhts:
                await nursery.start(dht.run)
            yield Swarm(networks, dhts, folder, nursery)
            nursery.cancel_scope.cancel()


@pytest.fixture
async def swarm(tmp_path: Path) -> AsyncIterator[Swarm]:
    async with line(tmp_path, 4) as made:
        yield made


async def test_what_nobody_near_has_is_found_and_fetched(swarm: Swarm):
    data = pattern(5 * CHUNK)
    holder, asker, without = await swarm.store(3), await swarm.store(0), await swarm.store(1, searches=False)
    cid = await holder.add_bytes(data, durable=False)
    assert await swarm.dhts[3].provide(cid) >= 1
    with pytest.raises(BlockMissing):
        await without.get_bytes(cid, timeout=3)
    assert swarm.networks[3].peer_id not in swarm.networks[0].peers()
    assert await asker.get_bytes(cid, timeout=5) == data, "leaves, which are not announced, come from who had the root"
    assert swarm.dhts[0].statistics()["found"] == 1
    assert swarm.dhts[0].statistics()["searched"] == 1, "and nobody was asked about them"


async def test_it_works_with_more_nodes_than_a_bucket_of_a_routing_table_holds(tmp_path: Path):
    """The search goes from one to the next twenty times: nobody knows more than its neighbours when it begins."""
    async with line(tmp_path, 26, DhtSettings(timeout=60.0, answer_timeout=10.0)) as swarm:
        for before, after in pairwise(swarm.networks):
            after.add_address(before.peer_id, before.addresses())  # as its heartbeat tells
        holder, asker = await swarm.store(25), await swarm.store(0)
        data = pattern(3 * CHUNK)
        cid = await holder.add_bytes(data, durable=False)
        assert await swarm.dhts[25].provide(cid) >= 1
        assert await asker.get_bytes(cid, timeout=60) == data
        await swarm.dhts[3].put("numbers", "n", b"n=1")
        assert await swarm.dhts[22].get("numbers", "n") == b"n=1"
        connected = [len(network.peers()) for network in swarm.networks]
        assert max(connected) < 25, "nobody has met everybody"


async def test_a_private_block_is_not_looked_for(swarm: Swarm):
    asker = await swarm.store(0)
    cid = cids.compute(cids.RAW, b"a tensor").text
    with pytest.raises(BlockMissing):
        await asker.private_to("job").get_bytes(cid, timeout=2)
    assert "searched" not in swarm.dhts[0].statistics()
    with pytest.raises(BlockMissing):
        await asker.get_bytes(cid, timeout=2)
    assert swarm.dhts[0].statistics()["searched"] == 1


async def test_a_search_that_found_nothing_is_not_repeated_at_once(swarm: Swarm):
    cid = cids.compute(cids.RAW, b"nobody's").text
    assert await swarm.dhts[0].find_providers(cid) == ()
    assert await swarm.dhts[0].find_providers(cid) == ()
    assert swarm.dhts[0].statistics()["searched"] == 1
    await trio.sleep(SHORT.lacking)  # the time that is promised, not a wait for anything
    assert await swarm.dhts[0].find_providers(cid) == ()
    assert swarm.dhts[0].statistics()["searched"] == 2


async def test_the_newest_record_is_read_and_an_older_one_does_not_come_back(swarm: Swarm):
    first, _, _, last = swarm.dhts
    assert await first.get("numbers", "x") is None
    assert await last.put("numbers", "x", b"x=1") >= 1
    assert await first.get("numbers", "x") == b"x=1"
    assert await last.put("numbers", "x", b"x=3") >= 1
    assert await first.get("numbers", "x") == b"x=3"
    assert await first._store_at(b"/numbers/x", b"x=2", to_id(swarm.networks[1].peer_id)) is False, "it knows a newer one"
    assert await first._store_at(b"/numbers/x", b"x=3", to_id(swarm.networks[1].peer_id)) is True, "and keeps that for longer"
    assert await last.get("numbers", "x") == b"x=3"
    with pytest.raises(ValueError, match="newer"):
        await last.put("numbers", "x", b"x=2")


async def test_a_forged_record_is_neither_stored_nor_believed(swarm: Swarm):
    liar, victim = swarm.dhts[1], swarm.dhts[0]
    with pytest.raises(ValueError, match="forged"):
        await victim.put("numbers", "x", b"y=9")
    assert await liar._store_at(b"/numbers/x", b"y=9", to_id(swarm.networks[0].peer_id)) is False
    assert await liar._store_at(b"/ipns/x", b"x=9", to_id(swarm.networks[0].peer_id)) is False, "no such kind here"
    assert victim.statistics()["records"] == 0
    liar._records.put(b"/numbers/x", b"y=9")
    assert await victim.get("numbers", "x") is None
    assert victim.statistics()["refused"] == 1


async def test_nobody_announces_for_somebody_else(swarm: Swarm):
    liar, other = swarm.dhts[1], to_id(swarm.networks[3].peer_id)
    key = cids.compute(cids.RAW, b"content").binary[2:]
    message = Message(type=Message.ADD_PROVIDER, key=key)
    message.providerPeers.add(id=other.to_bytes(), addrs=[a.to_bytes() for a in liar._host.get_addrs()])
    stream = await liar._host.new_stream(to_id(swarm.networks[0].peer_id), [PROTOCOL])
    data = message.SerializeToString()
    await stream.write(bytes([len(data)]) + data)
    assert await stream.read(1)
    await stream.close()
    assert swarm.dhts[0].statistics()["providers"] == 0


async def test_a_peer_that_says_nothing_holds_no_place(swarm: Swarm):
    victim, silent = swarm.networks[0], swarm.dhts[1]
    quick = replace(SHORT, serve_timeout=3.0, answer_timeout=3.0)
    swarm.dhts[0]._settings = quick
    streams: list[DhtStream] = []
    for _ in range(quick.streams_at_once + 2):
        with suppress(Unreachable):
            streams.append(await silent._host.new_stream(to_id(victim.peer_id), [PROTOCOL]))
    with trio.fail_after(2.5):
        while swarm.dhts[0].statistics().get("turned_away") != 2:
            await trio.sleep(0.02)
    assert swarm.dhts[0]._serving[swarm.networks[1].peer_id] == quick.streams_at_once
    with trio.fail_after(10):
        while swarm.dhts[0]._serving:
            await trio.sleep(0.1)
    for stream in streams:
        await stream.reset()
    assert await swarm.dhts[1].find_providers(cids.compute(cids.RAW, b"c").text) == ()
    assert swarm.dhts[0].statistics()["served"] >= 1


async def test_a_node_that_is_not_on_the_list_learns_nothing_and_is_told_nothing():
    async with AsyncExitStack() as stack:
        closed = await stack.enter_async_context(opened(1, dial=NOBODY_BY_ITSELF, allow=frozenset({identity(2).peer_id})))
        member = await stack.enter_async_context(opened(2, dial=NOBODY_BY_ITSELF))
        stranger = await stack.enter_async_context(opened(3, dial=NOBODY_BY_ITSELF))
        other_key = await stack.enter_async_context(opened(4, dial=NOBODY_BY_ITSELF, psk="ab" * 32))
        await member.connect(closed.addresses()[0])
        dhts = [SwarmDht(network, {"numbers": Numbers()}, SHORT) for network in (closed, member, stranger, other_key)]
        async with trio.open_nursery() as nursery:
            for dht in dhts:
                await nursery.start(dht.run)
            cid = cids.compute(cids.RAW, b"content").text
            assert await dhts[0].provide(cid) == 1
            for network, dht in ((stranger, dhts[2]), (other_key, dhts[3])):
                network.add_address(closed.peer_id, closed.addresses())
                dht._host.get_peerstore().add_addrs(to_id(closed.peer_id), closed.host.get_addrs(), 60)
                await dht._kad.routing_table.add_peer(PeerInfo(to_id(closed.peer_id), closed.host.get_addrs()))
                assert await dht.find_providers(cid) == ()
                assert await dht.provide(cid) == 0
            assert await dhts[1].find_providers(cid) == (closed.peer_id,)
            assert dhts[0].statistics()["providers"] == 1, "its own"
            nursery.cancel_scope.cancel()


async def test_members_without_a_dht_are_asked_once():
    async with opened(1, dial=NOBODY_BY_ITSELF) as a, opened(2, dial=NOBODY_BY_ITSELF) as b:
        await a.connect(b.addresses()[0])
        dht = SwarmDht(a, {}, SHORT)
        assert await dht.provide(cids.compute(cids.RAW, b"content").text) == 0
        assert dht.statistics()["members"] == 0
        assert list(dht._host.without) == [b.peer_id]
        assert await dht._near(b"key") == []


async def test_nothing_is_left_behind_by_questions_that_are_cancelled(swarm: Swarm):
    cid = cids.compute(cids.RAW, b"content").text
    await swarm.dhts[0].find_providers(cid)
    await trio.sleep(0.3)
    before = streams_of(swarm.networks[0])
    for turn in range(20):
        with trio.move_on_after(0.001 * turn):
            await swarm.dhts[0].provide(cid)
    await eventually(lambda: streams_of(swarm.networks[0]) <= before)
    assert await swarm.dhts[0].provide(cid) >= 1


def streams_of(network: Libp2pNetwork) -> int:
    connections = network.host.get_network().connections.values()
    return sum(len(each.muxed_conn.streams) for peer in connections for each in peer)  # type: ignore[attr-defined]
