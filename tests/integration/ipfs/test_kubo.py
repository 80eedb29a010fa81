"""The kubo backend keeps the contract of the content store, and what happens when the daemon does not do its part.

It runs against a small server of the documented RPC (`tests.support.kubo_rpc_server`, which is not Kubo); `test_kubo_daemon` is about real ones.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import trio

from p2p.ipfs.api import BlockCorrupt, BlockMissing, ContentStore, DiskFull, StoreUnavailable
from p2p.ipfs.cid import RAW, compute, parse
from p2p.ipfs.embedded import open_embedded
from p2p.ipfs.kubo.rpc import open_rpc
from p2p.ipfs.kubo.store import open_kubo
from tests.support.content_contract import GarbageContract, Pair, PairContract, SingleContract, absent, some
from tests.support.kubo_rpc_server import Fault, KuboRpcServer, kubo_rpc_server
from tests.support.kubo_stores import PATIENT, QUICK, STORE, handed_over, on, out_of_the_spool, read_from_kubo
from tests.support.networks import two
from tests.support.rpc_contract import SUBSCRIBE, Daemon, RpcContract
from tests.support.unixfs_reference import CHUNK, pattern


@pytest.fixture
async def server() -> AsyncIterator[KuboRpcServer]:
    async with kubo_rpc_server() as server:
        yield server


class TestContract(SingleContract):
    """Kubo gets everything at once, the spool keeps it for a minute."""

    @pytest.fixture
    async def store(self, server: KuboRpcServer, tmp_path: Path) -> AsyncIterator[ContentStore]:
        server.offline = True
        async with on(server, tmp_path / "spool", settle=60.0, rpc=PATIENT) as store:
            yield store


class TestContractFromKubo(SingleContract, GarbageContract):
    """Everything is read from Kubo. The grace is not Kubo's, and the statistics are the spool's."""

    test_statistics_count_what_is_stored = None  # type: ignore[assignment]
    test_what_was_written_or_used_a_moment_ago_stays = None  # type: ignore[assignment]
    test_a_collection_takes_what_nobody_needs_and_nothing_else = None  # type: ignore[assignment]

    @pytest.fixture
    async def store(self, server: KuboRpcServer, tmp_path: Path) -> AsyncIterator[ContentStore]:
        server.offline = True
        async with on(server, tmp_path / "spool", rpc=PATIENT) as store:
            yield read_from_kubo(store)


class TestPair(PairContract):
    """Two nodes by bitswap, each with a Kubo of its own; or one of them with the embedded store."""

    @pytest.fixture(params=["from the spool", "from kubo", "to embedded", "from embedded"])
    async def pair(self, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
        async with AsyncExitStack() as stack:
            networks = await stack.enter_async_context(two())
            stores: list[ContentStore] = []
            for n, network in enumerate(networks):
                options = {"host": network.host, "connected": network.peers, "open_stream": network.open_stream, "settings": STORE}
                if request.param == ("from embedded", "to embedded")[n]:
                    stores.append(await stack.enter_async_context(open_embedded(tmp_path / str(n), **options)))
                    continue
                server = await stack.enter_async_context(kubo_rpc_server(offline=True))
                settle = 60.0 if request.param == "from the spool" else 0.0
                kubo = replace(QUICK, api=server.api, settle=settle, rpc=PATIENT)
                store = await stack.enter_async_context(open_kubo(tmp_path / str(n), kubo=kubo, **options))
                stores.append(store if settle else read_from_kubo(store))
            yield stores[0], stores[1], networks[0].peer_id, networks[1].peer_id


class TestRpc(RpcContract):
    """So that the server does what others do. Which CID a file has it knows from DIM itself."""

    test_its_cid_of_a_file_is_ours = None  # type: ignore[assignment]
    lacks: ClassVar = {SUBSCRIBE: "this server answers with whole messages only"}

    @pytest.fixture
    def daemon(self, server: KuboRpcServer) -> Daemon:
        return Daemon(server.api, agent="test")


async def test_blocks_and_pins_move_to_kubo_and_are_read_from_there(server: KuboRpcServer, tmp_path: Path):
    data = pattern(4 * CHUNK)
    async with on(server, tmp_path) as store:
        cid, dag = await store.add_bytes(data), await store.put_dag({"n": 1})
        await store.pin(cid, reason="model")
        await store.pin(dag, reason="direct", recursive=False)
        await handed_over(store)
        await out_of_the_spool(store)
        assert {c: p.recursive for c, p in (await server.store.list_pins()).items()} == {cid: True, dag: False}
        assert await server.store.get_bytes(cid) == data
        assert await store.get_bytes(cid) == data
        assert await store.get_dag(dag) == {"n": 1}
        assert await store.has(dag)
        await store.unpin(cid)
        await handed_over(store)
        assert set(await server.store.pins()) == {dag}
        assert await store.pins() == {dag: "direct"}


async def test_all_of_it_survives_a_restart_of_the_node(server: KuboRpcServer, tmp_path: Path):
    async with on(server, tmp_path) as store:
        cid = await store.add_bytes(b"content")
        await store.pin(cid, reason="model")
        await handed_over(store)
    async with on(server, tmp_path) as store:
        assert await store.pins() == {cid: "model"}
        assert await store.get_bytes(cid) == b"content"
        await store.unpin(cid)
        await handed_over(store)
        assert not await server.store.pins()


async def test_a_pin_that_kubo_had_before_is_not_ours_to_remove(server: KuboRpcServer, tmp_path: Path):
    theirs = await server.store.add_bytes(b"theirs")
    await server.store.pin(theirs)
    async with on(server, tmp_path) as store:
        await store.pin(theirs, reason="ours as well")
        await handed_over(store)
        await store.unpin(theirs)
        await handed_over(store)
        assert set(await server.store.pins()) == {theirs}


async def test_pins_that_kubo_lost_are_made_again_when_it_is_back(tmp_path: Path):
    async with kubo_rpc_server() as first, on(first, tmp_path, settle=60.0) as store:
        cid = await store.add_bytes(b"content")
        await store.pin(cid)
        await handed_over(store)
        await first.store.unpin(cid)
        first.fault = "500"
        with trio.fail_after(5):
            while store.health().ok:
                await trio.sleep(0.01)
        first.fault = ""
        await handed_over(store)
        assert set(await first.store.pins()) == {cid}


async def test_while_kubo_is_down_work_goes_on_and_the_backlog_is_visible(tmp_path: Path):
    data = pattern(2 * CHUNK)
    async with kubo_rpc_server() as server:
        port = int(server.api.rpartition("/")[2])
        async with on(server, tmp_path) as store:
            old = await store.add_bytes(b"old")
            await handed_over(store)
            await out_of_the_spool(store)
            server.listening.cancel()
            with trio.fail_after(5):
                while store.health().ok:
                    await trio.sleep(0.01)
            cid = await store.add_bytes(data)
            await store.pin(cid, reason="model")
            assert await store.get_bytes(cid) == data
            health = store.health()
            assert (health.ok, health.backlog) == (False, 4)
            assert "Kubo" in health.problem
            assert not await store.ok()
            with pytest.raises(StoreUnavailable):
                await store.get_bytes(old)
            with pytest.raises(StoreUnavailable):
                await store.pin(old)
            with pytest.raises(StoreUnavailable):
                await store.collect(some())
            async with kubo_rpc_server(port=port, store=server.store) as again:
                await handed_over(store)
                assert await store.get_bytes(old) == b"old"
                assert await again.store.get_bytes(cid) == data
                assert set(await again.store.pins()) == {cid}


async def test_a_node_starts_without_kubo_and_hands_over_after_a_crash(tmp_path: Path):
    async with kubo_rpc_server() as server:
        port = int(server.api.rpartition("/")[2])
        server.listening.cancel()
        async with on(server, tmp_path) as store:
            cid = await store.add_bytes(b"written alone")
            await store.pin(cid)
        async with on(server, tmp_path) as store:
            assert store.health().backlog == 2
            async with kubo_rpc_server(port=port, store=server.store) as again:
                await handed_over(store)
                assert await again.store.get_bytes(cid) == b"written alone"


@pytest.mark.parametrize("fault", ["500", "hang", "garbage", "cut off", "html"])
async def test_a_daemon_that_answers_nonsense_or_nothing_is_down_until_it_does_not(server: KuboRpcServer, tmp_path: Path, fault: Fault):
    async with on(server, tmp_path, settle=60.0) as store:
        assert await store.ok()
        server.fault = fault
        with trio.fail_after(10):
            cid = await store.add_bytes(b"while it is ill")
            await store.pin(cid)
            while store.health().ok:
                await trio.sleep(0.01)
            assert await store.get_bytes(cid) == b"while it is ill"
            before = trio.current_time()
            with pytest.raises(StoreUnavailable):
                await store.get_bytes(absent())
            assert trio.current_time() - before < 0.4, "nobody waits for a daemon that is known to be ill"
        assert store.health().backlog
        server.fault = ""
        await handed_over(store)
        assert set(await server.store.pins()) == {cid}


async def test_kubos_disk_is_full(server: KuboRpcServer, tmp_path: Path):
    """What Kubo does not take stays in the spool, the spool has a bound, and all goes on once there is room."""
    async with on(server, tmp_path, replace(STORE, max_bytes=3000)) as store:
        server.fault = "full"
        cid = await store.add_bytes(bytes(2000))
        await store.pin(cid)
        with trio.fail_after(5):
            while "block/put" not in server.calls:
                await trio.sleep(0.01)
        assert await store.get_bytes(cid) == bytes(2000)
        with pytest.raises(DiskFull):
            await store.add_bytes(b"x" * 2000)
        assert not store.health().ok
        assert store.health().backlog
        server.fault = "500"
        with trio.fail_after(5):
            while not store.health().problem.startswith("the Kubo"):
                await trio.sleep(0.01)
        server.fault = ""
        with trio.fail_after(10):
            while store.statistics().blocks or store.health().backlog:
                await trio.sleep(0.01)
        await store.add_bytes(b"x" * 2000)
        await handed_over(store)


async def test_a_corrupt_block_from_kubo_is_never_given_out(server: KuboRpcServer, tmp_path: Path):
    async with on(server, tmp_path) as store:
        cid = await store.add_bytes(b"content")
        await handed_over(store)
        await out_of_the_spool(store)
        server.fault = "corrupt"
        with pytest.raises(BlockCorrupt):
            await store.get_bytes(cid, timeout=0.3)
        server.fault = ""
        assert await store.get_bytes(cid) == b"content"


async def test_what_no_member_has_is_asked_of_kubos_own_peers(server: KuboRpcServer, tmp_path: Path):
    async with on(server, tmp_path) as store:
        server.elsewhere = {absent(): b"nobody has this"}
        assert await store.get_bytes(absent()) == b"nobody has this"
        with trio.fail_after(5), pytest.raises(BlockMissing):
            await store.get_bytes(absent(b"and really nobody this"), timeout=0.3)
        assert store.health().ok, "not to find something is no illness"


async def test_a_collection_is_kubos_own_and_spares_what_is_needed(server: KuboRpcServer, tmp_path: Path):
    async with on(server, tmp_path) as store:
        pinned, needed, garbage = [await store.add_bytes(text * 1000) for text in (b"p", b"n", b"g")]
        await store.pin(pinned)
        await handed_over(store)
        await out_of_the_spool(store)
        done = await store.collect(some(needed, absent(), "no cid"))
        assert (done.blocks, done.bytes) == (1, 1000)
        assert [await store.has(cid) for cid in (pinned, needed, garbage)] == [True, True, False]
        assert set(await server.store.pins()) == {pinned}


async def test_over_a_unix_socket_with_credentials(tmp_path: Path):
    async with kubo_rpc_server(tmp_path / "kubo.sock", authorization="Bearer secret") as server:
        async with on(server, tmp_path / "spool", credentials="bearer:secret") as store:
            cid = await store.add_bytes(b"x")
            await handed_over(store)
            assert await server.store.has(cid)
        async with on(server, tmp_path / "spool", credentials="basic:a:b") as store:
            assert not await store.ok()
            assert "credentials" in store.health().problem


async def test_older_daemons_know_a_codec_by_another_name(server: KuboRpcServer, tmp_path: Path):
    server.old_options = True
    async with on(server, tmp_path) as store:
        cid = await store.put_dag({"n": 1})
        await handed_over(store)
        assert await server.store.get_dag(cid) == {"n": 1}


async def test_several_blocks_at_once_find_out_what_an_older_daemon_calls_a_codec(server: KuboRpcServer):
    server.old_options = True
    blocks = [bytes((number,)) for number in range(8)]
    async with open_rpc(server.api) as rpc:
        async with trio.open_nursery() as nursery:
            for data in blocks:
                nursery.start_soon(rpc.block_put, compute(RAW, data), data)
        for data in blocks:
            assert await rpc.block_get(compute(RAW, data), offline=True) == data


async def test_the_daemon_makes_the_same_cids(server: KuboRpcServer, tmp_path: Path):
    data = pattern(2 * CHUNK + 3)

    async def pieces() -> AsyncIterator[bytes]:
        yield data

    async with on(server, tmp_path) as store, open_rpc(server.api) as rpc:
        cid, dag = await store.add_bytes(data), await store.put_dag({"n": 1})
        assert await rpc.add(pieces(), pin=True) == cid
        assert await rpc.dag_put(b"\xa1\x61n\x01") == dag
        await handed_over(store)
        assert await rpc.cat(parse(cid), max_bytes=1 << 20) == data
        assert await rpc.dag_get(parse(dag)) == {"n": 1}
        with pytest.raises(StoreUnavailable):
            await rpc.cat(parse(cid), max_bytes=1000)
        assert (await rpc.id())["AgentVersion"] == "test"


async def test_content_is_published_under_a_key_of_kubo(server: KuboRpcServer, tmp_path: Path) -> None:
    async with on(server, tmp_path / "spool") as store:
        names = store.names("dim-my swarm/1")
        first, second = await store.put_dag({"a": 1}), await store.put_dag({"a": 2})
        name = await names.publish(first, lifetime=86_400.0, ttl=30.0)
        assert await names.publish(second, lifetime=86_400.0, ttl=30.0) == name
        assert server.keys == {"dim-my-swarm-1": name}
        assert server.calls.count("key/gen") == 1
        assert await store.names("dim-my swarm/1").publish(first, lifetime=60.0, ttl=0.2) == name  # as after a restart
        async with open_rpc(server.api) as rpc:
            assert await rpc.name_resolve(name, timeout=5) == f"/ipfs/{first}"
        server.keys.clear()  # another daemon answers now
        with pytest.raises(StoreUnavailable):
            await names.publish(second, lifetime=60.0, ttl=30.0)
        assert await names.publish(second, lifetime=60.0, ttl=30.0) != name


@pytest.mark.parametrize("fault", ["500", "hang", "garbage", "cut off", "html"])
async def test_a_name_that_cannot_be_published_is_said(server: KuboRpcServer, tmp_path: Path, fault: Fault) -> None:
    async with on(server, tmp_path / "spool", publish_timeout=0.5) as store:
        cid = await store.put_dag({"a": 1})
        await handed_over(store)
        server.fault = fault
        with pytest.raises(StoreUnavailable):
            await store.names("dim").publish(cid, lifetime=60.0, ttl=30.0)


async def test_messages_go_through_kubos_pubsub_in_its_own_spelling(server: KuboRpcServer, tmp_path: Path) -> None:
    async with on(server, tmp_path / "spool") as store:
        data = b"eyJ.\x00\r\n--boundary--\r\n\xff"
        await store.pubsub().publish("dim/events/\u00e4/jobs/1", data)
        assert server.heard == [("dim/events/\u00e4/jobs/1", data)]


@pytest.mark.parametrize("fault", ["500", "hang", "cut off"])
async def test_a_message_that_kubo_does_not_take_is_said(server: KuboRpcServer, tmp_path: Path, fault: Fault) -> None:
    async with on(server, tmp_path / "spool") as store:
        server.fault = fault
        with trio.fail_after(5), pytest.raises(StoreUnavailable):
            await store.pubsub().publish("t", b"x")
        server.fault, server.pubsub = "", False
        with pytest.raises(StoreUnavailable, match="--enable-pubsub-experiment"):
            await store.pubsub().publish("t", b"x")
        assert server.heard == [] or fault == "cut off"
