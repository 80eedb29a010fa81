"""kill -9 amid everything that brings content in: archives, fetching, a job's blocks, and handing over to Kubo."""

from __future__ import annotations

import random
from pathlib import Path

import trio

from p2p.ipfs import cid as cids
from p2p.ipfs.embedded import open_embedded
from p2p.ipfs.memory import MemoryStore
from tests.support.content_contract import pieces
from tests.support.kubo_rpc_server import kubo_rpc_server
from tests.support.kubo_stores import PATIENT, handed_over, on, out_of_the_spool
from tests.support.lives import lives_of
from tests.support.transfer_worker import SETTINGS, WANTED, blocks_of

WORKER = "tests.support.transfer_worker"
LIVES = 20


async def test_an_import_that_was_killed_leaves_sound_blocks_and_one_that_was_acknowledged_all_of_them(tmp_path: Path) -> None:
    chance, folder, archives = random.Random(3), tmp_path / "store", tmp_path / "archives"
    archives.mkdir()
    outcomes: set[bool] = set()
    async with lives_of(WORKER, "archive", str(folder), str(archives)) as lives:
        for seed in range(LIVES):
            source = MemoryStore(settings=SETTINGS)
            data = random.Random(seed).randbytes(20_000)
            root = await source.add_bytes(data)
            archive = b"".join([piece async for piece in source.export_car([root])])
            (archives / f"{seed}.car").write_bytes(archive)
            said = await lives.live(seed, chance.randrange(10))
            outcomes.add("imported" in said)
            async with open_embedded(folder, settings=SETTINGS) as store:
                files = blocks_of(folder)
                assert store.statistics().blocks == len(files)
                assert not list((folder / "tmp").iterdir())
                if "imported" in said:
                    await store.pin(root)
                else:
                    assert (await store.import_car(pieces(archive, 1000))).roots == (root,)
                assert await store.get_bytes(root) == data
    assert outcomes == {True, False}


async def test_a_fetch_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    chance, folder = random.Random(5), tmp_path / "store"
    fetched: list[str] = []
    killed = 0
    async with lives_of(WORKER, "fetch", str(folder)) as lives:
        with trio.fail_after(60):
            while True:
                said = await lives.live(killed, chance.randrange(1, 25))
                fetched += [line for line in said if line != "whole"]
                blocks_of(folder)
                if "whole" in said:
                    break
                killed += 1
    assert killed >= 3
    async with open_embedded(folder, settings=SETTINGS) as store:
        source = MemoryStore(settings=SETTINGS)
        root = await source.add_bytes(WANTED)
        assert await store.get_bytes(root) == WANTED
    assert len(set(fetched)) == source.statistics().blocks
    assert len(fetched) - len(set(fetched)) <= killed * SETTINGS.parallel, "only what was on its way is fetched again"


async def test_no_block_of_a_job_is_everybodys_whenever_the_node_was_killed(tmp_path: Path) -> None:
    """Whom a block is for is noted before the block is there."""
    chance, folder = random.Random(7), tmp_path / "store"
    seen = 0
    async with lives_of(WORKER, "private", str(folder)) as lives:
        for seed in range(LIVES):
            said = await lives.live(seed, chance.randrange(6))
            async with open_embedded(folder, settings=SETTINGS) as store:
                files = blocks_of(folder)
                for path in files:
                    assert await store._blocks.audiences(cids.parse(path.name)) == {"job"}
                for line in said:
                    assert await store.has(line.removeprefix("added "))
                seen = max(seen, len(files))
    assert seen >= LIVES


async def test_a_node_killed_amid_handing_over_to_kubo_loses_nothing_and_leaves_no_pin_behind(tmp_path: Path) -> None:
    chance, folder = random.Random(11), tmp_path / "spool"
    pinned: set[str] = set()
    checked = 0
    async with kubo_rpc_server(offline=True) as server, lives_of(WORKER, "kubo", str(folder), server.api) as lives:
        server.lag = {"pin/add": 0.05, "block/put": 0.01}
        theirs = await server.store.add_bytes(b"the owner's")
        await server.store.pin(theirs)
        for seed in range(LIVES):
            for line in await lives.live(seed, chance.randrange(25)):
                sign, _, cid = line.partition(" ")
                (pinned.add if sign == "+" else pinned.discard)(cid)
            if seed % 4 == 3:
                async with on(server, folder, SETTINGS, rpc=PATIENT) as store:
                    blocks_of(folder)
                    wanted = set(await store.pins())
                    assert pinned <= wanted
                    await handed_over(store, within=30)
                    assert set(await server.store.pins()) == {theirs, *wanted}
                    await out_of_the_spool(store, within=30)
                    for cid in wanted:
                        await store.get_bytes(cid)
                        await store.unpin(cid)
                    await handed_over(store, within=30)
                    assert set(await server.store.pins()) == {theirs}, "none of ours is taken for somebody else's"
                checked += len(pinned)
                pinned.clear()
    assert checked
