"""Blocks and pins on disk: corruption, leftovers, durability, a full disk."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
import trio

from p2p.ipfs import cid as cids
from p2p.ipfs import dagcbor
from p2p.ipfs import disk as disk_module
from p2p.ipfs.api import BlockMissing, DiskFull, Pin
from p2p.ipfs.audiences import DiskAudiences
from p2p.ipfs.blocks import BlocksOnDisk
from p2p.ipfs.disk import DiskBlocks
from p2p.ipfs.embedded import open_embedded
from p2p.ipfs.group_commit import GroupCommit
from p2p.ipfs.pins import DiskPins
from p2p.ipfs.settings import StoreSettings
from p2p.ipfs.unixfs import Block
from tests.support.unixfs_reference import CHUNK, pattern


def block(text: bytes) -> Block:
    return Block(cids.compute(cids.RAW, text), text)


def open_disk(folder: Path, synced_memory: int = 100) -> DiskBlocks:
    disk = DiskBlocks(folder, reserve_bytes=0, synced_memory=synced_memory)
    disk.open()
    return disk


@pytest.fixture
def fsyncs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was fsynced, as file names."""
    seen: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        seen.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    return seen


def path_of(folder: Path, each: Block) -> Path:
    return folder / "blocks" / each.cid.text[-3:-1] / each.cid.text


@pytest.mark.parametrize("durable", [True, False])
def test_a_block_that_comes_several_times_at_once_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool):
    written: list[bytes] = []
    real = disk_module._write_new
    monkeypatch.setattr(disk_module, "_write_new", lambda path, data: (written.append(data), real(path, data))[1])
    disk = open_disk(tmp_path)
    disk.put([block(b"common"), block(b"own"), block(b"common")], durable=durable)
    assert sorted(written) == [b"common", b"own"]
    assert (disk.blocks, disk.bytes) == (2, 9)


def test_blocks_are_there_after_reopening(tmp_path: Path):
    one, two = block(b"one"), block(b"two!")
    disk = open_disk(tmp_path)
    disk.put([one, two], durable=True)
    disk.put([one], durable=False)
    again = open_disk(tmp_path)
    for each in (disk, again):
        assert (each.blocks, each.bytes) == (2, 7)
        assert each.get(one.cid) == b"one"
        assert each.has(two.cid)
        assert each.size(two.cid) == 4
    again.remove(one.cid)
    again.remove(one.cid)
    assert (again.blocks, again.bytes) == (1, 4)
    assert again.get(one.cid) is None


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path):
    open_disk(tmp_path)
    (tmp_path / "tmp" / "123-0").write_bytes(b"half")
    disk = open_disk(tmp_path)
    assert not list((tmp_path / "tmp").iterdir())
    assert disk.blocks == 0


@pytest.mark.parametrize("rot", [b"onf", b"", b"one more"])
def test_a_corrupt_file_is_set_aside_and_can_be_written_again(tmp_path: Path, rot: bytes):
    one = block(b"one")
    disk = open_disk(tmp_path)
    disk.put([one], durable=True)
    path_of(tmp_path, one).write_bytes(rot)
    assert disk.get(one.cid) is None
    assert not disk.has(one.cid)
    assert disk.corrupt == 1
    assert disk.blocks == 0
    disk.put([one], durable=True)
    assert disk.get(one.cid) == b"one"


def test_putting_a_block_over_its_rotten_file_heals_it(tmp_path: Path):
    one = block(b"one")
    disk = open_disk(tmp_path)
    disk.put([one], durable=False)
    path_of(tmp_path, one).write_bytes(b"onf")
    disk.put([one], durable=False)
    assert disk.get(one.cid) == b"one"
    assert (disk.blocks, disk.bytes) == (1, 3)


def test_durable_means_fsynced_whoever_wrote_it(tmp_path: Path, fsyncs: list[str]):
    one = block(b"one")
    disk = open_disk(tmp_path)
    disk.put([one], durable=False)
    assert one.cid.text not in fsyncs
    disk.put([one], durable=True)
    shard = one.cid.text[-3:-1]
    assert fsyncs[-2:] == [one.cid.text, shard]
    fsyncs.clear()
    disk.put([one], durable=True)
    disk.sync([one.cid])
    assert not fsyncs, "it is known to be on the disk"
    open_disk(tmp_path).sync([one.cid])
    assert fsyncs[-2:] == [one.cid.text, shard]


def test_a_batch_shares_the_fsyncs_of_folders(tmp_path: Path, fsyncs: list[str]):
    disk = open_disk(tmp_path)
    blocks = [block(bytes([i, j])) for i in range(20) for j in range(20)]
    disk.put(blocks, durable=False)
    fsyncs.clear()
    disk.sync(each.cid for each in blocks)
    shards = {each.cid.text[-3:-1] for each in blocks}
    assert len(fsyncs) == len(blocks) + len(shards) + 1 < 2 * len(blocks)
    assert fsyncs[-1] == "blocks", "the shards are new in it"
    fsyncs.clear()
    more = next(b for b in map(block, map(str.encode, map(str, range(10_000)))) if b.cid.text[-3:-1] in shards)
    disk.put([more], durable=True)
    assert "blocks" not in fsyncs


