"""Processes that each add, pin, unpin and collect in one store, and say what they have acknowledged, until they are killed.

See `tests.support.lives`.

Lines on stdout: ``+ CID`` is pinned, ``- CID`` is about to be unpinned. Each of its tasks has contents of its own, made of leaves
that all of them share; they are the same in every life of the store.
"""

from __future__ import annotations

import random
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import trio

from p2p.ipfs.api import BlockMissing
from p2p.ipfs.embedded import open_embedded
from p2p.ipfs.settings import StoreSettings
from tests.support.lives import live, say

SETTINGS = StoreSettings(chunk=1000, write_batch=2, reserve_bytes=0, grace=0, collect_batch=4)


async def nothing() -> AsyncGenerator[str, None]:
    for cid in ():
        yield cid


async def main(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    leaves = [bytes([n]) * 1000 for n in range(8)]
    async with open_embedded(folder, settings=SETTINGS) as store:

        async def work(number: int) -> None:
            own = random.Random(number)
            pool = [b"".join(own.choices(leaves, k=size)) + b"%d" % number for size in range(6)]
            while True:
                cid = await store.add_bytes(chance.choice(pool), durable=chance.random() < 0.3)
                try:
                    await store.pin(cid, reason="kept")
                except BlockMissing:
                    continue
                say(f"+ {cid}")
                if chance.random() < 0.6:
                    say(f"- {cid}")
                    await store.unpin(cid)

        async def collect() -> None:
            while True:
                await store.collect(nothing(), down_to=chance.choice([0, 10_000]))
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(work, number)
            nursery.start_soon(collect)


if __name__ == "__main__":
    live(main, Path(sys.argv[1]))
