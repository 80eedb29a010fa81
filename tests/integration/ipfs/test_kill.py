"""A process that writes is killed at random points; what it acknowledged is there, and nothing else is broken."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import trio

from p2p.ipfs import cid as cids
from p2p.ipfs.embedded import open_embedded
from p2p.ipfs.settings import StoreSettings
from tests.support.lives import ROOT, lives_of
from tests.support.store_worker import SETTINGS, nothing


async def write_until_killed(folder: Path, seed: int, acknowledgements: int) -> list[str]:
    command = [sys.executable, "-m", "tests.support.block_writer", str(folder), str(seed)]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(lambda **kwargs: trio.run_process(command, cwd=ROOT, stdout=subprocess.PIPE, check=False, **kwargs))
        text = b""
        while text.count(b"\n") < acknowledgements:
            text += await process.stdout.receive_some()
        process.kill()
        while piece := await process.stdout.receive_some():
            text += piece
    return text.decode().split("\n")[1:-1]


async def test_acknowledged_blocks_survive_kill_9(tmp_path: Path):
    chance = random.Random(7)
    acknowledged: list[str] = []
    for seed in range(3):
        acknowledged += await write_until_killed(tmp_path / "store", seed, chance.randrange(2, 40))
        async with open_embedded(tmp_path / "store", settings=StoreSettings(reserve_bytes=0)) as store:
            assert acknowledged
            for cid in acknowledged:
                await store.get_bytes(cid)
            for cid, reason in (await store.pins()).items():
                await store.get_bytes(cid)
                assert reason == "kept"
            assert not list((tmp_path / "store" / "tmp").iterdir())
            files = [path for path in (tmp_path / "store" / "blocks").rglob("*") if path.is_file()]
            assert store.statistics().blocks == len(files)
            assert all(cids.parse(path.name).matches(path.read_bytes()) for path in files)


async def test_a_kill_amid_adding_pinning_unpinning_and_collecting_leaves_a_consistent_store(tmp_path: Path):
    """Many lives of one store, each ended at a random point; the next one goes on with what the last one left half done."""
    chance = random.Random(11)
    folder = tmp_path / "store"
    pinned: set[str] = set()

    async with lives_of("tests.support.store_worker", str(folder)) as lives:
        for seed in range(40):
            for line in await lives.live(seed, chance.randrange(25)):
                sign, _, cid = line.partition(" ")
                (pinned.add if sign == "+" else pinned.discard)(cid)

            if seed % 2:  # of two kills the second one also meets what nobody has tidied up
                await check_store(folder, pinned, collected=seed % 4 == 3)
    assert pinned


async def check_store(folder: Path, pinned: set[str], *, collected: bool) -> None:
    async with open_embedded(folder, settings=SETTINGS) as store:
        there = await store.pins()
        assert pinned <= set(there)
        if collected:
            await store.collect(nothing())
            assert (await store.collect(nothing())).needed == store.statistics().blocks
        for cid in there:
            await store.get_bytes(cid)
        files = [path for path in (folder / "blocks").rglob("*") if path.is_file()]
        assert store.statistics().blocks == len(files)
        assert store.statistics().bytes == sum(path.stat().st_size for path in files)
        assert all(cids.parse(path.name).matches(path.read_bytes()) for path in files)
        assert not list((folder / "tmp").iterdir())
