"""Whom blocks are for, on disk and in memory: the same rules."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio

from p2p.ipfs import cid as cids
from p2p.ipfs.blocks import Blocks, BlocksInMemory, BlocksOnDisk
from p2p.ipfs.settings import StoreSettings
from p2p.ipfs.store import Store
from p2p.ipfs.unixfs import Block
from tests.support.unixfs_reference import CHUNK, pattern

SETTINGS = StoreSettings(reserve_bytes=0)


def block(data: bytes) -> Block:
    return Block(cids.compute(cids.RAW, data), data)


@pytest.fixture(params=["disk", "memory"])
async def blocks(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Blocks]:
    if request.param == "memory":
        yield BlocksInMemory()
        return
    on_disk = BlocksOnDisk(tmp_path, SETTINGS)
    await on_disk.open()
    yield on_disk
    await on_disk.close()


@pytest.mark.parametrize("durable", [True, False])
async def test_a_new_block_is_for_whom_it_was_written(blocks: Blocks, durable: bool):
    a, b = block(b"a"), block(b"b")
    await blocks.put([a], durable=durable, audience="job 1")
    await blocks.put([b], durable=durable)
    assert (await blocks.audiences(a.cid), await blocks.audiences(b.cid)) == ({"job 1"}, frozenset())


async def test_blocks_that_come_together_are_for_whom_each_was_written(blocks: Blocks):
    made = {f"job {n}": [block(f"{n} {part}".encode()) for part in range(3)] for n in range(20)}
    common = block(b"common")
    async with trio.open_nursery() as nursery:
        for job, its in made.items():
            nursery.start_soon(partial(blocks.put, [*its, common], durable=False, audience=job))
    for job, its in made.items():
        assert [await blocks.audiences(b.cid) for b in its] == [{job}] * 3
    assert await blocks.audiences(common.cid) == made.keys()


async def test_blocks_that_are_here_become_anothers_as_well(blocks: Blocks):
    private, public, absent = block(b"private"), block(b"public"), block(b"absent")
    await blocks.put([private], durable=False, audience="job 1")
    await blocks.put([public], durable=False)
    for _ in range(2):
        assert await blocks.adopt([private, absent, public], "job 2") == [absent]
    assert await blocks.adopt([private], "") == []
    assert (await blocks.audiences(private.cid), await blocks.audiences(public.cid)) == ({"job 1", "job 2"}, frozenset())
    assert not await blocks.audiences(absent.cid)


async def test_a_block_may_be_for_several(blocks: Blocks):
    a = block(b"a")
    await blocks.put([a], durable=False, audience="job 1")
    await blocks.put([a], durable=True, audience="job 2")
    await blocks.share(a.cid, "job 3")
    assert await blocks.audiences(a.cid) == {"job 1", "job 2", "job 3"}


async def test_what_is_everybodys_stays_so_and_what_becomes_so_is(blocks: Blocks):
    public, private = block(b"public"), block(b"private")
    await blocks.put([public], durable=True)
    await blocks.put([public], durable=True, audience="job")
    await blocks.share(public.cid, "job")
    await blocks.put([private], durable=True, audience="job")
    assert not await blocks.audiences(public.cid)
    await blocks.put([private], durable=True)
    assert not await blocks.audiences(private.cid), "somebody wrote the same for everybody"


async def test_what_is_removed_leaves_nothing_behind(blocks: Blocks):
    a = block(b"a")
    await blocks.put([a], durable=True, audience="job")
    await blocks.remove([a.cid])
    assert not await blocks.audiences(a.cid)


async def test_an_audience_gets_its_name_later(blocks: Blocks):
    a, b = block(b"a"), block(b"b")
    await blocks.put([a, b], durable=True, audience="draft")
    await blocks.share(b.cid, "job")
    await blocks.rename_audience("draft", "job")
    assert (await blocks.audiences(a.cid), await blocks.audiences(b.cid)) == ({"job"}, {"job"})


async def test_a_forgotten_audience_leaves_the_others_and_opens_nothing(blocks: Blocks):
    shared, own, both = block(b"shared"), block(b"own"), block(b"both")
    await blocks.put([shared, own, both], durable=True, audience="job 1")
    await blocks.share(both.cid, "job 2")
    for job in ("job 2", "job 3"):
        await blocks.share(shared.cid, job)
    await blocks.forget_audiences(["job 1", "job 2", "unknown"])
    assert await blocks.audiences(shared.cid) == {"job 3"}
    assert await blocks.audiences(own.cid) == {"job 1"}, "it would be everybody's without"
    assert len(await blocks.audiences(both.cid)) == 1
    assert await blocks.audiences(both.cid) <= {"job 1", "job 2"}


async def test_it_is_known_after_a_restart_and_when_a_block_lives_elsewhere(tmp_path: Path):
    a = block(b"a")
    first = BlocksOnDisk(tmp_path, SETTINGS)
    await first.open()
    await first.put([a], durable=True, audience="job")
    await first.move_out([a.cid])
    await first.close()
    again = BlocksOnDisk(tmp_path, SETTINGS)
    await again.open()
    assert await again.audiences(a.cid) == {"job"}
    assert not await again.has(a.cid)
    await again.close()


async def test_every_block_of_a_large_file_has_the_audience_until_it_is_opened_to_all(blocks: Blocks):
    store = Store("test", blocks, None, SETTINGS)
    data = pattern(3 * CHUNK)
    root = await store.private_to("job").add_bytes(data)
    parts = [cids.parse(root), *(cids.compute(cids.RAW, data[n : n + CHUNK]) for n in range(0, len(data), CHUNK))]
    assert [await blocks.audiences(cid) for cid in parts] == [{"job"}] * 4
    await store.private_to("other").fetch(root)
    assert [await blocks.audiences(cid) for cid in parts] == [{"job", "other"}] * 4
    await store.open_to_all(root)
    assert [await blocks.audiences(cid) for cid in parts] == [frozenset()] * 4


@pytest.mark.parametrize("first", ["", "job"])
async def test_of_two_who_write_the_same_at_once_everybody_wins(blocks: Blocks, first: str):
    other = "job" if not first else ""
    for number in range(20):
        one = block(bytes([number]))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(blocks.put, [block(b"first")], durable=False))  # so that the others wait, and go together
            nursery.start_soon(partial(blocks.put, [one], durable=False, audience=first))
            nursery.start_soon(partial(blocks.put, [one], durable=False, audience=other))
        assert await blocks.audiences(one.cid) == frozenset()
        assert (await blocks.look([one.cid]))[one.cid].audiences == frozenset()
