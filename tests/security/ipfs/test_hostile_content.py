"""Content made to harm whoever reads it: it is refused with a clear error, soon and in bounded memory."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from p2p.ipfs import cid as cids
from p2p.ipfs import dagcbor
from p2p.ipfs.api import BlockCorrupt, BlockMissing, TooLarge
from p2p.ipfs.cid import Cid
from p2p.ipfs.embedded import open_embedded
from p2p.ipfs.memory import MemoryExchange, MemoryStore
from p2p.ipfs.protobuf import bytes_field, number_field
from p2p.ipfs.settings import StoreSettings
from p2p.ipfs.store import Store
from p2p.ipfs.unixfs import encode_node
from tests.support.content_contract import Pair, put_block
from tests.support.unixfs_reference import CHUNK, pattern

LIMITS = StoreSettings(max_depth=8, max_nodes=5000, few_leaves=1000, reserve_bytes=0)


@pytest.fixture
def pair() -> Pair:
    hub = MemoryExchange()
    return MemoryStore("bad", hub), MemoryStore("good", hub, settings=LIMITS), "bad", "good"


async def refuse(pair: Pair, cid: str, tmp_path: Path) -> None:
    _, good, bad_id, _ = pair
    with trio.fail_after(10):
        with pytest.raises(BlockCorrupt):
            await good.get_bytes(cid, providers=[bad_id])
        with pytest.raises(BlockCorrupt):
            await good.export_file(cid, tmp_path / "out", providers=[bad_id])
        with pytest.raises(BlockCorrupt):
            async for _ in good.iterate(cid, providers=[bad_id]):
                pass
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


async def node(pair: Pair, *children: tuple[str, int]) -> str:
    return await put_block(pair[0], cids.DAG_PB, encode_node([(cids.parse(cid), size, size) for cid, size in children]))


async def test_a_dag_that_is_too_deep(pair: Pair, tmp_path: Path):
    cid = await pair[0].add_bytes(b"x")
    for _ in range(9):
        cid = await node(pair, (cid, 1))
    await refuse(pair, cid, tmp_path)


async def test_a_node_that_names_one_child_over_and_over(pair: Pair, tmp_path: Path):
    cid, size = await pair[0].add_bytes(b"x"), 1
    for _ in range(5):
        cid, size = await node(pair, *[(cid, size)] * 40), size * 40
    _, good, bad_id, _ = pair
    with trio.fail_after(10):
        with pytest.raises(BlockCorrupt):
            async for _ in good.iterate(cid, providers=[bad_id]):
                pass
        assert await good.fetch(cid, providers=[bad_id]) == size, "six different blocks are no burden"
        with pytest.raises(TooLarge):
            await good.get_bytes(cid, providers=[bad_id], max_bytes=size - 1)


async def test_a_node_with_a_huge_number_of_links(pair: Pair, tmp_path: Path):
    leaf = await pair[0].add_bytes(b"x")
    await refuse(pair, await node(pair, *[(leaf, 1)] * 6000), tmp_path)


@pytest.mark.parametrize("claimed", [1, 10, 1 << 40])
async def test_a_leaf_whose_parent_lies_about_its_size(pair: Pair, tmp_path: Path, claimed: int):
    leaf = await pair[0].add_bytes(b"four")
    cid = await node(pair, (leaf, claimed))
    _, good, bad_id, _ = pair
    if claimed > 1 << 30:
        with pytest.raises(TooLarge):
            await good.get_bytes(cid, providers=[bad_id])
        with pytest.raises(BlockCorrupt):
            await good.export_file(cid, tmp_path / "out", providers=[bad_id])
    else:
        await refuse(pair, cid, tmp_path)


async def test_a_node_whose_parent_lies_about_its_size(pair: Pair, tmp_path: Path):
    inner = await node(pair, (await pair[0].add_bytes(b"four"), 4))
    await refuse(pair, await node(pair, (inner, 5)), tmp_path)


async def test_a_size_that_the_links_do_not_add_up_to(pair: Pair, tmp_path: Path):
    leaf = cids.parse(await pair[0].add_bytes(b"four"))
    links = bytes_field(2, bytes_field(1, leaf.binary) + number_field(3, 4))
    for meta in (
        number_field(1, 2) + number_field(3, 2) + number_field(4, 4),
        number_field(1, 2) + number_field(3, 4),
        number_field(1, 2) + number_field(3, 4) + number_field(4, 4) + number_field(4, 0),
        number_field(1, 2) + bytes_field(2, b"more") + number_field(3, 4) + number_field(4, 4),
        number_field(1, 1) + number_field(3, 4) + number_field(4, 4),
    ):
        await refuse(pair, await put_block(pair[0], cids.DAG_PB, links + bytes_field(1, meta)), tmp_path)


async def test_nodes_that_are_cut_off(pair: Pair, tmp_path: Path):
    leaf = cids.parse(await pair[0].add_bytes(b"four"))
    whole = encode_node([(leaf, 4, 4)] * 3)
    for length in random.Random(1).sample(range(len(whole)), 20):
        await refuse(pair, await put_block(pair[0], cids.DAG_PB, whole[:length]), tmp_path)


async def test_a_file_that_links_to_a_dag(pair: Pair, tmp_path: Path):
    await refuse(pair, await node(pair, (await pair[0].put_dag({}), 1)), tmp_path)


def link(cid: Cid) -> bytes:
    return b"\xd8\x2a\x58\x25\x00" + cid.binary


async def test_links_of_dags_are_followed_and_bad_ones_refused(pair: Pair):
    bad, good, bad_id, _ = pair
    leaf = cids.parse(await bad.add_bytes(pattern(CHUNK + 1)))
    cid = await put_block(bad, cids.DAG_CBOR, b"\x82" + link(leaf) + link(leaf))
    await good.fetch(cid, providers=[bad_id])
    await good.pin(cid)
    assert good.statistics().blocks == 4
    for broken in (b"\xd8\x2a\x41\x00", b"\xd8\x2a\x58\x25\x00" + bytes(36), link(leaf)[:-1], b"\xd8\x2b\x00", b"\x81" * 3000 + link(leaf)):
        with pytest.raises(BlockCorrupt):
            await good.fetch(await put_block(bad, cids.DAG_CBOR, b"\x82" + broken + link(leaf)), providers=[bad_id])


def test_links_are_found_among_other_things():
    leaf = cids.compute(cids.RAW, b"x")
    data = b"\xa2\x61a" + link(leaf) + b"\x61b\x84\x18\xff\x43abc\xfb\x40\x04\x00\x00\x00\x00\x00\x00\xf6"
    assert dagcbor.links(data) == [leaf]
    assert dagcbor.is_canonical(data)
    assert dagcbor.links(dagcbor.encode({"text": "\x00\u0600*", "bytes": b"\xd8\x2a" * 3})) == []


@pytest.mark.parametrize("data", [b"", b"\x81" * 100_000, b"\x9f\xff", b"\x9b" + b"\x7f" * 8, b"\xfb\x7f\xf8" + bytes(6)])
async def test_dags_that_are_not_dag_cbor(pair: Pair, data: bytes):
    bad, good, bad_id, _ = pair
    with pytest.raises(BlockCorrupt):
        await good.get_dag(await put_block(bad, cids.DAG_CBOR, data), providers=[bad_id])


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[tuple[Store, Path]]:
    async with open_embedded(tmp_path / "store", settings=LIMITS) as store:
        yield store, tmp_path / "store" / "blocks"


async def test_content_that_rotted_on_the_disk_is_missing_not_wrong(kept: tuple[Store, Path], tmp_path: Path):
    store, folder = kept
    data = pattern(3 * CHUNK)
    cid = await store.add_bytes(data)
    leaf = cids.compute(cids.RAW, data[CHUNK : 2 * CHUNK])
    file = folder / leaf.text[-3:-1] / leaf.text
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    with pytest.raises(BlockMissing):
        await store.get_bytes(cid)
    with pytest.raises(BlockMissing):
        await store.export_file(cid, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert await store.add_bytes(data) == cid
    assert await store.get_bytes(cid) == data


async def test_a_rotten_copy_is_fetched_again_from_peers(tmp_path: Path):
    hub = MemoryExchange()
    a, b = MemoryStore("a", hub), MemoryStore("b", hub)
    data = pattern(2 * CHUNK)
    cid = await a.add_bytes(data)
    await b.fetch(cid)
    leaf = cids.compute(cids.RAW, data[CHUNK:])
    del b._blocks._blocks[leaf.text]  # type: ignore[attr-defined]
    assert await b.get_bytes(cid) == data


@pytest.mark.parametrize(
    "cid", ["../../../etc/passwd", "b" + "/" * 58, "b" + "." * 58, "\0" * 59, "bafkrei" + "\N{LATIN SMALL LETTER A}" * 51 + "\u0131"]
)
async def test_no_cid_reaches_outside_the_folder(kept: tuple[Store, Path], cid: str):
    from p2p.ipfs.api import BadCid

    with pytest.raises(BadCid):
        await kept[0].get_bytes(cid)
