from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from dimnode.daemon.file_cid import is_content
from dimnode.daemon.model_cache import ModelCache
from dimnode.errors import DataLoss, InvalidArgument, ResourceExhausted, Unavailable
from p2p.ipfs.api import BadCid, BlockCorrupt, BlockMissing, DiskFull
from p2p.ipfs.memory import MemoryStore


class FakeStore:
    """Content by CID; counts exports; may fail, or wait."""

    def __init__(self, **content: bytes) -> None:
        self.content = content
        self.exports = 0
        self.error: Exception | None = None
        self.gate: trio.Event | None = None

    async def export_file(self, cid: str, path: Path, **_: Any) -> int:
        self.exports += 1
        path.write_bytes(b"half")
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        path.write_bytes(self.content[cid])
        return len(self.content[cid])


@asynccontextmanager
async def running_cache(store: FakeStore, folder: Path, max_bytes: int = 100, **more: Any) -> AsyncGenerator[ModelCache]:
    more = {"whole": lambda path, cid: path.read_bytes() == store.content[cid], **more}
    cache = ModelCache(store, folder, max_bytes=max_bytes, fetch_timeout=1, **more)  # pyright: ignore[reportArgumentType]
    async with trio.open_nursery() as nursery:
        await nursery.start(cache.run)
        yield cache
        nursery.cancel_scope.cancel()


async def get(cache: ModelCache, cid: str, size: int) -> bytes:
    async with cache.use(cid, "onnx", size, ()) as path:
        return path.read_bytes()


async def test_one_download_serves_all_and_is_kept_over_restarts(tmp_path: Path) -> None:
    store = FakeStore(a=b"12345")
    store.gate = trio.Event()
    got: list[bytes] = []

    async def one(cache: ModelCache) -> None:
        got.append(await get(cache, "a", 5))

    async with running_cache(store, tmp_path) as cache:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one, cache)
            await trio.testing.wait_all_tasks_blocked()
            store.gate.set()
        assert got == [b"12345"] * 5
    (tmp_path / "left.part").write_bytes(b"x")
    async with running_cache(store, tmp_path) as cache:
        assert await get(cache, "a", 5) == b"12345"
        assert cache.cids() == ("a",)
        with pytest.raises(DataLoss):
            await get(cache, "a", 6)
    assert store.exports == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]


async def test_least_recently_used_goes_first_but_not_what_is_in_use_or_pinned(tmp_path: Path) -> None:
    store = FakeStore(a=bytes(40), b=bytes(40), c=bytes(40), d=bytes(40))
    pinned: set[str] = set()
    async with running_cache(store, tmp_path, pinned=pinned.__contains__) as cache:
        for cid in "aba":
            await get(cache, cid, 40)
        await get(cache, "c", 40)
        assert cache.cids() == ("a", "c")
        pinned.add("a")
        await get(cache, "d", 40)
        assert cache.cids() == ("a", "d")
        async with cache.use("d", "onnx", 40, ()):
            with pytest.raises(ResourceExhausted, match="in use"):
                await get(cache, "b", 40)
        await get(cache, "b", 40)
        assert sorted(p.stem for p in tmp_path.iterdir()) == ["a", "b"]
        with pytest.raises(ResourceExhausted, match="larger"):
            await get(cache, "c", 101)
        assert cache.statistics()["evicted"] == 3


@pytest.mark.parametrize(
    ("error", "kind"),
    [(BlockMissing("x"), Unavailable), (BlockCorrupt("x"), DataLoss), (BadCid("x"), InvalidArgument), (DiskFull("x"), ResourceExhausted)],
)
async def test_a_failed_download_leaves_nothing_and_can_be_tried_again(tmp_path: Path, error: Exception, kind: type[Exception]) -> None:
    store = FakeStore(a=b"12345")
    store.error = error
    async with running_cache(store, tmp_path) as cache:
        with pytest.raises(kind):
            await get(cache, "a", 5)
        assert list(tmp_path.iterdir()) == []
        store.error = None
        with pytest.raises(DataLoss):
            await get(cache, "a", 7)
        assert list(tmp_path.iterdir()) == []
        assert await get(cache, "a", 5) == b"12345"


