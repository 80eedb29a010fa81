"""Blocks go both ways between a node's embedded store and a real Kubo, by bitswap over real connections.

The node is in a swarm without a key here: with one, Kubo cannot even connect (the last test but one; docs/decisions/0014).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import base58
import pytest
import trio

from p2p.api import Unreachable
from p2p.ipfs import cid as cids
from p2p.ipfs.api import BlockMissing
from p2p.ipfs.embedded import EmbeddedStore, open_embedded
from p2p.ipfs.settings import StoreSettings
from p2p.network import Libp2pNetwork
from tests.support.content_contract import KUBO, absent, link_to
from tests.support.kubo_node import KuboNode, kubo_node, need_kubo
from tests.support.networks import opened
from tests.support.unixfs_reference import CHUNK, pattern, reference

need_kubo()

SIZES = [0, 1, CHUNK, CHUNK + 1, 4 * CHUNK, 175 * CHUNK + 1]
"""A leaf, one level, two levels."""


@pytest.fixture
async def kubo(tmp_path: Path) -> AsyncIterator[KuboNode]:
    async with kubo_node(tmp_path / "kubo") as kubo:
        yield kubo


@asynccontextmanager
async def node_beside(kubo: KuboNode, number: int, folder: Path) -> AsyncIterator[tuple[Libp2pNetwork, EmbeddedStore]]:
    """A node that is connected to Kubo and to nobody else."""
    async with opened(number) as network:
        settings = StoreSettings(reserve_bytes=0)
        async with open_embedded(
            folder / f"node-{number}", host=network.host, connected=network.peers, open_stream=network.open_stream, settings=settings
        ) as store:
            assert await network.connect(kubo.address) == kubo.peer_id
            yield network, store


def version_one(cid: str) -> str:
    """What `ipfs cid base32` makes of a CID of version 0: another spelling of the same block."""
    return cids.from_digest(cids.DAG_PB, base58.b58decode(cid)[2:]).text


@pytest.mark.parametrize("size", SIZES)
async def test_a_file_goes_to_kubo_and_from_kubo_to_another_node(kubo: KuboNode, tmp_path: Path, size: int):
    data = pattern(size)
    blocks = len(reference(data)[1])
    async with node_beside(kubo, 1, tmp_path) as (_, store):
        cid = await store.add_bytes(data, durable=False)
        assert cid == KUBO[size]
        with trio.fail_after(60):
            assert await kubo.download(cid, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == data
        with trio.fail_after(10):  # counted once written, which Kubo need not wait for
            while store.statistics().served_blocks < blocks:
                await trio.sleep(0.01)
        assert store.statistics().served_blocks == blocks
    async with node_beside(kubo, 2, tmp_path) as (_, store):
        assert await store.export_file(cid, tmp_path / "back", timeout=60) == size
        assert (tmp_path / "back").read_bytes() == data
        assert store.statistics().fetched_blocks == blocks, "every block came from Kubo, once"


@pytest.mark.parametrize("size", [1, CHUNK + 1, 175 * CHUNK + 1])
async def test_a_file_that_was_added_to_kubo_is_read_through_a_node(kubo: KuboNode, tmp_path: Path, size: int):
    """As `ipfs add` does it by default: links of version 0, leaves wrapped in nodes."""
    source = tmp_path / "source"
    source.write_bytes(pattern(size))
    cid = await kubo.add(source)
    assert cid.startswith("Qm")
    async with node_beside(kubo, 1, tmp_path) as (_, store):
        found = await store.get_bytes(version_one(cid), providers=[kubo.peer_id], timeout=60)
        assert found == source.read_bytes()
        assert store.statistics().refused_blocks == 0
        await store.pin(version_one(cid))


async def test_a_dag_and_the_file_it_links_to_go_both_ways(kubo: KuboNode, tmp_path: Path):
    data = pattern(5 * CHUNK + 3)
    async with node_beside(kubo, 1, tmp_path) as (_, store):
        file = await store.add_bytes(data, durable=False)
        inner = await store.put_dag_bytes(link_to(file))
        root = await store.put_dag_bytes(link_to(inner))
        value = await store.get_dag(root)
        with trio.fail_after(60):
            assert await kubo.pin(root), "Kubo follows the links of DAG-CBOR"
    async with node_beside(kubo, 2, tmp_path) as (_, store):
        assert await store.get_dag(root, timeout=30) == value
        await store.fetch(root, timeout=30)
        assert store.statistics().fetched_blocks == 2 + 7
        assert await store.get_bytes(file, timeout=0) == data


async def test_kubo_is_told_that_something_is_not_there(kubo: KuboNode, tmp_path: Path):
    async with node_beside(kubo, 1, tmp_path) as (_, store):
        with trio.fail_after(20), pytest.raises(BlockMissing):
            await store.get_bytes(absent(), providers=[kubo.peer_id], timeout=15)


async def test_kubo_connects_to_a_node_and_fetches(kubo: KuboNode, tmp_path: Path):
    data = pattern(3 * CHUNK)
    async with (
        opened(1) as network,
        open_embedded(tmp_path / "node", host=network.host, connected=network.peers, open_stream=network.open_stream) as store,
    ):
        cid = await store.add_bytes(data)
        assert await kubo.connect(network.addresses()[0])
        with trio.fail_after(30):
            assert await kubo.download(cid, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == data


async def test_a_swarm_with_a_key_is_closed_to_kubo(kubo: KuboNode):
    async with opened(1, psk="ab" * 32) as network:
        with pytest.raises(Unreachable):
            await network.connect(kubo.address)
        assert not await kubo.connect(network.addresses()[0])
        assert not network.peers()


async def test_a_kubo_with_an_rsa_key_is_refused(tmp_path: Path):
    """Peer ids of DIM are Ed25519 keys. Kubo makes such since 2020; `ipfs key rotate` gives one to an older repository."""
    async with kubo_node(tmp_path, key="rsa") as kubo, opened(1) as network:
        with pytest.raises(Unreachable, match="Ed25519"):
            await network.connect(kubo.address)
        await kubo.connect(network.addresses()[0])
        with trio.fail_after(10):
            while network.peer_id in await kubo.peers():
                await trio.sleep(0.05)
        assert not network.host.get_network().connections
        assert not network.peers()
