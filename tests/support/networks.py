"""Real networks for tests: on loopback, with short times."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from p2p.identity import Identity
from p2p.network import Libp2pNetwork, open_network
from p2p.settings import DialSettings, GossipSettings, HealthSettings, NetworkSettings

QUICK = NetworkSettings(
    dial=DialSettings(timeout=2.0, backoff_first=0.05, backoff_most=0.2),
    health=HealthSettings(interval=0.3, timeout=1.5),
    gossip=GossipSettings(watchdog=0.2, repeat=2.0, heartbeat=0.3),
)


def identity(number: int) -> Identity:
    return Identity(bytes([number]) * 32)


@asynccontextmanager
async def opened(number: int, **changes: Any) -> AsyncGenerator[Libp2pNetwork, None]:
    """The node with that number: always the same identity."""
    async with open_network(identity=identity(number), settings=replace(QUICK, **changes)) as network:
        yield network


@asynccontextmanager
async def two(**changes: Any) -> AsyncGenerator[tuple[Libp2pNetwork, Libp2pNetwork], None]:
    """Nodes 1 and 2, connected."""
    async with opened(1, **changes) as a, opened(2, **changes) as b:
        await a.connect(b.addresses()[0])
        yield a, b
