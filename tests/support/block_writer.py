"""A process that stores blocks and files durably and says so, until it is killed.

Each line on stdout is the CID of something that was acknowledged as durable.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import trio

from p2p.ipfs.embedded import open_embedded
from p2p.ipfs.settings import StoreSettings


async def main(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    async with open_embedded(folder, settings=StoreSettings(chunk=1000, write_batch=2, reserve_bytes=0)) as store:
        print("ready", flush=True)

        async def write() -> None:
            while True:
                cid = await store.add_bytes(chance.randbytes(chance.randrange(5000)))
                if chance.random() < 0.2:
                    await store.pin(cid, reason="kept")
                print(cid, flush=True)

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(write)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
