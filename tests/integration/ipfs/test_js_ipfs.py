"""The kubo backend on an implementation of the RPC that neither Kubo's authors nor DIM's wrote: js-ipfs, in a process of its own.

It answers for the CIDs, too: what it makes of a file or a DAG is what DIM's own layout makes of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from p2p.ipfs import cid as cids
from p2p.ipfs import dagcbor
from p2p.ipfs.api import BlockMissing, ContentStore, StoreUnavailable
from p2p.ipfs.embedded import open_embedded
from p2p.ipfs.kubo.rpc import KuboRpc, Refused, open_rpc
from p2p.ipfs.kubo.settings import KuboSettings, RpcSettings
from p2p.ipfs.kubo.store import KuboStore, open_kubo
from p2p.ipfs.settings import StoreSettings
from tests.support.content_contract import KUBO, SingleContract, absent, link_to, nothing, pieces, some
from tests.support.js_ipfs_node import js_ipfs, need_js_ipfs
from tests.support.unixfs_reference import CHUNK, pattern

need_js_ipfs()

STORE = StoreSettings(reserve_bytes=0)
RPC = RpcSettings(timeout=20.0)
QUICK = KuboSettings(rpc=RPC, retry_first=0.05, retry_most=0.2, ping=0.05, settle=0.0)
SIZES = [*KUBO, 10_000_000]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with js_ipfs(tmp_path_factory.mktemp("js-ipfs")) as api:
        yield api


@pytest.fixture
async def rpc(api: str) -> AsyncIterator[KuboRpc]:
    async with open_rpc(api, settings=RPC) as rpc:
        yield rpc


@pytest.fixture
async def store(api: str, tmp_path: Path) -> AsyncIterator[KuboStore]:
    """Which keeps nothing that it could hand over."""
    async with open_kubo(tmp_path / "spool", settings=STORE, kubo=replace(QUICK, api=api)) as store:
        assert await store.ok()
        yield store


async def handed_over(store: KuboStore) -> None:
    with trio.fail_after(30):
        while store.health().backlog or store.statistics().blocks or not store.health().ok:
            await trio.sleep(0.01)


def unlike(text: str, size: int) -> bytes:
    """Bytes that no other test has: the daemon is the same for all."""
    return hashlib.shake_128(text.encode()).digest(size)


class TestContract(SingleContract):
    """Without two tests of what is not there: js-ipfs has no offline calls, it looks for a block until the caller gives up."""

    test_what_is_not_here_is_missing = None  # type: ignore[assignment]
    test_only_what_is_here_can_be_exported = None  # type: ignore[assignment]

    @pytest.fixture
    async def store(self, api: str, tmp_path: Path) -> AsyncIterator[ContentStore]:
        async with open_kubo(tmp_path / "spool", settings=STORE, kubo=KuboSettings(api=api, rpc=RPC, settle=60.0)) as store:
            assert await store.ok()
            yield store


@pytest.mark.parametrize("size", SIZES)
async def test_its_cid_of_a_file_is_ours(rpc: KuboRpc, tmp_path: Path, size: int):
    data = pattern(size)
    async with open_embedded(tmp_path, settings=STORE) as ours:
        cid = await ours.add_bytes(data, durable=False)
    assert await rpc.add(pieces(data, 1 << 20), pin=False) == cid == KUBO.get(size, cid)
    assert await rpc.cat(cids.parse(cid), max_bytes=size) == data


@pytest.mark.parametrize(
    "value", [{}, [], 0, "é", {"b": 1, "aa": 2, "a": b"x"}, [None, True, -(2**63), 2**64 - 1, 1.5], [[list(range(2000))]]]
)
async def test_its_cid_of_a_dag_is_ours(rpc: KuboRpc, tmp_path: Path, value: object):
    async with open_embedded(tmp_path, settings=STORE) as ours:
        cid = await ours.put_dag(value)
        assert await rpc.dag_put(dagcbor.encode(value)) == cid


async def test_what_was_added_through_either_is_read_through_the_other(rpc: KuboRpc, store: KuboStore):
    theirs, mine = unlike("theirs", 3 * CHUNK + 1), unlike("mine", 2 * CHUNK)
    cid = await rpc.add(pieces(theirs, CHUNK), pin=False)
    assert await store.get_bytes(cid) == theirs
    cid = await store.add_bytes(mine)
    await handed_over(store)
    assert await rpc.cat(cids.parse(cid), max_bytes=len(mine)) == mine
    assert await store.get_bytes(cid) == mine


async def test_dags_and_what_they_link_to(rpc: KuboRpc, store: KuboStore):
    file = await store.add_bytes(unlike("linked", CHUNK + 1))
    dag = await store.put_dag_bytes(link_to(file))
    await store.pin(dag)
    await handed_over(store)
    assert await rpc.pin_kind(cids.parse(dag)) == "recursive"
    assert await store.get_bytes(file) == unlike("linked", CHUNK + 1)
    assert await store.get_dag(dag) == dagcbor.decode(link_to(file))
    assert await rpc.dag_put(link_to(file)) == dag


async def test_pins_hold_whole_dags_direct_ones_a_block(rpc: KuboRpc, store: KuboStore):
    whole, root = await store.add_bytes(unlike("whole", CHUNK + 1)), await store.add_bytes(unlike("root", CHUNK + 1))
    await store.pin(whole)
    await store.pin(root, recursive=False)
    await handed_over(store)
    assert whole in await rpc.pin_ls("recursive")
    assert root in await rpc.pin_ls("direct")
    assert await rpc.pin_kind(cids.parse(whole)) == "recursive"
    await store.collect(nothing())
    assert await store.get_bytes(whole) == unlike("whole", CHUNK + 1)
    assert await store.has(root)
    await store.unpin(whole)
    await store.unpin(root)
    await handed_over(store)
    assert not {whole, root} & (await rpc.pin_ls("recursive") | await rpc.pin_ls("direct"))


async def test_a_collection_spares_what_is_needed(api: str, store: KuboStore):
    needed, garbage = await store.add_bytes(unlike("needed", CHUNK + 1)), await store.add_bytes(unlike("garbage", CHUNK + 1))
    await handed_over(store)
    done = await store.collect(some(needed))
    assert done.blocks >= 3
    assert await store.get_bytes(needed) == unlike("needed", CHUNK + 1)
    async with open_rpc(api, settings=RpcSettings(timeout=1.0)) as impatient:
        with pytest.raises(StoreUnavailable):  # what is not there is looked for
            await impatient.block_stat(cids.parse(garbage))


async def test_a_root_is_published_under_a_key(rpc: KuboRpc, store: KuboStore):
    first, second = await store.add_bytes(b"first"), await store.add_bytes(b"second")
    await handed_over(store)
    names = store.names("dim-a swarm")
    name = await names.publish(first, 3600, 60)
    assert name in (await rpc.key_list()).values()
    assert "dim-a-swarm" in await rpc.key_list()
    assert await rpc.name_resolve(name, timeout=10) == f"/ipfs/{first}"
    assert await names.publish(second, 3600, 60) == name
    assert await rpc.name_resolve(name, timeout=10) == f"/ipfs/{second}"
    with pytest.raises(Refused):
        await rpc.key_gen("dim-a-swarm")


async def test_it_says_what_it_is_and_how_much_it_holds(rpc: KuboRpc):
    assert str((await rpc.id())["AgentVersion"]).startswith("js-ipfs/")
    before = await rpc.repo_stat()
    data = unlike("counted", 1000)
    await rpc.block_put(cids.compute(cids.RAW, data), data)
    assert int((await rpc.repo_stat())["NumObjects"]) == int(before["NumObjects"]) + 1
    assert await rpc.block_stat(cids.compute(cids.RAW, data)) == 1000


async def test_what_it_looks_for_in_vain_is_given_up(api: str, tmp_path: Path):
    kubo = replace(QUICK, api=api, rpc=RpcSettings(timeout=1.0), retry_first=60.0)
    async with open_kubo(tmp_path / "spool", settings=STORE, kubo=kubo) as store:
        with trio.fail_after(10), pytest.raises((BlockMissing, StoreUnavailable)):
            await store.get_bytes(absent(), timeout=2)
