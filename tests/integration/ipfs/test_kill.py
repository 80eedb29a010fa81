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

ROOT = Path(__file__).parents[3]


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
