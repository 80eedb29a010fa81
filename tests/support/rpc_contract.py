"""What every daemon that speaks Kubo's RPC must do for the kubo backend. A module about one kind of daemon subclasses this with its fixture.

``daemon`` says where it is, ``lacks`` what it does not do, each with the reason.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
import trio

from dimnode.clock import SystemClock
from dimnode.core.event_flow import Numbers
from dimnode.domain.events import Event, channel_of, topic
from dimnode.events.outlets import KuboOutlet
from dimnode.events.publisher import Desk, Lane
from dimnode.events.settings import EventSettings
from p2p.ipfs import cid as cids
from p2p.ipfs import dagcbor, ipns
from p2p.ipfs.api import StoreUnavailable
from p2p.ipfs.embedded import open_embedded
from p2p.ipfs.kubo.rpc import KuboRpc, Refused, open_rpc
from p2p.ipfs.kubo.settings import KuboSettings, RpcSettings
from p2p.ipfs.kubo.store import KuboStore, open_kubo
from p2p.ipfs.settings import StoreSettings
from tests.support.content_contract import KUBO, absent, link_to, pieces, some
from tests.support.documented_events import documented_reader
from tests.support.kubo_stores import handed_over, out_of_the_spool
from tests.support.kubo_subscription import subscription
from tests.support.networks import identity
from tests.support.unixfs_reference import CHUNK, pattern

STORE = StoreSettings(reserve_bytes=0)
RPC = RpcSettings(connect_timeout=10.0, timeout=20.0)
SIZES = [*KUBO, 10_000_000]
OFFLINE, SUBSCRIBE, COLLECT = "offline", "subscribe", "collect"
"""Calls that look at what is there only; the stream of a topic's messages; to remove what nobody pins."""


@dataclass(frozen=True)
class Daemon:
    api: str
    credentials: str = ""
    agent: str = ""
    """How its version begins."""

    def settings(self, **changes: Any) -> KuboSettings:
        quick = KuboSettings(self.api, self.credentials, RPC, retry_first=0.05, retry_most=0.2, ping=0.05, settle=0.0)
        return replace(quick, **changes)


def unlike(text: str, size: int) -> bytes:
    """Bytes that no other test has: the daemon is the same for all."""
    return hashlib.shake_128(text.encode()).digest(size)


Test = TypeVar("Test", bound=Callable[..., Any])


def needs(what: str) -> Callable[[Test], Test]:
    """The test is skipped where a daemon lacks that."""

    def note(test: Test) -> Test:
        test.needs = what  # type: ignore[attr-defined]
        return test

    return note


async def has_pubsub(api: str, credentials: str) -> bool:
    async with open_rpc(api, credentials, RPC) as rpc:
        try:
            await rpc._call("pubsub/ls")
        except StoreUnavailable:
            return False
        return True


