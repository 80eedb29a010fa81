"""Files that are written while their parts arrive."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from p2p.ipfs import cid as cids
from p2p.ipfs.api import BlockCorrupt, BlockMissing
from p2p.ipfs.memory import MemoryExchange, MemoryStore
from p2p.ipfs.protobuf import bytes_field, number_field
from p2p.ipfs.unixfs import Block
from tests.support.unixfs_reference import CHUNK, pattern

SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7, 175 * CHUNK + 3]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("local", [0, 1, 3])
async def test_what_is_here_already_and_what_is_fetched_make_the_same_file(size: int, local: int, tmp_path: Path):
    hub = MemoryExchange()
    theirs, mine = MemoryStore("theirs", hub), MemoryStore("mine", hub)
    data = pattern(size)
    cid = await theirs.add_bytes(data)
    for start in range(0, size, CHUNK * 4):  # every fourth leaf, or three of four, are here
        for part in range(start, min(start + local * CHUNK, size), CHUNK):
            await mine.add_bytes(data[part : part + CHUNK])
    assert await mine.export_file(cid, tmp_path / "out", providers=["theirs"]) == size
    assert (tmp_path / "out").read_bytes() == data
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


async def test_a_part_that_comes_again_and_again_is_everywhere(tmp_path: Path):
    hub = MemoryExchange()
    theirs, mine = MemoryStore("theirs", hub), MemoryStore("mine", hub)
    zeros, other = bytes(CHUNK), random.Random(0).randbytes(CHUNK)
    data = b"".join([zeros, other, zeros, zeros, other, pattern(5), b""])
    cid = await theirs.add_bytes(data)
    assert await mine.export_file(cid, tmp_path / "out", providers=["theirs"]) == len(data)
    assert (tmp_path / "out").read_bytes() == data
    assert mine.statistics().blocks == 4


class Stuck:
    """Fetches so many blocks, and then none."""

    def __init__(self, fetch: Callable[..., Awaitable[bytes]], after: int) -> None:
        self._fetch, self._left = fetch, after
        self.stuck = trio.Event()

    async def __call__(self, *args: Any, **kwargs: Any) -> bytes:
        if not self._left:
            self.stuck.set()
            await trio.sleep_forever()
        self._left -= 1
        return await self._fetch(*args, **kwargs)


@pytest.mark.parametrize("after", [1, 2, 10, 20])
async def test_nothing_is_left_of_an_export_that_was_cancelled_and_the_next_one_goes_on(after: int, tmp_path: Path):
    hub = MemoryExchange()
    theirs, mine = MemoryStore("theirs", hub), MemoryStore("mine", hub)
    data = random.Random(after).randbytes(20 * CHUNK)
    cid = await theirs.add_bytes(data)
    exchange: Any = mine._exchange
    fetch = exchange.fetch_block
    exchange.fetch_block = stuck = Stuck(fetch, after)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(mine.export_file, cid, tmp_path / "out", providers=["theirs"]))
        await stuck.stuck.wait()
        await trio.testing.wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()
    assert not list(tmp_path.iterdir())
    exchange.fetch_block = Stuck(fetch, 21 - after)
    with trio.fail_after(20):
        assert await mine.export_file(cid, tmp_path / "out", providers=["theirs"]) == len(data)
    assert (tmp_path / "out").read_bytes() == data


def node(inline: bytes, *children: tuple[cids.Cid, int]) -> Block:
    """A file's node as other programs make them, with bytes of its own."""
    sizes = [size for _, size in children]
    links = b"".join(bytes_field(2, bytes_field(1, cid.binary) + bytes_field(2, b"") + number_field(3, size)) for cid, size in children)
    meta = number_field(1, 2) + bytes_field(2, inline) + number_field(3, len(inline) + sum(sizes))
    data = links + bytes_field(1, meta + b"".join(number_field(4, size) for size in sizes))
    return Block(cids.compute(cids.DAG_PB, data), data)


def leaf(data: bytes) -> Block:
    return Block(cids.compute(cids.RAW, data), data)


async def test_bytes_in_inner_nodes_are_at_their_places(tmp_path: Path):
    store = MemoryStore("me", MemoryExchange())
    one, two = leaf(b"one"), leaf(b"two")
    inner = node(b"<inner>", (one.cid, 3), (two.cid, 3))
    top = node(b"<top>", (two.cid, 3), (inner.cid, 13), (one.cid, 3), (inner.cid, 13))
    await store._keep([one, two, inner, top], False)
    assert await store.export_file(top.cid.text, tmp_path / "out") == 37
    expected = b"<top>two<inner>onetwoone<inner>onetwo"
    assert (tmp_path / "out").read_bytes() == expected == await store.get_bytes(top.cid.text)
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("size", [(1 << 53) + 1, 1 << 62, (1 << 64) - 2])
async def test_a_node_that_lies_about_sizes_is_corrupt(size: int, tmp_path: Path):
    store = MemoryStore("me", MemoryExchange())
    one, two = leaf(b"?" * 100), leaf(b"!")
    top = node(b"", (one.cid, size), (two.cid, 1))
    await store._keep([one, two, top], False)
    with pytest.raises(BlockCorrupt):
        await store.export_file(top.cid.text, tmp_path / "out")
    assert not list(tmp_path.iterdir())


async def test_a_file_of_which_parts_are_nowhere_leaves_none(tmp_path: Path):
    store = MemoryStore("me", MemoryExchange())
    missing = MemoryStore("other", MemoryExchange())
    cid = await missing.add_bytes(pattern(3 * CHUNK))
    root = cids.parse(cid)
    await store._keep([Block(root, await missing._local(root))], False)
    with pytest.raises(BlockMissing):
        await store.export_file(cid, tmp_path / "out", timeout=0.1)
    assert not list(tmp_path.iterdir())
