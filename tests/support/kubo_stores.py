"""The kubo backend for tests: on `tests.support.kubo_rpc_server`, in a hurry; and waiting for what it does by itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from p2p.ipfs.kubo.settings import KuboSettings, RpcSettings
from p2p.ipfs.kubo.store import KuboStore, open_kubo
from p2p.ipfs.settings import StoreSettings
from tests.support.kubo_rpc_server import KuboRpcServer

QUICK = KuboSettings(retry_first=0.05, retry_most=0.2, ping=0.05, settle=0.0, rpc=RpcSettings(connect_timeout=0.5, timeout=0.5))
PATIENT = RpcSettings(connect_timeout=10.0, timeout=10.0)
"""For tests in which no call is to time out, also on a busy machine."""
STORE = StoreSettings(reserve_bytes=0)


def on(server: KuboRpcServer, folder: Path, settings: StoreSettings = STORE, **changes: Any) -> AbstractAsyncContextManager[KuboStore]:
    return open_kubo(folder, settings=settings, kubo=replace(QUICK, api=server.api, **changes))


async def handed_over(store: KuboStore, within: float = 10) -> None:
    with trio.fail_after(within):
        while store.health().backlog or not store.health().ok:
            await trio.sleep(0.01)


async def out_of_the_spool(store: KuboStore, within: float = 10) -> None:
    with trio.fail_after(within):
        while store.statistics().blocks or store.health().backlog:
            await trio.sleep(0.01)


async def noticed(store: KuboStore) -> None:
    """That Kubo is away."""
    with trio.fail_after(10):
        while store.health().ok:
            await trio.sleep(0.01)


def read_from_kubo(store: KuboStore) -> KuboStore:
    """What is added is in Kubo and not here any more when the call returns."""
    for name in ("add_bytes", "add_file", "add_stream", "import_car", "put_dag", "put_dag_bytes", "put_lacking"):
        setattr(store, name, _and_out_of_the_spool(store, getattr(store, name)))
    return store


def _and_out_of_the_spool(store: KuboStore, add: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def call(*args: Any, **options: Any) -> Any:
        added = await add(*args, **options)
        await out_of_the_spool(store, within=60)
        return added

    return call