async def test_a_download_ends_with_the_last_who_waits(tmp_path: Path) -> None:
    store = FakeStore(a=b"12345")
    store.gate = trio.Event()
    async with running_cache(store, tmp_path) as cache:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(get, cache, "a", 5)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert cache.statistics()["downloading"] == 0
        store.gate.set()
        assert await get(cache, "a", 5) == b"12345"


async def test_disk_headroom_is_asked_for(tmp_path: Path) -> None:
    async with running_cache(FakeStore(a=b"1"), tmp_path, admit=lambda size: "not enough free disk") as cache:
        with pytest.raises(ResourceExhausted, match="disk"):
            await get(cache, "a", 1)


async def test_a_folder_that_takes_no_file_fails_the_download_and_not_the_cache(tmp_path: Path) -> None:
    store = FakeStore(a=b"12345")
    async with running_cache(store, tmp_path) as cache:
        (tmp_path / "a.onnx").mkdir()  # a file cannot replace a folder
        with pytest.raises(ResourceExhausted, match="disk"):
            await get(cache, "a", 5)
        (tmp_path / "a.onnx").rmdir()
        assert await get(cache, "a", 5) == b"12345"


async def test_nothing_goes_for_a_model_that_cannot_fit_anyway(tmp_path: Path) -> None:
    store = FakeStore(a=bytes(30), b=bytes(30), c=bytes(30), d=bytes(80))
    async with running_cache(store, tmp_path) as cache:
        for cid in "abc":
            await get(cache, cid, 30)
        async with cache.use("a", "onnx", 30, ()):
            with pytest.raises(ResourceExhausted, match="in use"):
                await get(cache, "d", 80)
        assert cache.cids() == ("b", "c", "a")
        assert cache.statistics()["evicted"] == 0
    async with running_cache(store, tmp_path, admit=lambda size: "not enough free disk" if size > -60 else None) as cache:
        for cid in "abc":
            await get(cache, cid, 30)
        store.content["e"] = bytes(31)
        with pytest.raises(ResourceExhausted, match="disk"):
            await get(cache, "e", 31)
        assert len(cache.cids()) == 3


async def test_what_the_disk_lacks_is_made_room_for(tmp_path: Path) -> None:
    store = FakeStore(a=bytes(30), b=bytes(30), c=bytes(30))
    free = 60
    async with running_cache(store, tmp_path, admit=lambda size: None if size <= free else "not enough free disk") as cache:
        await get(cache, "a", 30)
        await get(cache, "b", 30)
        free = 0
        await get(cache, "c", 30)
        assert cache.cids() == ("b", "c")


async def test_what_an_earlier_start_left_is_read_through_once_before_it_is_used(tmp_path: Path) -> None:
    store = FakeStore(a=b"12345", b=b"12345")
    async with running_cache(store, tmp_path) as cache:
        await get(cache, "a", 5)
        await get(cache, "b", 5)
    (tmp_path / "a.onnx").write_bytes(b"1234X")
    looks: list[str] = []

    def whole(path: Path, cid: str) -> bool:
        looks.append(cid)
        return path.read_bytes() == store.content[cid]

    async with running_cache(store, tmp_path, whole=whole) as cache:
        assert looks == []
        got: list[bytes] = []

        async def one(cid: str) -> None:
            got.append(await get(cache, cid, 5))

        async with trio.open_nursery() as nursery:
            for cid in "aabb":
                nursery.start_soon(one, cid)
        assert got == [b"12345"] * 4
        assert sorted(looks) == ["a", "b"]
        assert store.exports == 3
        assert await get(cache, "a", 5) == b"12345"
        assert sorted(looks) == ["a", "b"]


@asynccontextmanager
async def restarted_cache(folder: Path, *, good: bool = True) -> AsyncGenerator[tuple[ModelCache, FakeStore, threading.Event, list[str]]]:
    """With a file from an earlier start; looks at it, which are told, end when the event is set."""
    store, may, looks = FakeStore(a=b"12345"), threading.Event(), list[str]()
    folder.joinpath("a.onnx").write_bytes(b"12345" if good else b"1234X")

    def whole(path: Path, cid: str) -> bool:
        looks.append(cid)
        assert may.wait(10)
        return path.read_bytes() == store.content[cid]

    try:
        async with running_cache(store, folder, whole=whole) as cache:
            yield cache, store, may, looks
    finally:
        may.set()


