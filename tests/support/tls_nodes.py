"""Nodes that serve the work API to each other over mutual TLS on loopback, with certificates exchanged through a
fake network."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from dimnode.errors import Unavailable
from dimnode.rpc.bridge import Bridge, open_bridge
from dimnode.rpc.channels import ChannelPool, ChannelSettings, open_pool
from dimnode.rpc.daemon_client import GrpcDaemonClient
from dimnode.rpc.daemon_server import DaemonServerSettings, NodeIdentity, serve_daemon
from dimnode.rpc.server import RunningServer, ServerSettings
from dimnode.security.certificates import CertificateStore
from tests.support.rpc_fakes import FakeSwitch, FakeTasks


@dataclass
class TlsNode:
    peer: str
    certificates: CertificateStore
    tasks: FakeTasks
    trusted: set[str]
    server: RunningServer
    pool: ChannelPool
    client: GrpcDaemonClient


@dataclass
class TlsSwarm:
    bridge: Bridge
    switch: FakeSwitch
    stack: AsyncExitStack
    channels: ChannelSettings
    addresses: dict[str, str] = field(default_factory=dict)

    def _resolve(self, peer: str) -> str:
        try:
            return self.addresses[peer]
        except KeyError:
            raise Unavailable("no address of the node's daemon is known") from None

    async def node(self, peer: str, *, listen: str = "127.0.0.1:0", trusted: Any = ()) -> TlsNode:
        certificates = CertificateStore(self.switch.node(peer), time.time)
        certificates.serve()
        tasks, allowed = FakeTasks(), set(trusted)
        identity = NodeIdentity(peer, f"name-{peer}", lambda: 1.0)
        settings = DaemonServerSettings(server=ServerSettings(setting="daemon.listen", grace=0.2), max_order_bytes=100_000)
        enter = self.stack.enter_async_context
        server = await enter(serve_daemon(self.bridge, tasks, certificates, allowed.__contains__, identity, listen, settings))
        self.addresses[peer] = server.address
        pool = await enter(open_pool(self.bridge, certificates, self._resolve, settings=self.channels))
        return TlsNode(peer, certificates, tasks, allowed, server, pool, GrpcDaemonClient(pool, peer, tasks))


@asynccontextmanager
async def tls_swarm(channels: ChannelSettings | None = None) -> AsyncGenerator[TlsSwarm]:
    async with open_bridge() as bridge, AsyncExitStack() as stack:
        yield TlsSwarm(bridge, FakeSwitch(), stack, channels or ChannelSettings())
