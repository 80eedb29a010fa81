"""The kubo backend on an implementation of the RPC that neither Kubo's authors nor DIM's wrote: js-ipfs, in a process of its own.

It answers for the CIDs, too: what it makes of a file or a DAG is what DIM's own layout makes of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import trio

from p2p.ipfs.api import BlockMissing, ContentStore, StoreUnavailable
from p2p.ipfs.kubo.settings import RpcSettings
from p2p.ipfs.kubo.store import open_kubo
from tests.support.content_contract import SingleContract, absent
from tests.support.js_ipfs_node import js_ipfs, need_js_ipfs
from tests.support.kubo_stores import read_from_kubo
from tests.support.rpc_contract import OFFLINE, STORE, Daemon, RpcContract

need_js_ipfs()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with js_ipfs(tmp_path_factory.mktemp("js-ipfs")) as api:
        yield Daemon(api, agent="js-ipfs/")


class TestRpc(RpcContract):
    lacks: ClassVar = {OFFLINE: "js-ipfs has no offline calls: it looks for a block until the caller gives up"}


class TestContract(SingleContract):
    """All is read from js-ipfs. Without two tests of what is not there: it looks for a block until the caller gives up; and without the
    statistics, which are the spool's."""

    test_what_is_not_here_is_missing = None  # type: ignore[assignment]
    test_only_what_is_here_can_be_exported = None  # type: ignore[assignment]
    test_statistics_count_what_is_stored = None  # type: ignore[assignment]

    @pytest.fixture
    async def store(self, daemon: Daemon, tmp_path: Path) -> AsyncIterator[ContentStore]:
        async with open_kubo(tmp_path / "spool", settings=STORE, kubo=daemon.settings()) as store:
            assert await store.ok()
            yield read_from_kubo(store)


async def test_what_it_looks_for_in_vain_is_given_up(daemon: Daemon, tmp_path: Path):
    kubo = replace(daemon.settings(), rpc=RpcSettings(timeout=1.0), retry_first=60.0)
    async with open_kubo(tmp_path / "spool", settings=STORE, kubo=kubo) as store:
        with trio.fail_after(10), pytest.raises((BlockMissing, StoreUnavailable)):
            await store.get_bytes(absent(), timeout=2)
