"""The contract of the content store, kept by the kubo backend on the daemon that ``IPFS_API`` names (``IPFS_API_AUTH``: its credentials)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from p2p.ipfs.api import ContentStore
from p2p.ipfs.kubo.rpc import open_rpc
from p2p.ipfs.kubo.settings import KuboSettings, RpcSettings
from p2p.ipfs.kubo.store import KuboStore, open_kubo
from p2p.ipfs.settings import StoreSettings
from tests.support.content_contract import SingleContract
from tests.support.unixfs_reference import CHUNK

if not os.environ.get("IPFS_API"):
    pytest.skip("no real daemon: IPFS_API names none", allow_module_level=True)
QUICK = KuboSettings(retry_first=0.05, retry_most=0.2, ping=0.05, settle=0.0)
STORE = StoreSettings(reserve_bytes=0)


async def handed_over(store: KuboStore) -> None:
    with trio.fail_after(30):
        while store.health().backlog or not store.health().ok:
            await trio.sleep(0.01)


async def out_of_the_spool(store: KuboStore) -> None:
    with trio.fail_after(30):
        while store.statistics().blocks:
            await trio.sleep(0.01)


class TestRealDaemon(SingleContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[ContentStore]:
        kubo = KuboSettings(api=os.environ["IPFS_API"], credentials=os.environ.get("IPFS_API_AUTH", ""), settle=60.0)
        async with open_kubo(tmp_path / "spool", settings=STORE, kubo=kubo) as store:
            assert await store.ok()
            yield store

    async def test_what_was_handed_over_is_read_back_from_the_daemon(self, tmp_path: Path):
        kubo = replace(QUICK, api=os.environ["IPFS_API"], rpc=RpcSettings(), credentials=os.environ.get("IPFS_API_AUTH", ""))
        data = os.urandom(3 * CHUNK + 7)
        async with open_kubo(tmp_path / "spool", settings=STORE, kubo=kubo) as store, open_rpc(kubo.api, kubo.credentials) as rpc:
            cid = await store.add_bytes(data)
            await store.pin(cid)
            dag = await store.put_dag({"a": [1, "x", b"y"]})
            await handed_over(store)
            await out_of_the_spool(store)
            assert await store.get_bytes(cid) == data
            assert await store.get_dag(dag) == {"a": [1, "x", b"y"]}
            await store.unpin(cid)
            await handed_over(store)

            async def pieces() -> AsyncIterator[bytes]:
                yield data

            assert await rpc.add(pieces(), pin=False) == cid
