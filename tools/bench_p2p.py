"""Measures the node's network: two nodes in one process on loopback, as JSON on stdout.

    python tools/bench_p2p.py [--messages N] [--requests N] [--seconds S]

Both nodes share one core here: each figure is what a core does for sender and receiver together.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import AsyncExitStack

import trio

from p2p.api import Network
from p2p.identity import Identity
from p2p.network import open_network

KIB = bytes(1024)


async def echo(peer: str, data: bytes) -> bytes:
    return data


async def gossip(a: Network, b: Network, messages: int) -> float:
    """Deliveries per second of a burst of 1 KB messages."""
    inbox = b.subscribe("bench", lambda author, data: True, messages)
    while not inbox.statistics().current_buffer_used:
        await a.publish("bench", b"knock")
        await trio.sleep(0.1)
    await trio.sleep(0.5)
    while inbox.statistics().current_buffer_used:
        inbox.receive_nowait()
    start = time.perf_counter()
    for _ in range(messages):
        await a.publish("bench", KIB)
    with trio.fail_after(60):
        for _ in range(messages):
            await inbox.receive()
    return messages / (time.perf_counter() - start)


async def requests(a: Network, b: Network, count: int, at_once: int) -> float:
    """Requests per second of 1 KB, answered with 1 KB."""

    async def ask(share: int) -> None:
        for _ in range(share):
            await a.request(b.peer_id, "echo", KIB, timeout=10)

    start = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(ask, count // at_once)
    return count // at_once * at_once / (time.perf_counter() - start)


async def bulk(a: Network, b: Network, megabytes: int = 64) -> float:
    """Megabytes per second through one tunnel."""
    received = trio.Event()

    async def sink(peer: str, stream: trio.abc.HalfCloseableStream) -> None:
        async for _ in stream:
            pass
        received.set()

    b.serve_tunnel("sink", sink)
    start = time.perf_counter()
    async with await a.open_tunnel(b.peer_id, "sink", timeout=5) as stream:
        for _ in range(megabytes):
            await stream.send_all(bytes(1_000_000))
        await stream.send_eof()
        await received.wait()
    return megabytes / (time.perf_counter() - start)


async def idle(seconds: float) -> float:
    """Share of a core that one idle, connected node uses."""
    cpu, wall = time.process_time(), time.perf_counter()
    await trio.sleep(seconds)
    return (time.process_time() - cpu) / (time.perf_counter() - wall) / 2


async def measure(messages: int, count: int, seconds: float) -> dict[str, float]:
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(open_network(identity=Identity.generate()))
        b = await stack.enter_async_context(open_network(identity=Identity.generate()))
        b.serve("echo", echo)
        await a.connect(b.addresses()[0])
        return {
            "gossip_deliveries_per_s": round(await gossip(a, b, messages)),
            "requests_per_s_one_by_one": round(await requests(a, b, count, 1)),
            "requests_per_s_32_at_once": round(await requests(a, b, 4 * count, 32)),
            "tunnel_mb_per_s": round(await bulk(a, b)),
            "idle_core_share_per_node": round(await idle(seconds), 4),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to idle")
    options = parser.parse_args()
    print(json.dumps(trio.run(measure, options.messages, options.requests, options.seconds), indent=2))


if __name__ == "__main__":
    main()
