"""The tree of a snapshot: shape, sharing, bounds, and trees that somebody else made up."""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import AsyncExitStack, aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dimnode.core import snapshot_chunks
from dimnode.core.snapshot_chunks import MOST, Chunk, Chunker
from dimnode.snapshots import tree
from p2p.ipfs import cid as cids
from p2p.ipfs import dagcbor
from p2p.ipfs.api import BlockCorrupt, ContentStore
from p2p.ipfs.cid import Cid
from p2p.ipfs.memory import MemoryStore
from tests.support.content_contract import nothing


class Writer:
    """Keeps trees of (key, token)."""

    def __init__(self, store: ContentStore | None = None) -> None:
        self.store = store or MemoryStore()
        self.made: list[Chunk] = []

    async def leaf(self, chunk: Chunk) -> Cid:
        self.made.append(chunk)
        return cids.parse(await self.store.put_dag({"keys": list(chunk.keys), "print": chunk.fingerprint}))

    async def write(self, content: Mapping[str, bytes], before: tree.Tree | None = None) -> tree.Tree | None:
        self.made = []
        async with AsyncExitStack() as stack:
            old = tree.leaves(tree.Reading(self.store), before.root) if before is not None else None
            if old is not None:
                await stack.enter_async_context(aclosing(old))
            writer = tree.TreeWriter(self.store, self.leaf, old)
            for key in sorted(content):
                await writer.add(key, content[key])
            return await writer.finish()

    async def keys(self, root: Cid, after: str = "") -> list[str]:
        found: list[str] = []
        async for child in tree.leaves(tree.Reading(self.store), root, after):
            found += (await self.store.get_dag(child.cid.text))["keys"]
        return found


def some(count: int, seed: int = 1) -> dict[str, bytes]:
    rng = random.Random(seed)
    return {f"job-{rng.getrandbits(64):016x}": rng.randbytes(8) for _ in range(count)}


@pytest.mark.parametrize("count", [1, 2, 31, 200, 5000])
async def test_all_keys_are_found_again(count: int) -> None:
    writer, content = Writer(), some(count)
    made = await writer.write(content)
    assert made is not None
    assert made.count == count
    assert await writer.keys(made.root) == sorted(content)
    reading = tree.Reading(writer.store)
    for key in random.Random(2).sample(sorted(content), min(count, 20)):
        leaf = await tree.find(reading, made.root, key)
        assert leaf is not None
        assert key in (await writer.store.get_dag(leaf.cid.text))["keys"]
    assert await tree.find(reading, made.root, "zzz") is None
    middle = sorted(content)[count // 2]
    assert [k for k in await writer.keys(made.root, middle) if k > middle] == [k for k in sorted(content) if k > middle]


async def test_nothing_makes_no_tree() -> None:
    assert await Writer().write({}) is None


async def test_one_change_makes_one_leaf_anew() -> None:
    writer, content = Writer(), some(5000)
    before = await writer.write(content)
    assert len(writer.made) > 100
    blocks = writer.store.statistics().blocks
    changed = {**content, sorted(content)[2500]: b"else"}
    after = await writer.write(changed, before)
    assert len(writer.made) == 1
    assert writer.store.statistics().blocks - blocks <= 1 + 4  # the leaf and the way to the root
    assert after is not None
    assert after != before
    again = await writer.write(changed, after)
    assert (writer.made, again) == ([], after)


async def test_two_writers_of_the_same_content_make_the_same_tree() -> None:
    """Whatever they wrote before."""
    content = some(1000)
    one, two = Writer(), Writer()
    before = await two.write(some(300, seed=9) | dict(list(content.items())[:500]))
    assert await one.write(content) == await two.write(content, before)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.text(min_size=1, max_size=6), st.binary(max_size=3)), max_size=300), st.data())
async def test_a_tree_does_not_depend_on_the_one_before(items: list[tuple[str, bytes]], data: st.DataObject) -> None:
    content = {k: v for k, v in items if not any("\ud800" <= c <= "\udfff" for c in k)}
    part = data.draw(st.sampled_from([{}, content, dict(list(content.items())[::2])]))
    writer, fresh = Writer(), Writer()
    before = await writer.write(part)
    made = await writer.write(content, before)
    assert made == await fresh.write(content)
    if made is not None:
        assert await writer.keys(made.root) == sorted(content)


async def test_the_whole_tree_is_pinned_and_outlives_a_collection() -> None:
    writer, content = Writer(), some(500)
    made = await writer.write(content)
    assert made is not None
    await writer.store.pin(made.root.text)
    await writer.store.collect(nothing(), grace=0)
    assert await writer.keys(made.root) == sorted(content)


def test_pieces_have_a_bound_whatever_the_keys_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_chunks, "ends", lambda key, level=0: False)
    chunker = Chunker()
    made = [chunk for n in range(3 * MOST) if (chunk := chunker.add(f"{n:09}", b"")) is not None]
    assert [len(c.keys) for c in made] == [MOST] * 3
    with pytest.raises(ValueError, match="ascending"):
        chunker.add("0", b"")


async def index(store: ContentStore, level: int, *children: tuple[str, str, Cid]) -> Cid:
    entries = [[first, last, 1, b"p", link] for first, last, link in children]
    return cids.parse(await store.put_dag_bytes(dagcbor.encode_linked({"level": level, "children": entries})))


async def test_trees_that_make_no_sense_are_refused() -> None:
    store = MemoryStore()
    leaf = cids.parse(await store.put_dag({}))
    deep = await index(store, 1, ("a", "b", await index(store, 1, ("a", "b", leaf))))
    twice = await index(store, 0, ("a", "c", leaf), ("b", "d", leaf))
    backwards = await index(
        store, 1, ("m", "n", await index(store, 0, ("m", "n", leaf))), ("x", "y", await index(store, 0, ("a", "b", leaf)))
    )
    high = await index(store, 99, ("a", "b", leaf))
    plain = [
        cids.parse(await store.put_dag(v))
        for v in ({}, [], {"level": 0, "children": []}, {"level": 0, "children": [["a", "b", 1, b"", b"no"]]})
    ]
    for root in (deep, twice, backwards, high, *plain):
        with pytest.raises(BlockCorrupt):
            async for _ in tree.leaves(tree.Reading(store), root):
                pass
