"""Processes that bring content into a store, until they are killed: see `tests.support.lives`.

    python -m tests.support.transfer_worker LIFE FOLDER [...]

``archive FOLDER ARCHIVES``: imports ``ARCHIVES/SEED.car`` piece by piece (``read``), and says so at the end (``imported``).
``fetch FOLDER``: fetches one file, the same in every life, from a peer in the same process (``fetched CID``, ``whole``).
``private FOLDER``: adds files for a job in several ways (``added CID``).
``kubo FOLDER API``: adds and pins (``+ CID``) and unpins (``- CID``) files in a store whose Kubo is elsewhere.
"""

from __future__ import annotations

import random
import sys
from collections.abc import AsyncGenerator, Collection
from pathlib import Path

import trio

from p2p.ipfs.api import BlockMissing, StoreUnavailable
from p2p.ipfs.blocks import BlocksOnDisk
from p2p.ipfs.cid import Cid, parse
from p2p.ipfs.embedded import open_embedded
from p2p.ipfs.kubo.settings import KuboSettings
from p2p.ipfs.kubo.store import open_kubo
from p2p.ipfs.memory import MemoryStore
from p2p.ipfs.settings import StoreSettings
from p2p.ipfs.store import Store
from p2p.ipfs.traffic import Traffic
from tests.support.lives import live, say

SETTINGS = StoreSettings(chunk=1000, write_batch=2, parallel=4, reserve_bytes=0, grace=0)
WANTED = random.Random(1).randbytes(200_000)
"""What `fetch` fetches."""


async def archive(folder: Path, archives: Path, seed: int) -> None:
    async def pieces() -> AsyncGenerator[bytes, None]:
        with (archives / f"{seed}.car").open("rb") as file:
            while piece := file.read(3000):
                say("read")
                yield piece
                await trio.lowlevel.checkpoint()

    async with open_embedded(folder, settings=SETTINGS) as store:
        await store.import_car(pieces())
        say("imported")


class Peer:
    """An exchange with one peer that has everything."""

    def __init__(self, source: MemoryStore) -> None:
        self.traffic = Traffic()
        self._source = source

    async def fetch_block(self, cid: Cid, providers: Collection[str], timeout: float, *, private: bool = False) -> bytes:
        data = await self._source._blocks.get(cid)
        assert data is not None
        say(f"fetched {cid}")
        return data


async def fetch(folder: Path, seed: int) -> None:
    source = MemoryStore(settings=SETTINGS)
    cid = await source.add_bytes(WANTED)
    blocks = BlocksOnDisk(folder, SETTINGS)
    await blocks.open()
    await Store("embedded", blocks, Peer(source), SETTINGS).fetch(cid)
    say("whole")


async def private(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    async with open_embedded(folder, settings=SETTINGS) as store:
        job = store.private_to("job")

        async def add() -> None:
            while True:
                data = chance.randbytes(chance.randrange(1, 5000))
                say(f"added {await job.add_bytes(data, durable=chance.random() < 0.5)}")

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(add)


async def kubo(folder: Path, api: str, seed: int) -> None:
    chance = random.Random(seed)
    settings = KuboSettings(api, retry_first=0.02, retry_most=0.1, ping=0.02, settle=chance.choice([0.0, 0.05]), parallel=2)
    async with open_kubo(folder, settings=SETTINGS, kubo=settings) as store:

        async def work(number: int) -> None:
            own = random.Random(number)
            pool = [own.randbytes(size * 1000 + 5) for size in range(1, 5)]
            while True:
                cid = await store.add_bytes(chance.choice(pool))
                try:
                    await store.pin(cid, reason="kept")
                except (BlockMissing, StoreUnavailable):
                    continue
                say(f"+ {cid}")
                await trio.sleep(chance.random() * 0.02)
                if chance.random() < 0.6:
                    say(f"- {cid}")
                    await store.unpin(cid)

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(work, number)


def blocks_of(folder: Path) -> list[Path]:
    """The files of a store's blocks, each checked."""
    files = [path for path in (folder / "blocks").rglob("*") if path.is_file()]
    assert all(parse(path.name).matches(path.read_bytes()) for path in files)
    return files


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["archive", folder, archives]:
            live(archive, Path(folder), Path(archives))
        case ["fetch", folder]:
            live(fetch, Path(folder))
        case ["private", folder]:
            live(private, Path(folder))
        case ["kubo", folder, api]:
            live(kubo, Path(folder), api)
        case _:
            sys.exit("which life?")
