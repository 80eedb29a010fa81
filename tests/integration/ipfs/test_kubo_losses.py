"""The kubo backend on a daemon that loses things, whose owner has pins of his own, and when the node is killed amid something."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import trio

from p2p.ipfs.api import BlockMissing, StoreUnavailable
from p2p.ipfs.cid import Cid
from p2p.ipfs.kubo.store import KuboStore
from p2p.ipfs.memory import MemoryStore
from tests.support import kubo_stores
from tests.support.content_contract import absent, some
from tests.support.kubo_rpc_server import Failed, KuboRpcServer, kubo_rpc_server
from tests.support.kubo_stores import PATIENT, handed_over, noticed, out_of_the_spool
from tests.support.unixfs_reference import CHUNK, pattern


def on(server: KuboRpcServer, folder: Path, **changes: Any) -> AbstractAsyncContextManager[KuboStore]:
    return kubo_stores.on(server, folder, rpc=PATIENT, **changes)


@pytest.fixture
async def server() -> AsyncIterator[KuboRpcServer]:
    async with kubo_rpc_server() as server:
        yield server


async def kinds(server: KuboRpcServer) -> dict[str, str]:
    return {cid: "recursive" if pin.recursive else "direct" for cid, pin in (await server.store.list_pins()).items()}


async def killed(server: KuboRpcServer, store: KuboStore, command: str) -> None:
    """Until Kubo has done this; from then on it is not reached any more, as the node is about to be killed."""
    with trio.fail_after(5):
        while command not in server.calls:
            await trio.sleep(0.01)
    server.fault = "500"


# A job's blocks


async def test_a_jobs_blocks_are_not_asked_of_kubos_network(server: KuboRpcServer, tmp_path: Path) -> None:
    server.elsewhere = {absent(): b"nobody has this"}
    async with on(server, tmp_path) as store:
        with trio.fail_after(5), pytest.raises(BlockMissing):
            await store.private_to("job").get_bytes(absent(), timeout=0.3)
        asked = [options for command, options in server.requests if command == "block/get"]
        assert asked
        assert all(options.get("offline") == "true" for options in asked)
        theirs = await server.store.add_bytes(b"what the daemon has itself")
        assert await store.private_to("job").get_bytes(theirs) == b"what the daemon has itself"
        assert await store.get_bytes(absent()) == b"nobody has this"


# Kubo has lost what it had


@pytest.mark.parametrize("unnoticed", [False, True], ids=["away for a while", "another one in its place"])
async def test_a_kubo_that_lost_its_repository_gets_again_what_is_still_here(
    server: KuboRpcServer, tmp_path: Path, unnoticed: bool
) -> None:
    data = pattern(CHUNK + 1)
    async with on(server, tmp_path, settle=60.0) as store:
        pinned, dag = await store.add_bytes(data), await store.put_dag({"a": "record"})
        await store.pin(pinned)
        await handed_over(store)
        if unnoticed:
            server.store, server.peer_id = MemoryStore(), "another"
        else:
            server.fault = "500"
            await noticed(store)
            server.store, server.fault = MemoryStore(), ""
        with trio.fail_after(10):
            while not (await kinds(server) and await server.store.has(dag)):
                await trio.sleep(0.01)
        await handed_over(store)
        assert await server.store.get_bytes(pinned) == data
        assert await kinds(server) == {pinned: "recursive"}


async def test_what_kubo_collected_meanwhile_stays_in_the_spool_until_it_has_it_again(server: KuboRpcServer, tmp_path: Path) -> None:
    async with on(server, tmp_path, settle=0.5) as store:
        cid = await store.put_dag({"a": "record that nothing pins"})
        await handed_over(store)
        server.store = MemoryStore()  # nothing fails, and it is the same daemon
        await out_of_the_spool(store)
        assert await server.store.get_dag(cid) == {"a": "record that nothing pins"}
        assert await store.get_dag(cid) == {"a": "record that nothing pins"}


async def test_a_block_that_is_written_again_while_it_leaves_the_spool_is_handed_over_again(
    server: KuboRpcServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with on(server, tmp_path) as store, trio.open_nursery() as nursery:
        spool: Any = store._kubo_blocks._spool
        move_out, leaving, written = spool.move_out, trio.Event(), trio.Event()

        async def slowly(cids: Iterable[Cid]) -> int:
            monkeypatch.undo()
            leaving.set()
            with trio.move_on_after(0.3):  # to write it meanwhile takes a few milliseconds
                await written.wait()
            server.store = MemoryStore()  # Kubo's owner collects garbage
            return await move_out(cids)

        async def write_again() -> None:
            await leaving.wait()
            await store.add_bytes(b"wanted after all")
            written.set()

        nursery.start_soon(write_again)
        monkeypatch.setattr(spool, "move_out", slowly)
        cid = await store.add_bytes(b"wanted after all")
        with trio.fail_after(10):
            await written.wait()
        await handed_over(store)
        assert await server.store.get_bytes(cid) == b"wanted after all"
        assert await store.get_bytes(cid) == b"wanted after all"


# Pins of the owner's


async def test_a_direct_pin_of_the_owners_does_not_stand_for_a_whole_dag(server: KuboRpcServer, tmp_path: Path) -> None:
    theirs = await server.store.add_bytes(pattern(CHUNK + 1))
    await server.store.pin(theirs, recursive=False)
    async with on(server, tmp_path) as store:
        await store.pin(theirs)
        await handed_over(store)
        assert await kinds(server) == {theirs: "recursive"}
        await store.collect(some())
        assert await server.store.get_bytes(theirs) == pattern(CHUNK + 1)
    async with on(server, tmp_path) as store:
        await store.unpin(theirs)
        await handed_over(store)
        assert await kinds(server) == {theirs: "direct"}, "it is as its owner left it"


async def test_a_direct_pin_is_content_with_any_pin_of_the_owners(server: KuboRpcServer, tmp_path: Path) -> None:
    theirs = await server.store.add_bytes(pattern(CHUNK + 1))
    await server.store.pin(theirs)
    async with on(server, tmp_path) as store:
        await store.pin(theirs, recursive=False)
        await handed_over(store)
        await store.pin(theirs)
        await handed_over(store)
        await store.unpin(theirs)
        await handed_over(store)
        assert await kinds(server) == {theirs: "recursive"}


async def test_a_pin_becomes_one_of_another_kind(server: KuboRpcServer, tmp_path: Path) -> None:
    async with on(server, tmp_path) as store:
        cid = await store.add_bytes(pattern(CHUNK + 1))
        for recursive in (False, True, False):
            await store.pin(cid, recursive=recursive)
            await handed_over(store)
            assert await kinds(server) == {cid: "recursive" if recursive else "direct"}
        await store.unpin(cid)
        await handed_over(store)
        assert not await kinds(server)


# Killed between an act and its note


async def test_a_pin_that_was_being_made_when_the_node_was_killed_is_ours(server: KuboRpcServer, tmp_path: Path) -> None:
    server.mute = frozenset({"pin/add"})
    async with on(server, tmp_path) as store:
        cid = await store.add_bytes(b"content")
        await store.pin(cid)
        await killed(server, store, "pin/add")
    assert await kinds(server) == {cid: "recursive"}
    server.mute, server.fault = frozenset(), ""
    async with on(server, tmp_path) as store:
        await handed_over(store)
        await store.unpin(cid)
        await handed_over(store)
        assert not await kinds(server)


async def test_a_pin_that_was_not_made_any_more_is_made_after_the_restart(server: KuboRpcServer, tmp_path: Path) -> None:
    async with on(server, tmp_path) as store:
        cid = await store.add_bytes(b"content")
        await handed_over(store)
        server.pin_add = server.hang  # type: ignore[method-assign]
        await store.pin(cid)
        await killed(server, store, "pin/add")
    del server.pin_add  # type: ignore[attr-defined]
    server.fault = ""
    assert not await kinds(server)
    async with on(server, tmp_path) as store:
        await handed_over(store)
        assert await kinds(server) == {cid: "recursive"}


async def test_a_collection_that_was_killed_leaves_no_pins_behind(server: KuboRpcServer, tmp_path: Path) -> None:
    theirs = await server.store.add_bytes(pattern(CHUNK + 1))
    await server.store.pin(theirs, recursive=False)
    async with on(server, tmp_path) as store:
        needed = await store.add_bytes(b"needed")
        await out_of_the_spool(store)
        server.mute = frozenset({"repo/gc"})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.collect, some(needed, theirs))
            await killed(server, store, "repo/gc")
            nursery.cancel_scope.cancel()
    assert await kinds(server) == {needed: "recursive", theirs: "recursive"}
    server.mute, server.fault = frozenset(), ""
    async with on(server, tmp_path) as store:
        await handed_over(store)
        assert await kinds(server) == {theirs: "direct"}
        assert await server.store.get_bytes(needed) == b"needed"


async def test_a_collection_holds_what_is_needed_in_whatever_way_it_is_pinned(server: KuboRpcServer, tmp_path: Path) -> None:
    async with on(server, tmp_path) as store:
        direct, unpinned, garbage = [await store.add_bytes(pattern(CHUNK + n)) for n in (1, 2, 3)]
        await store.pin(direct, recursive=False)
        await out_of_the_spool(store)
        assert (await store.collect(some(direct, unpinned, absent()))).blocks == 2
        assert await server.store.get_bytes(direct) == pattern(CHUNK + 1)
        assert await server.store.get_bytes(unpinned) == pattern(CHUNK + 2)
        assert not await server.store.has(garbage)
        await handed_over(store)
        assert await kinds(server) == {direct: "direct"}
        server.fault = "500"
        with pytest.raises(StoreUnavailable):
            await store.collect(some(unpinned))
        server.fault = ""
        await handed_over(store)
        assert await kinds(server) == {direct: "direct"}


# Much to hand over


async def test_pins_are_made_while_more_is_written_all_the_time(server: KuboRpcServer, tmp_path: Path) -> None:
    server.lag = {"block/put": 0.05}
    async with on(server, tmp_path, parallel=1) as store, trio.open_nursery() as nursery:

        async def write() -> None:
            for number in range(10_000):
                await store.add_bytes(b"%d" % number, durable=False)
                await trio.sleep(0.01)

        nursery.start_soon(write)
        cid = await store.add_bytes(b"pinned")
        await store.pin(cid)
        with trio.fail_after(20):
            while cid not in await kinds(server):
                await trio.sleep(0.01)
        assert store.health().backlog, "there is more to hand over"
        nursery.cancel_scope.cancel()


# Leaving the spool


async def test_a_pin_that_kubo_refuses_for_good_keeps_its_own_blocks_in_the_spool_and_no_others(
    server: KuboRpcServer, tmp_path: Path
) -> None:
    pin_add, refused = server.pin_add, set[str]()

    async def picky(options: dict[str, str], body: bytes) -> Any:
        if options["arg"] in refused:
            raise Failed("pin: this one never")
        return await pin_add(options, body)

    server.pin_add = picky  # type: ignore[method-assign]
    async with on(server, tmp_path, settle=0.5) as store:
        root, direct = await store.add_bytes(pattern(CHUNK + 1)), await store.put_dag({"a": "direct pin"})
        refused.update((root, direct))
        await store.pin(root)
        await store.pin(direct, recursive=False)
        others = [await store.add_bytes(b"other %d" % n) for n in range(20)]
        await store.pin(others[0])
        with trio.fail_after(10):
            while store.statistics().blocks > 4:  # the root, its two leaves, and the other pin's one
                await trio.sleep(0.01)
        await trio.sleep(1.0)  # they had their time, too
        assert store.statistics().blocks == 4
        assert await kinds(server) == {others[0]: "recursive"}
        server.store = MemoryStore()  # Kubo's owner collects garbage
        assert await store.get_bytes(root) == pattern(CHUNK + 1)
        assert await store.get_dag(direct) == {"a": "direct pin"}
        for cid in (root, others[0]):
            await store.unpin(cid)
        refused.clear()
        server.peer_id = "another"  # whom we have not asked yet
        await out_of_the_spool(store)
        assert direct in await kinds(server)


async def test_what_is_no_longer_pinned_leaves_the_spool_though_kubo_refused_its_pin(server: KuboRpcServer, tmp_path: Path) -> None:
    async def never(options: dict[str, str], body: bytes) -> Any:
        raise Failed("pin: never")

    server.pin_add = never  # type: ignore[method-assign]
    async with on(server, tmp_path, settle=0.5) as store:
        gone, stays = await store.add_bytes(b"gone"), await store.add_bytes(b"stays")
        for cid in (gone, stays):
            await store.pin(cid)
        with trio.fail_after(10):
            while server.calls.count("pin/add") < 2:
                await trio.sleep(0.01)
        await store.unpin(gone)
        with trio.fail_after(10):
            while store.statistics().blocks != 1:
                await trio.sleep(0.01)
        assert await server.store.get_bytes(gone) == b"gone"


async def test_many_blocks_leave_the_spool_after_one_look_at_the_pins(
    server: KuboRpcServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many pins a look takes its time."""
    async with on(server, tmp_path, settle=0.5, parallel=1, ping=10.0) as store:
        blocks: Any = store._kubo_blocks
        await store.add_bytes(pattern(30 * CHUNK))
        await handed_over(store)
        looks: list[int] = []
        to_make = blocks._kubo_pins.to_make

        def look(wanted: Any) -> Any:
            looks.append(1)
            return to_make(wanted)

        await trio.sleep(0.6)
        monkeypatch.setattr(blocks._kubo_pins, "to_make", look)
        await blocks._take_off()
        assert store.statistics().blocks == 0
        assert len(looks) == 1


async def test_a_pin_that_is_asked_for_meanwhile_is_made_before_more_leaves_the_spool(
    server: KuboRpcServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with on(server, tmp_path, settle=0.5, parallel=1) as store:
        spool: Any = store._kubo_blocks._spool
        move_out = spool.move_out
        root = await store.add_bytes(pattern(10 * CHUNK))
        moved: list[bool] = []

        async def pinned_meanwhile(cids: Iterable[Cid]) -> int:
            moved.append("pin/add" in server.calls)
            if len(moved) == 2:
                await store.pin(root, recursive=False)
            return await move_out(cids)

        monkeypatch.setattr(spool, "move_out", pinned_meanwhile)
        await out_of_the_spool(store)
        assert moved == [False] * 2 + [True] * (len(moved) - 2)
        assert len(moved) > 5