async def leave_early(cache: ModelCache) -> None:
    with trio.move_on_after(0.02) as scope:
        await get(cache, "a", 5)
    assert scope.cancelled_caught


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.005)


@pytest.mark.parametrize("good", [True, False])
async def test_a_look_is_finished_and_counts_though_all_who_waited_have_left(tmp_path: Path, good: bool) -> None:
    async with restarted_cache(tmp_path, good=good) as (cache, store, may, looks):
        for _ in range(5):
            await leave_early(cache)
        await until(lambda: bool(looks))
        may.set()
        await until(lambda: cache._files.get("a") is None or cache._files["a"].whole is True)
        assert await get(cache, "a", 5) == b"12345"
        assert (looks, store.exports) == (["a"], 0 if good else 1)
        assert cache._files["a"].users == 0


async def test_a_file_that_is_looked_at_is_not_evicted_and_goes_if_its_model_was_removed(tmp_path: Path) -> None:
    async with restarted_cache(tmp_path) as (cache, store, may, looks):
        store.content["b"] = bytes(99)
        await leave_early(cache)
        with pytest.raises(ResourceExhausted, match="in use"):
            await get(cache, "b", 99)
        await cache.drop("a")
        may.set()
        await until(lambda: not list(tmp_path.iterdir()))
        assert looks == ["a"]
        assert await get(cache, "b", 99) == bytes(99)


async def test_who_waits_for_a_look_when_the_cache_stops_gets_no_file_that_nobody_has_checked(tmp_path: Path) -> None:
    errors: list[Unavailable] = []

    async def ask(cache: ModelCache) -> None:
        with pytest.raises(Unavailable, match="stopping") as raised:
            await get(cache, "a", 5)
        errors.append(raised.value)

    async with trio.open_nursery() as nursery:
        async with restarted_cache(tmp_path) as (cache, _, _, _):
            nursery.start_soon(ask, cache)
            await trio.testing.wait_all_tasks_blocked()
        await ask(cache)
    assert len(errors) == 2


async def test_whoever_gives_up_leaves_no_file_behind_that_nobody_counts(tmp_path: Path) -> None:
    store = FakeStore(a=bytes(40), b=bytes(40), c=bytes(40), d=bytes(100))
    async with running_cache(store, tmp_path) as cache:
        for cid in "ab":
            await get(cache, cid, 40)
        async with trio.open_nursery() as nursery, cache._moving:
            nursery.start_soon(get, cache, "d", 100)
            await trio.testing.wait_all_tasks_blocked()
            assert cache.cids() == ()
            nursery.cancel_scope.cancel()
        await until(lambda: not list(tmp_path.iterdir()))
        await get(cache, "c", 40)
        async with trio.open_nursery() as nursery, cache._moving:
            nursery.start_soon(cache.drop, "c")
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert not list(tmp_path.iterdir())


async def test_a_removed_model_goes_with_its_last_user_and_comes_back_only_when_asked_for(tmp_path: Path) -> None:
    store = FakeStore(a=b"12345")
    async with running_cache(store, tmp_path) as cache:
        async with cache.use("a", "onnx", 5, ()) as path:
            await cache.drop("a")
            assert cache.cids() == ()
            assert path.read_bytes() == b"12345"
        assert list(tmp_path.iterdir()) == []
        store.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(get, cache, "a", 5)
            await trio.testing.wait_all_tasks_blocked()
            await cache.drop("a")  # while it is on its way
            store.gate.set()
        assert list(tmp_path.iterdir()) == []
        assert await get(cache, "a", 5) == b"12345"
        assert cache.cids() == ("a",)


async def test_the_content_of_a_file_is_told_by_its_cid(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for size in (0, 1, 1 << 18, (1 << 18) + 1, 1 << 20):
        path.write_bytes(bytes(i % 251 for i in range(size)))
        cid, _ = await MemoryStore().add_file(path)
        assert is_content(path, cid)
        path.write_bytes(path.read_bytes() + b"x")
        assert not is_content(path, cid)
    assert not is_content(tmp_path / "none", cid)