class RpcContract:
    lacks: ClassVar[Mapping[str, str]] = {}

    @pytest.fixture(autouse=True)
    def possible(self, request: pytest.FixtureRequest) -> None:
        if (what := getattr(request.function, "needs", None)) in self.lacks:
            pytest.skip(self.lacks[what])

    @pytest.fixture
    async def rpc(self, daemon: Daemon) -> AsyncIterator[KuboRpc]:
        async with open_rpc(daemon.api, daemon.credentials, RPC) as rpc:
            yield rpc

    @pytest.fixture
    async def store(self, daemon: Daemon, tmp_path: Path) -> AsyncIterator[KuboStore]:
        """Which keeps nothing that it could hand over."""
        async with open_kubo(tmp_path / "spool", settings=STORE, kubo=daemon.settings()) as store:
            assert await store.ok()
            yield store

    # Content

    @pytest.mark.parametrize("size", SIZES)
    async def test_its_cid_of_a_file_is_ours(self, rpc: KuboRpc, tmp_path: Path, size: int):
        data = pattern(size)
        async with open_embedded(tmp_path, settings=STORE) as ours:
            cid = await ours.add_bytes(data, durable=False)
        assert await rpc.add(pieces(data, 1 << 20), pin=False) == cid == KUBO.get(size, cid)
        assert await rpc.cat(cids.parse(cid), max_bytes=size) == data

    @pytest.mark.parametrize(
        "value", [{}, [], 0, "é", {"b": 1, "aa": 2, "a": b"x"}, [None, True, -(2**63), 2**64 - 1, 1.5], [[list(range(2000))]]]
    )
    async def test_its_cid_of_a_dag_is_ours(self, rpc: KuboRpc, tmp_path: Path, value: object):
        async with open_embedded(tmp_path, settings=STORE) as ours:
            cid = await ours.put_dag(value)
            assert await rpc.dag_put(dagcbor.encode(value)) == cid

    async def test_what_was_added_through_either_is_read_through_the_other(self, rpc: KuboRpc, store: KuboStore):
        theirs, mine = unlike("theirs", 3 * CHUNK + 1), unlike("mine", 2 * CHUNK)
        cid = await rpc.add(pieces(theirs, CHUNK), pin=False)
        assert await store.get_bytes(cid) == theirs
        cid = await store.add_bytes(mine)
        await out_of_the_spool(store, within=30)
        assert await rpc.cat(cids.parse(cid), max_bytes=len(mine)) == mine
        assert await store.get_bytes(cid) == mine

    async def test_dags_and_what_they_link_to(self, rpc: KuboRpc, store: KuboStore):
        file = await store.add_bytes(unlike("linked", CHUNK + 1))
        dag = await store.put_dag_bytes(link_to(file))
        await store.pin(dag)
        await out_of_the_spool(store, within=30)
        assert await rpc.pin_kind(cids.parse(dag)) == "recursive"
        assert await store.get_bytes(file) == unlike("linked", CHUNK + 1)
        assert await store.get_dag(dag) == dagcbor.decode(link_to(file))
        assert await rpc.dag_put(link_to(file)) == dag
        await store.unpin(dag)
        await handed_over(store, within=30)

    @needs(OFFLINE)
    async def test_what_is_not_there_is_said_at_once(self, rpc: KuboRpc):
        began = trio.current_time()
        nowhere = cids.parse(absent(b"in no daemon either"))
        assert await rpc.block_stat(nowhere) is None
        assert await rpc.block_get(nowhere, offline=True) is None
        with pytest.raises(Refused):
            await rpc.pin_add(nowhere, recursive=True)
        assert trio.current_time() - began < RPC.timeout / 2

    async def test_it_says_what_it_is_and_how_much_it_holds(self, daemon: Daemon, rpc: KuboRpc):
        assert str((await rpc.id())["AgentVersion"]).startswith(daemon.agent)
        data = os.urandom(1000)  # new to it, however often this has run
        before = await rpc.repo_stat()
        await rpc.block_put(cids.compute(cids.RAW, data), data)
        assert int((await rpc.repo_stat())["NumObjects"]) >= int(before["NumObjects"]) + 1
        assert await rpc.block_stat(cids.compute(cids.RAW, data)) == 1000

    # Pins and garbage

    async def test_pins_hold_whole_dags_direct_ones_a_block(self, rpc: KuboRpc, store: KuboStore):
        whole, root = await store.add_bytes(unlike("whole", CHUNK + 1)), await store.add_bytes(unlike("root", CHUNK + 1))
        await store.pin(whole)
        await store.pin(root, recursive=False)
        await out_of_the_spool(store, within=30)
        assert whole in await rpc.pin_ls("recursive")
        assert root in await rpc.pin_ls("direct")
        assert [await rpc.pin_kind(cids.parse(cid)) for cid in (whole, root)] == ["recursive", "direct"]
        leaf = cids.compute(cids.RAW, unlike("whole", CHUNK + 1)[:CHUNK])
        assert await rpc.pin_kind(leaf) is None, "a part of something pinned is not pinned by itself"
        await store.unpin(whole)
        await store.unpin(root)
        await handed_over(store, within=30)
        assert not {whole, root} & (await rpc.pin_ls("recursive") | await rpc.pin_ls("direct"))
        await rpc.pin_rm(cids.parse(whole), recursive=True)  # once more does not matter

    async def test_a_direct_pin_of_the_owners_comes_back_when_ours_goes(self, rpc: KuboRpc, store: KuboStore):
        theirs = await store.add_bytes(unlike("the owner's", CHUNK + 1))
        await out_of_the_spool(store, within=30)
        await rpc.pin_add(cids.parse(theirs), recursive=False)
        await store.pin(theirs)
        await handed_over(store, within=30)
        assert await rpc.pin_kind(cids.parse(theirs)) == "recursive"
        await store.unpin(theirs)
        await handed_over(store, within=30)
        assert await rpc.pin_kind(cids.parse(theirs)) == "direct"
        await rpc.pin_rm(cids.parse(theirs), recursive=False)

    @needs(COLLECT)
    async def test_a_collection_spares_what_is_needed_and_what_is_pinned(self, daemon: Daemon, rpc: KuboRpc, store: KuboStore):
        data = [unlike(text, CHUNK + 1) for text in ("needed", "pinned", "root only", "garbage")]
        needed, pinned, root, garbage = [await store.add_bytes(each) for each in data]
        await store.pin(pinned)
        await store.pin(root, recursive=False)
        await out_of_the_spool(store, within=30)
        done = await store.collect(some(needed))
        assert done.blocks >= 3 + 2
        assert [await store.get_bytes(cid) for cid in (needed, pinned)] == data[:2]
        assert await store.has(root)
        gone = [cids.compute(cids.RAW, data[2][:CHUNK]), cids.parse(garbage)]
        async with open_rpc(daemon.api, daemon.credentials, RpcSettings(timeout=1.0)) as impatient:
            for cid in gone:
                if OFFLINE in self.lacks:
                    with pytest.raises(StoreUnavailable):  # what is not there is looked for
                        await impatient.block_stat(cid)
                else:
                    assert await rpc.block_stat(cid) is None
        await handed_over(store, within=30)
        assert needed not in await rpc.pin_ls("recursive"), "that was for the time of the collection"
        for cid in (pinned, root):
            await store.unpin(cid)
        await handed_over(store, within=30)

    # Names

    @pytest.mark.timeout(400)
    async def test_a_root_is_published_under_a_key(self, rpc: KuboRpc, store: KuboStore):
        """A daemon with many peers takes its time for it."""
        first, second = await store.add_bytes(b"first"), await store.add_bytes(b"second")
        await out_of_the_spool(store, within=30)
        label = f"dim-test {os.urandom(4).hex()}"
        names = store.names(label)
        name = await names.publish(first, 3600, 60)
        try:
            assert (await rpc.key_list())[label.replace(" ", "-")] == name
            assert name.startswith("12D3KooW") or ipns.name_of(ipns.key_of(name)) == name, "as ours are; js-ipfs tells the peer id"
            assert await rpc.name_resolve(name, timeout=60) == f"/ipfs/{first}"
            assert await names.publish(second, 3600, 60) == name
            assert await rpc.name_resolve(name, timeout=60) == f"/ipfs/{second}"
            with pytest.raises(Refused):
                await rpc.key_gen(label.replace(" ", "-"))
        finally:
            await rpc._call("key/rm", {"arg": label.replace(" ", "-")})
        with pytest.raises(StoreUnavailable):
            await names.publish(first, 3600, 60)
        assert await names.publish(first, 3600, 60) != name, "a key that is lost is made again"
        await rpc._call("key/rm", {"arg": label.replace(" ", "-")})

    # Pubsub

    @needs(SUBSCRIBE)
    async def test_whoever_subscribes_hears_messages_byte_for_byte(self, daemon: Daemon, rpc: KuboRpc, store: KuboStore):
        name, data = f"dim/test/{os.urandom(8).hex()}/ä", b"\x00\r\n--boundary--\r\n\xff"
        async with subscription(daemon.api, daemon.credentials, name) as messages:
            await store.pubsub().publish(name, data)
            with trio.fail_after(20):
                assert await messages.message() == data

    @needs(SUBSCRIBE)
    async def test_whoever_reads_the_document_hears_events_through_it(self, daemon: Daemon, rpc: KuboRpc, store: KuboStore):
        read, channel = documented_reader(), channel_of(os.urandom(32).hex())
        settings = EventSettings(channel=channel, interval=0.1)
        out = Lane(KuboOutlet(store.pubsub()), Desk(identity(1), SystemClock(), Numbers(), channel), settings)
        heard: list[dict[str, Any]] = []
        async with subscription(daemon.api, daemon.credentials, topic(channel, "jobs")) as messages, trio.open_nursery() as nursery:
            nursery.start_soon(out.run)
            for number in range(3):
                out.put("jobs", Event(event="accepted", at=1.0, job=f"job-{number}", epoch=1))
            with trio.fail_after(20):
                while len(heard) < 3:
                    document = read(await messages.message())
                    assert (document["publisher"], document["channel"]) == (identity(1).peer_id, channel)
                    heard += document["events"]
            nursery.cancel_scope.cancel()
        assert [event["job"] for event in heard] == ["job-0", "job-1", "job-2"]
        assert (out.status()["ok"], out.status()["dropped"]) == (True, 0)
