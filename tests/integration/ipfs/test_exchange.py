"""Bitswap between real libp2p hosts on loopback."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio

from p2p.ipfs import cid as cids
from p2p.ipfs.api import BlockCorrupt, BlockMissing
from p2p.ipfs.embedded import EmbeddedStore, open_embedded
from p2p.ipfs.settings import ExchangeSettings, StoreSettings
from p2p.ipfs.traffic import MayServe
from p2p.ipfs.wire import Entry, Envelope
from p2p.network import Libp2pNetwork
from tests.support.bitswap_peer import scripted_peer, silence
from tests.support.content_contract import Pair, PairContract
from tests.support.networks import opened
from tests.support.unixfs_reference import CHUNK, pattern, reference

QUICK = StoreSettings(reserve_bytes=0, exchange=ExchangeSettings(stall=1.0, hedge=0.5, tick=0.05, open_timeout=2))


class Swarm:
    """Nodes in a star around the first one, and stores on them."""

    def __init__(self, networks: list[Libp2pNetwork], folder: Path, nursery: trio.Nursery) -> None:
        self.networks = networks
        self.names = [network.peer_id for network in networks]
        self._folder = folder
        self._nursery = nursery

    async def store(self, index: int, *, may_serve: MayServe | None = None, settings: StoreSettings = QUICK) -> EmbeddedStore:
        return await self._nursery.start(self._hold, index, may_serve, settings)

    async def _hold(
        self, index: int, may_serve: MayServe | None, settings: StoreSettings, task_status: trio.TaskStatus[EmbeddedStore]
    ) -> None:
        async with embedded_on(self.networks[index], self._folder / str(index), may_serve=may_serve, settings=settings) as store:
            task_status.started(store)
            await trio.sleep_forever()


def embedded_on(network: Libp2pNetwork, folder: Path, **options: Any) -> AbstractAsyncContextManager[EmbeddedStore]:
    options = {"connected": network.peers, "settings": QUICK, **options}
    return open_embedded(folder, host=network.host, open_stream=network.open_stream, **options)


@pytest.fixture
async def swarm(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Swarm]:
    async with AsyncExitStack() as stack:
        networks = [await stack.enter_async_context(opened(number)) for number in range(1, 1 + getattr(request, "param", 3))]
        for network in networks[1:]:
            await networks[0].connect(network.addresses()[0])
        async with trio.open_nursery() as nursery:
            yield Swarm(networks, tmp_path / "stores", nursery)
            nursery.cancel_scope.cancel()


def open_streams(network: Libp2pNetwork) -> int:
    connections = network.host.get_network().connections.values()
    return sum(len(each.muxed_conn.streams) for peer in connections for each in peer)  # type: ignore[attr-defined]


class TestEmbeddedPair(PairContract):
    @pytest.fixture
    async def pair(self, swarm: Swarm) -> Pair:
        return await swarm.store(1), await swarm.store(0), swarm.names[1], swarm.names[0]


@pytest.mark.parametrize("swarm", [4], indirect=True)
async def test_three_providers_share_the_work_and_nothing_is_fetched_twice(swarm: Swarm):
    data = pattern(60 * CHUNK)
    stores = [await swarm.store(i) for i in range(4)]
    for store in stores[1:]:
        cid = await store.add_bytes(data, durable=False)
    assert await stores[0].get_bytes(cid, providers=swarm.names[1:]) == data
    served = [store.statistics().served_blocks for store in stores[1:]]
    assert stores[0].statistics().fetched_blocks == 61
    assert min(served) >= 5
    assert sum(served) <= 61 + 6, "a block asked of a second provider is the exception"


async def test_a_liar_among_providers_costs_nothing_but_time(swarm: Swarm):
    async def lie(entry: Entry) -> Envelope:
        return Envelope(blocks=((entry.key[:4], b"not what you asked for"),))

    data = pattern(30 * CHUNK)
    good, mine = await swarm.store(2), await swarm.store(0)
    cid = await good.add_bytes(data, durable=False)
    async with scripted_peer(swarm.networks[1].host, lie):
        assert await mine.get_bytes(cid, providers=swarm.names[1:3], timeout=10) == data
        assert mine.statistics().refused_blocks >= 1
        assert mine.statistics().blocks == 31, "nothing else was stored"


async def test_when_only_a_liar_is_left_the_content_is_corrupt(swarm: Swarm):
    async def lie(entry: Entry) -> Envelope:
        return Envelope(blocks=((entry.key[:4], b"not what you asked for"),))

    mine = await swarm.store(0)
    async with scripted_peer(swarm.networks[1].host, lie):
        with pytest.raises(BlockCorrupt):
            await mine.get_bytes(cids.compute(cids.RAW, b"?").text, providers=[swarm.names[1]], timeout=10)


async def test_a_provider_that_falls_silent_is_replaced(swarm: Swarm):
    data = pattern(12 * CHUNK)
    good, mine = await swarm.store(2), await swarm.store(0)
    cid = await good.add_bytes(data, durable=False)
    async with scripted_peer(swarm.networks[1].host, silence) as dead:
        assert await mine.get_bytes(cid, providers=swarm.names[1:3], timeout=10) == data
        assert dead.seen


async def test_a_slow_provider_holds_up_nothing_that_another_one_has(swarm: Swarm):
    """Its blocks come, one by one and late. After `hedge` seconds the other one is asked as well."""
    data = pattern(4 * CHUNK)
    _, blocks = reference(data)
    late = 15.0

    async def slowly(entry: Entry) -> Envelope:
        await trio.sleep(late)
        return Envelope(blocks=((entry.key[:4], blocks[entry.key]),))

    patient = dataclasses.replace(QUICK, exchange=dataclasses.replace(QUICK.exchange, stall=60.0))
    good, mine = await swarm.store(2), await swarm.store(0, settings=patient)
    cid = await good.add_bytes(data, durable=False)
    async with scripted_peer(swarm.networks[1].host, slowly) as slow:
        began = trio.current_time()
        assert await mine.get_bytes(cid, providers=swarm.names[1:3], timeout=60) == data
        assert trio.current_time() - began < late
        assert [entry for entry in slow.seen if not entry.cancel]
    assert good.statistics().served_blocks == mine.statistics().fetched_blocks == 5


async def test_a_provider_that_dies_half_way_is_replaced(swarm: Swarm):
    data = pattern(40 * CHUNK)
    first, second, mine = await swarm.store(1), await swarm.store(2), await swarm.store(0)
    cid = await first.add_bytes(data, durable=False)
    await second.add_bytes(data, durable=False)
    async with trio.open_nursery() as nursery:

        async def die() -> None:
            while mine.statistics().fetched_blocks < 8:
                await trio.sleep(0.005)
            await swarm.networks[1].host.close()

        nursery.start_soon(die)
        assert await mine.get_bytes(cid, providers=swarm.names[1:3], timeout=15) == data


async def test_when_the_only_provider_is_silent_the_timeout_ends_it(swarm: Swarm):
    mine = await swarm.store(0)
    async with scripted_peer(swarm.networks[1].host, silence):
        with trio.fail_after(8), pytest.raises(BlockMissing):
            await mine.get_bytes(cids.compute(cids.RAW, b"?").text, providers=[swarm.names[1]], timeout=1.5)


async def test_a_large_file_is_fetched_in_bounded_memory(swarm: Swarm, tmp_path: Path):
    settings = dataclasses.replace(QUICK, parallel=8, readahead=4, write_batch=4)
    provider, mine = await swarm.store(1, settings=settings), await swarm.store(0, settings=settings)
    source = tmp_path / "source"
    source.write_bytes(pattern(128 * CHUNK))
    cid, size = await provider.add_file(source)
    tracemalloc.start()
    try:
        assert await mine.export_file(cid, tmp_path / "target", providers=[swarm.names[1]]) == size == 32 << 20
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20, f"both sides together held {peak >> 20} MiB at most"
    assert (tmp_path / "target").read_bytes() == source.read_bytes()


async def test_unsolicited_blocks_are_refused(swarm: Swarm):
    mine = await swarm.store(0)
    async with scripted_peer(swarm.networks[1].host, silence) as peer:
        spam = cids.compute(cids.RAW, b"spam")
        for blocks in (((spam.prefix, b"spam"),), ((b"\x00\x70\x12\x20", b"v0"),), ((spam.prefix, bytes(3 << 20)),)):
            before = mine.statistics().refused_blocks
            await peer.push(swarm.names[0], Envelope(blocks=blocks))
            with trio.fail_after(5):
                while mine.statistics().refused_blocks == before:
                    await trio.sleep(0.005)
    assert not await mine.has(spam.text)
    assert mine.statistics().blocks == 0


async def test_many_fetches_one_after_the_other_leak_no_streams(swarm: Swarm):
    provider, mine = await swarm.store(1), await swarm.store(0)
    wanted = [await provider.add_bytes(b"%d" % i, durable=False) for i in range(320)]
    await mine.get_bytes(wanted[0], providers=[swarm.names[1]])
    before = open_streams(swarm.networks[0])
    for cid in wanted:
        await mine.get_bytes(cid, providers=[swarm.names[1]], timeout=5)
    assert open_streams(swarm.networks[0]) <= before + 2


async def test_idle_streams_are_closed_and_opened_again(swarm: Swarm):
    settings = dataclasses.replace(QUICK, exchange=dataclasses.replace(QUICK.exchange, idle=0.05))
    provider, mine = await swarm.store(1, settings=settings), await swarm.store(0, settings=settings)
    before = open_streams(swarm.networks[0])
    for text in (b"one", b"two"):
        cid = await provider.add_bytes(text)
        assert await mine.get_bytes(cid, providers=[swarm.names[1]]) == text
        with trio.fail_after(5):
            while not (mine._exchange.idle and provider._exchange.idle and open_streams(swarm.networks[0]) <= before):  # type: ignore[union-attr]
                await trio.sleep(0.01)


async def test_the_same_block_wanted_at_once_is_fetched_once(swarm: Swarm):
    provider, mine = await swarm.store(1), await swarm.store(0)
    cid = await provider.add_bytes(pattern(CHUNK))
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(lambda: mine.get_bytes(cid, providers=[swarm.names[1]]))
    assert mine.statistics().fetched_blocks == provider.statistics().served_blocks == 1


async def test_a_cancelled_fetch_leaves_nothing_behind_and_can_be_resumed(swarm: Swarm):
    provider, mine = await swarm.store(1), await swarm.store(0)
    data = pattern(40 * CHUNK)
    cid = await provider.add_bytes(data, durable=False)
    async with trio.open_nursery() as nursery:

        async def fetch() -> None:
            await mine.fetch(cid, providers=[swarm.names[1]])

        nursery.start_soon(fetch)
        while mine.statistics().fetched_blocks < 10:
            await trio.sleep(0.002)
        nursery.cancel_scope.cancel()
    kept = mine.statistics().blocks
    assert kept >= 2
    assert await mine.get_bytes(cid, providers=[swarm.names[1]]) == data
    assert mine.statistics().refused_blocks == 0, "what comes late is no offence"


async def test_private_blocks_are_given_to_nobody_else(swarm: Swarm):
    async def may_serve(peer: str, audiences: Collection[str]) -> bool:
        await trio.lowlevel.checkpoint()
        return peer == swarm.names[0] and audiences == {"job"}

    provider = await swarm.store(1, may_serve=may_serve)
    await swarm.networks[2].connect(swarm.networks[1].addresses()[0])
    participant, stranger = await swarm.store(0), await swarm.store(2)
    data = pattern(3 * CHUNK)
    root = await provider.private_to("job").add_bytes(data)
    leaf, public = cids.compute(cids.RAW, data[:CHUNK]).text, await provider.add_bytes(b"for everybody")
    for cid in (root, leaf):
        with pytest.raises(BlockMissing):
            await stranger.get_bytes(cid, providers=[swarm.names[1]], timeout=3)
    assert await stranger.get_bytes(public, providers=[swarm.names[1]], timeout=3) == b"for everybody"
    assert await participant.get_bytes(root, providers=[swarm.names[1]], timeout=3) == data


async def test_garbage_on_a_stream_harms_nobody(swarm: Swarm):
    mine, provider = await swarm.store(0), await swarm.store(2)
    async with scripted_peer(swarm.networks[1].host, silence) as peer:
        for garbage in (b"\xff" * 12, b"\x05\xff\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\x01abc"):
            stream = await peer.link.open(swarm.names[0])
            await stream.send(garbage)
            await stream.close()
        entries = tuple(Entry(b"%d" % i, block=True) for i in range(3000))
        await peer.push(swarm.names[0], Envelope(wants=entries, full=True))
        await peer.push(swarm.names[0], Envelope(presences=((b"?", True),)))
    cid = await provider.add_bytes(b"still here")
    assert await mine.get_bytes(cid, providers=[swarm.names[2]], timeout=5) == b"still here"


async def test_an_error_in_the_body_comes_out_as_it_is_and_closed_stores_say_so(swarm: Swarm, tmp_path: Path):
    with pytest.raises(KeyError):
        async with embedded_on(swarm.networks[0], tmp_path / "x") as store:
            raise KeyError("mine")
    with pytest.raises(BlockMissing):
        await store.get_bytes(cids.compute(cids.RAW, b"?").text)


async def test_peers_that_may_be_asked_can_be_chosen(swarm: Swarm, tmp_path: Path):
    provider = await swarm.store(1)
    cid = await provider.add_bytes(b"x")
    async with embedded_on(swarm.networks[0], tmp_path / "x", connected=lambda: ()) as store:
        with pytest.raises(BlockMissing):
            await store.get_bytes(cid)
        assert await store.get_bytes(cid, providers=[swarm.names[1]]) == b"x"


async def test_a_provider_is_dialled_when_there_is_no_connection(swarm: Swarm):
    provider, mine = await swarm.store(1), await swarm.store(2)
    cid = await provider.add_bytes(b"x")
    assert swarm.names[1] not in swarm.networks[2].peers()
    swarm.networks[2].add_address(swarm.names[1], swarm.networks[1].addresses())
    assert await mine.get_bytes(cid, providers=[swarm.names[1]], timeout=5) == b"x"


async def test_without_a_network_of_ours_the_hosts_own_streams_are_used(swarm: Swarm, tmp_path: Path):
    provider = await swarm.store(1)
    cid = await provider.add_bytes(b"x")
    async with open_embedded(tmp_path / "x", host=swarm.networks[0].host, settings=QUICK) as store:
        with pytest.raises(BlockMissing):
            await store.get_bytes(cids.compute(cids.RAW, b"?").text, providers=["not a peer id", swarm.names[2]])
        assert await store.get_bytes(cid) == b"x"


async def test_a_copy_that_rotted_is_fetched_again(swarm: Swarm, tmp_path: Path):
    provider, mine = await swarm.store(1), await swarm.store(0)
    data = pattern(2 * CHUNK)
    cid = await provider.add_bytes(data)
    await mine.fetch(cid, providers=[swarm.names[1]])
    leaf = cids.compute(cids.RAW, data[CHUNK:])
    (file,) = (tmp_path / "stores" / "0" / "blocks").rglob(leaf.text)
    file.write_bytes(bytes(CHUNK))
    assert await mine.get_bytes(cid, providers=[swarm.names[1]]) == data
    assert file.read_bytes() == data[CHUNK:]


PATIENT = dataclasses.replace(QUICK, exchange=ExchangeSettings(stall=60.0, hedge=0.2, tick=0.05))


async def lacked_by_all(swarm: Swarm, may_serve: MayServe | None = None) -> tuple[EmbeddedStore, EmbeddedStore]:
    return await swarm.store(0, settings=PATIENT), await swarm.store(2, may_serve=may_serve)


async def test_who_lacked_a_block_says_so_when_it_has_it(swarm: Swarm):
    """Nodes that fetch the same at the same time ask each other too early."""
    data = pattern(CHUNK)
    cid = cids.compute(cids.RAW, data).text
    mine, other = await lacked_by_all(swarm)
    async with scripted_peer(swarm.networks[1].host, silence) as silent, trio.open_nursery() as nursery:

        async def fetch() -> None:
            with trio.fail_after(10):
                assert await mine.get_bytes(cid, providers=swarm.names[1:3], timeout=60) == data

        nursery.start_soon(fetch)
        with trio.fail_after(10):
            while not (silent.seen and len(other._exchange._lacking)):  # type: ignore[union-attr]
                await trio.sleep(0.02)
        assert await other.add_bytes(data, durable=False) == cid
    assert other.statistics().served_blocks == 1
    assert not len(other._exchange._lacking)  # type: ignore[union-attr]


async def test_whom_a_block_is_not_for_is_not_told_of_it(swarm: Swarm):
    asked: list[str] = []

    async def nobody(peer: str, audiences: Collection[str]) -> bool:
        asked.extend(audiences)
        await trio.lowlevel.checkpoint()
        return False

    data = pattern(CHUNK)
    cid = cids.compute(cids.RAW, data).text
    mine, other = await lacked_by_all(swarm, nobody)
    heard: list[bool] = []
    take = mine._exchange._take_presences  # type: ignore[union-attr]

    def note(peer: str, envelope: Envelope) -> None:
        heard.extend(here for _, here in envelope.presences)
        take(peer, envelope)

    mine._exchange._take_presences = note  # type: ignore[union-attr,method-assign]
    async with scripted_peer(swarm.networks[1].host, silence):
        with trio.move_on_after(3) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: mine.get_bytes(cid, providers=swarm.names[1:3], timeout=60))
                while not len(other._exchange._lacking):  # type: ignore[union-attr]
                    await trio.sleep(0.02)
                await other.private_to("job").add_bytes(data, durable=False)
        assert scope.cancelled_caught
    assert asked == ["job"]
    assert heard == [False]
