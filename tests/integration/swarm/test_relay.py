"""The local socket that leads to an orchestrator, over a real socket."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import trio

from dimnode.swarm.relay import Relay
from p2p.memory import MemoryHub


class NoSeats:
    def seats(self) -> tuple[Any, ...]:
        return ()

    def changed(self) -> int:
        return 0

    async def wait_changed(self, since: int) -> int:
        await trio.sleep_forever()
        return since


def closed_port() -> tuple[str, int]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return "127.0.0.1", s.getsockname()[1]


async def test_an_api_that_has_just_closed_costs_one_connection_and_not_the_node(tmp_path: Path) -> None:
    address = closed_port()
    async with MemoryHub(seed=1) as hub, trio.open_nursery() as nursery:
        relay = Relay(hub.network("p1"), NoSeats(), lambda: address)  # type: ignore[arg-type]
        await nursery.start(relay.run, tmp_path / "s")
        with trio.fail_after(5):
            for _ in range(2):
                async with await trio.open_unix_socket(str(tmp_path / "s")) as client:
                    assert await client.receive_some(1) == b""
        nursery.cancel_scope.cancel()
