"""Measures the gRPC layer on loopback: unary calls a second, and pooled against new connections.

    python -m tools.bench_rpc [--seconds 3] [--json]

The functions take and return plain values, for a common benchmark to call.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import trio

from dimnode.rpc.bridge import Bridge, open_bridge
from dimnode.rpc.channels import ChannelPool, open_pool
from dimnode.rpc.daemon_client import GrpcDaemonClient
from dimnode.rpc.daemon_server import NodeIdentity, serve_daemon
from dimnode.rpc.orchestrator_server import serve_orchestrator
from dimnode.rpc.v1 import orchestrator_pb2 as pb
from dimnode.rpc.v1.orchestrator_pb2_grpc import OrchestratorStub
from dimnode.security.certificates import CertificateStore
from p2p.memory import MemoryHub


class _Swarm:
    """As much of the swarm as GetCluster asks for."""

    def cluster(self) -> Mapping[str, Any]:
        return {"swarm": "bench", "orchestrators": []}


async def unary_calls(clients: int, seconds: float) -> float:
    """Small unary calls a second through bridge and trio handler, by so many clients at once in the same process."""
    nobody: Any = None
    swarm: Any = _Swarm()
    async with open_bridge() as bridge, serve_orchestrator(bridge, nobody, swarm, "127.0.0.1:0") as server:
        return await bridge.aio(_call_for(server.address, clients, seconds))


async def _call_for(address: str, clients: int, seconds: float) -> float:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = OrchestratorStub(channel)
        await stub.GetCluster(pb.GetClusterRequest())
        start = time.perf_counter()

        async def one() -> int:
            done = 0
            while time.perf_counter() < start + seconds:
                await stub.GetCluster(pb.GetClusterRequest())
                done += 1
            return done

        total = sum(await asyncio.gather(*(one() for _ in range(clients))))
        return total / (time.perf_counter() - start)


@asynccontextmanager
async def two_nodes(bridge: Bridge) -> AsyncGenerator[tuple[ChannelPool, GrpcDaemonClient]]:
    """A client whose peer ``b`` serves the work API over mutual TLS."""
    async with MemoryHub() as hub:
        ours, theirs = (CertificateStore(hub.network(peer), time.time) for peer in ("a", "b"))
        hub.connect_all()
        for store in (ours, theirs):
            store.serve()
        no_tasks: Any = None
        identity = NodeIdentity("b", "b", lambda: 0.0)
        async with (
            serve_daemon(bridge, no_tasks, theirs, lambda _: False, identity, "127.0.0.1:0") as server,
            open_pool(bridge, ours, lambda _: server.address) as pool,
        ):
            yield pool, GrpcDaemonClient(pool, "a", no_tasks)


async def health_calls(calls: int = 100) -> dict[str, float]:
    """Seconds for so many Health calls over one pooled channel, and with a new channel each (certificates already
    exchanged in both cases), in one run: ``{"pooled", "new", "saved"}``, the last as a share."""
    async with open_bridge() as bridge, two_nodes(bridge) as (pool, client):
        await client.health("b")
        start = time.perf_counter()
        for _ in range(calls):
            await client.health("b")
        pooled = time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(calls):
            pool.drop("b")
            await client.health("b")
        new = time.perf_counter() - start
    return {"pooled": pooled, "new": new, "saved": 1 - pooled / new}


async def measure(seconds: float) -> dict[str, float]:
    health = await health_calls()
    return {
        "unary_calls_per_second_1_client": await unary_calls(1, seconds),
        "unary_calls_per_second_32_clients": await unary_calls(32, seconds),
        "health_100_pooled_seconds": health["pooled"],
        "health_100_new_channels_seconds": health["new"],
        "health_time_saved_by_pooling": health["saved"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each rate")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = trio.run(measure, arguments.seconds)
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:40} {value:10.3f}")


if __name__ == "__main__":
    main()
