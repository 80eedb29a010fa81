from __future__ import annotations

import time
import tracemalloc

import trio

from p2p.identity import Identity
from p2p.network import open_network
from tests.support.network_contract import echo


async def test_idle_nodes_use_next_to_nothing() -> None:
    async with open_network(identity=Identity.generate()) as a, open_network(identity=Identity.generate()) as b:
        await a.connect(b.addresses()[0])
        await trio.sleep(1)
        cpu, wall = time.process_time(), time.perf_counter()
        await trio.sleep(3)
        share = (time.process_time() - cpu) / (time.perf_counter() - wall)
    assert share < 0.04, f"two idle nodes use {share:.1%} of a core"


async def test_requests_and_tunnels_leave_no_memory_behind() -> None:
    async def end(peer: str, stream: trio.abc.HalfCloseableStream) -> None:
        await stream.receive_some()

    async with open_network(identity=Identity.generate()) as a, open_network(identity=Identity.generate()) as b:
        await a.connect(b.addresses()[0])
        b.serve("echo", echo)
        b.serve_tunnel("end", end)

        async def use(times: int) -> None:
            for _ in range(times):
                await a.request(b.peer_id, "echo", bytes(5000), timeout=5)
                async with await a.open_tunnel(b.peer_id, "end", timeout=5) as stream:
                    await stream.send_all(b"x")
            await trio.sleep(0.3)

        await use(50)
        tracemalloc.start()
        try:
            await use(20)
            before = tracemalloc.get_traced_memory()[0]
            await use(100)
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
    assert grown < 100 * 1500, f"{grown} bytes for 100 requests and tunnels"
