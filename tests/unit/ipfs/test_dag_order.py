"""In which order the parts of a DAG are fetched."""

from __future__ import annotations

import random

from p2p.ipfs import cid as cids
from p2p.ipfs.cid import Cid
from p2p.ipfs.dag import Walk
from p2p.ipfs.memory import MemoryExchange, MemoryStore
from p2p.ipfs.settings import StoreSettings
from tests.support.unixfs_reference import CHUNK, pattern

ONE_BY_ONE = StoreSettings(parallel=1)


async def order(store: MemoryStore, root: str, rng: random.Random | None) -> list[Cid]:
    asked: list[Cid] = []

    async def need(cid: Cid) -> bytes:
        asked.append(cid)
        return await store._local(cid)

    async def missing(cid: Cid) -> int | None:
        return None

    await Walk(need, missing, ONE_BY_ONE, rng).run(cids.parse(root))
    return asked


async def test_nodes_that_fetch_the_same_fetch_it_in_different_orders_and_all_of_it():
    store = MemoryStore("me", MemoryExchange())
    root = await store.add_bytes(pattern(40 * CHUNK))
    plain = await order(store, root, None)
    assert await order(store, root, None) == plain
    one, other = await order(store, root, random.Random(1)), await order(store, root, random.Random(2))
    assert one != other != plain
    assert sorted(c.text for c in one) == sorted(c.text for c in other) == sorted(c.text for c in plain)
    assert await order(store, root, random.Random(1)) == one
