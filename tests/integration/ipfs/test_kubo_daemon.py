"""The kubo backend on the daemon that ``IPFS_API`` names (``IPFS_API_AUTH``: its credentials).

``IPFS_API_GC=1``: its garbage may be collected, all of it.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import ClassVar

import pytest
import trio

from p2p.ipfs.api import ContentStore
from p2p.ipfs.kubo.store import open_kubo
from tests.support.content_contract import SingleContract
from tests.support.kubo_stores import read_from_kubo
from tests.support.rpc_contract import COLLECT, STORE, SUBSCRIBE, Daemon, RpcContract, has_pubsub

if not os.environ.get("IPFS_API"):
    pytest.skip("no real daemon: IPFS_API names none", allow_module_level=True)


DAEMON = Daemon(os.environ["IPFS_API"], os.environ.get("IPFS_API_AUTH", ""))


def lacking() -> dict[str, str]:
    found = {} if os.environ.get("IPFS_API_GC") else {COLLECT: "its owner may want what nobody pins: IPFS_API_GC=1 allows a collection"}
    if trio.run(has_pubsub, DAEMON.api, DAEMON.credentials):
        return found
    return {**found, SUBSCRIBE: "its pubsub is off: ipfs daemon --enable-pubsub-experiment"}


@pytest.fixture(scope="module")
def daemon() -> Daemon:
    return DAEMON


class TestRpc(RpcContract):
    lacks: ClassVar = lacking()


class TestRealDaemon(SingleContract):
    """All is read from the daemon; the statistics are the spool's."""

    test_statistics_count_what_is_stored = None  # type: ignore[assignment]

    @pytest.fixture
    async def store(self, daemon: Daemon, tmp_path: Path) -> AsyncIterator[ContentStore]:
        async with open_kubo(tmp_path / "spool", settings=STORE, kubo=daemon.settings()) as store:
            assert await store.ok()
            yield read_from_kubo(store)