def test_what_is_known_to_be_synced_is_bounded(tmp_path: Path, fsyncs: list[str]):
    disk = open_disk(tmp_path, synced_memory=2)
    blocks = [block(bytes([i])) for i in range(3)]
    disk.put(blocks, durable=True)
    fsyncs.clear()
    disk.sync(each.cid for each in blocks)
    assert len(fsyncs) == 2


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    disk = open_disk(tmp_path)

    write, written = os.write, list[int]()

    def full(handle: int, data: memoryview) -> int:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(write(handle, data[:1]))
        return 1

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(DiskFull):
            disk.put([block(b"xyz")], durable=True)
    assert written == [1]
    assert not list((tmp_path / "tmp").iterdir())
    disk.put([block(b"x")], durable=True)
    assert disk.blocks == 1


def test_other_errors_of_the_disk_are_not_called_full(tmp_path: Path):
    disk = open_disk(tmp_path)
    shutil.rmtree(tmp_path / "tmp")
    with pytest.raises(FileNotFoundError):
        disk.put([block(b"x")], durable=True)


def test_some_space_is_left_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    disk = DiskBlocks(tmp_path, reserve_bytes=1000, synced_memory=1)
    disk.open()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk_module.shutil, "disk_usage", lambda _: usage._replace(free=1001))
    disk.put([block(b"x")], durable=False)
    with pytest.raises(DiskFull):
        disk.put([block(b"xy")], durable=False)


def test_pins_survive_and_change_all_or_nothing(tmp_path: Path):
    pins = DiskPins(tmp_path / "pins.sqlite")
    pins.open()
    pins.apply([("a", Pin("r")), ("b", Pin("")), ("a", Pin("s", False, 7.5)), ("b", None)])
    with pytest.raises(sqlite3.Error):
        pins.apply([("c", Pin("r")), ("d", Pin(object()))])  # type: ignore[list-item]
    assert pins.all() == {"a": Pin("s", False, 7.5)}
    pins.close()
    pins.close()
    again = DiskPins(tmp_path / "pins.sqlite")
    again.open()
    assert again.all() == {"a": Pin("s", False, 7.5)}
    again.close()


def test_a_broken_pin_file_is_an_error_at_once(tmp_path: Path):
    (tmp_path / "pins.sqlite").write_bytes(b"rubbish" * 1000)
    with pytest.raises(sqlite3.DatabaseError):
        DiskPins(tmp_path / "pins.sqlite").open()


async def test_pins_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(self: DiskPins, changes: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(DiskPins, "apply", full)
    async with open_embedded(tmp_path) as store:
        with pytest.raises(DiskFull):
            await store.pin(await store.add_bytes(b"x"))


async def test_pinning_makes_a_dag_durable(tmp_path: Path, fsyncs: list[str]):
    async with open_embedded(tmp_path) as store:
        cid = await store.add_bytes(pattern(CHUNK + 1), durable=False)
        fsyncs.clear()
        await store.pin(cid)
        assert len([name for name in fsyncs if name.startswith("baf")]) == 3


async def test_a_block_that_vanished_cannot_be_made_durable(tmp_path: Path):
    blocks = BlocksOnDisk(tmp_path, StoreSettings(reserve_bytes=0))
    await blocks.open()
    with pytest.raises(BlockMissing):
        await blocks.sync([block(b"x").cid])
    await blocks.close()


async def test_commits_at_the_same_time_are_grouped():
    batches: list[list[int]] = []

    async def commit(items: list[int]) -> None:
        batches.append(items)
        await trio.testing.wait_all_tasks_blocked()

    group = GroupCommit(commit, max_batch=8)
    async with trio.open_nursery() as nursery:
        for i in range(20):
            nursery.start_soon(group.submit, [i])
    assert sorted(item for batch in batches for item in batch) == list(range(20))
    assert len(batches) <= 5


async def test_a_failed_commit_reaches_everyone_in_it_and_nobody_else():
    async def commit(items: list[int]) -> None:
        await trio.testing.wait_all_tasks_blocked()
        if 13 in items:
            raise ValueError("unlucky")

    group = GroupCommit(commit, max_batch=5)
    failed: list[int] = []

    async def one(i: int) -> None:
        try:
            await group.submit([i])
        except ValueError:
            failed.append(i)

    async with trio.open_nursery() as nursery:
        for i in range(30):
            nursery.start_soon(one, i)
    assert failed == [13], "the others are committed without it"


async def test_a_cancelled_commit_does_not_take_others_with_it():
    done: list[int] = []
    gate = trio.Event()

    async def commit(items: list[int]) -> None:
        await gate.wait()
        done.extend(items)

    group = GroupCommit(commit)
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def first() -> None:
            with scope:
                await group.submit([1])

        nursery.start_soon(first)
        await trio.testing.wait_all_tasks_blocked()
        for i in (2, 3):
            nursery.start_soon(group.submit, [i])
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert not done
        gate.set()
    assert sorted(done) == [1, 2, 3], "what is begun is waited for"


async def test_a_disk_that_fills_up_in_a_batch_keeps_what_had_room_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write, room = os.write, 4

    def fill(handle: int, data: memoryview) -> int:
        nonlocal room
        if os.readlink(f"/proc/self/fd/{handle}").startswith(str(tmp_path / "tmp")):
            room -= 1
            if room < 0:
                raise OSError(errno.EDQUOT, "Disk quota exceeded")
        return write(handle, data)

    blocks = BlocksOnDisk(tmp_path, StoreSettings(reserve_bytes=0))
    await blocks.open()
    results: list[bool] = []

    async def put(number: int) -> None:
        try:
            await blocks.put([block(bytes([number]))], durable=False)
            results.append(True)
        except DiskFull:
            results.append(False)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fill)
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(put, number)
        with pytest.raises(DiskFull):
            await blocks.put([block(bytes([n, n])) for n in range(3)], durable=True)
    assert sorted(results) == [False] * 6 + [True] * 4
    assert blocks.count()[0] == 4
    assert not list((tmp_path / "tmp").iterdir())
    await blocks.close()


async def test_when_audiences_cannot_be_written_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    blocks = BlocksOnDisk(tmp_path, StoreSettings(reserve_bytes=0))
    await blocks.open()
    await blocks.put([block(b"x")], durable=False, audience="job")

    def full() -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(blocks._audiences, "flush", full)
    with pytest.raises(DiskFull):
        await blocks.sync([block(b"x").cid])
    monkeypatch.undo()
    await blocks.close()


async def test_when_it_cannot_be_written_that_a_block_is_anothers_as_well_room_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with open_embedded(tmp_path) as store:
        await store.private_to("job 1").put_dag({})
        asked: list[str] = []

        async def make_room() -> bool:
            await trio.lowlevel.checkpoint()
            asked.append("room")
            return True

        def full(*_: Any) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        store.make_room = make_room
        with monkeypatch.context() as m:
            m.setattr(DiskAudiences, "_add", full)
            with pytest.raises(DiskFull):
                await store.private_to("job 2").put_lacking([dagcbor.encode({})])
        assert asked == ["room"]
        assert not store.health().ok
        assert await store.private_to("job 2").put_lacking([dagcbor.encode({}), dagcbor.encode({"n": 1})]) == 1
        assert store.health().ok


async def test_a_file_that_a_power_cut_left_empty_is_written_again(tmp_path: Path):
    async with open_embedded(tmp_path) as store:
        cid = await store.put_dag({"n": 1}, durable=False)
        (tmp_path / "blocks" / cid[-3:-1] / cid).write_bytes(b"")
        assert await store.put_lacking([dagcbor.encode({"n": 1})]) == 1
        assert await store.get_dag(cid) == {"n": 1}


async def test_one_who_has_too_much_is_not_in_the_way_of_the_others(tmp_path: Path):
    blocks = BlocksOnDisk(tmp_path, StoreSettings(reserve_bytes=0, max_bytes=1000))
    await blocks.open()
    errors: list[int] = []

    async def put(size: int) -> None:
        try:
            await blocks.put([block(bytes(size))], durable=False)
        except DiskFull:
            errors.append(size)

    async with trio.open_nursery() as nursery:
        for size in (1, 2, 2000, 3, 4):
            nursery.start_soon(put, size)
    assert errors == [2000]
    assert blocks.count() == (4, 10)
    await blocks.close()


async def test_a_block_that_was_made_durable_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    disk = open_disk(tmp_path)
    one = block(b"one")
    temporary = disk._write_temporary

    def meanwhile(data: bytes) -> str:
        monkeypatch.undo()
        disk.put([one], durable=True)
        return temporary(data)

    monkeypatch.setattr(disk, "_write_temporary", meanwhile)
    disk.put([one], durable=False)
    assert one.cid.text in disk._synced
    assert disk.blocks == 1
    assert not list((tmp_path / "tmp").iterdir())


async def test_who_is_cancelled_while_its_block_is_written_is_told_that_it_was(tmp_path: Path):
    """Else it would let go of what is about to be there."""
    blocks = BlocksOnDisk(tmp_path, StoreSettings(reserve_bytes=0))
    await blocks.open()
    gate, begun = threading.Event(), threading.Event()
    real = blocks._disk.put

    def slowly(*args: Any, **kwargs: Any) -> None:
        begun.set()
        gate.wait(5)
        real(*args, **kwargs)

    blocks._disk.put = slowly  # type: ignore[method-assign]
    scope, told = trio.CancelScope(), list[bool]()

    async def follower() -> None:
        with scope:
            await blocks.put([block(b"follower")], durable=False)
            told.append(is_there(blocks, b"follower"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: blocks.put([block(b"leader")], durable=False))
        nursery.start_soon(follower)
        while not begun.is_set():
            await trio.sleep(0.001)
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert not told
        gate.set()
    assert told == [True]
    await blocks.close()


def is_there(blocks: BlocksOnDisk, data: bytes) -> bool:
    return blocks._disk.has(block(data).cid)
