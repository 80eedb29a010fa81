"""What a node does about an agent that says strange things: the agent is a socket of this test."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from dimnode.daemon.agent_process import AgentDied, AgentProcess
from dimnode.daemon.agent_protocol import PREFIX, Header, TensorHead, pack
from dimnode.daemon.sandbox.report import Confinement


class Server:
    """Whose agent ended with this status."""

    gone = False

    async def wait_ended(self, pid: int) -> int:
        return 0

    def kill_agent(self, pid: int) -> None: ...


def agent(tmp_path: Path) -> tuple[AgentProcess, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    server: Any = Server()
    return AgentProcess(server, 1, trio.socket.from_stdlib_socket(ours), tmp_path, 0), theirs


async def test_what_is_announced_takes_no_memory_before_it_comes(tmp_path: Path) -> None:
    node_side, theirs = agent(tmp_path)
    size = 900 << 20
    head = b"".join(bytes(p) for p in pack(Header(op="result", tensors=(TensorHead("y", "uint8", (size,), size),)), {}))
    header_size, _ = PREFIX.unpack(head[: PREFIX.size])
    theirs.sendall(PREFIX.pack(header_size, size) + head[PREFIX.size :])
    before = psutil.Process().memory_info().rss
    async with trio.open_nursery() as nursery:

        async def hang_up() -> None:
            await trio.testing.wait_all_tasks_blocked()
            assert psutil.Process().memory_info().rss - before < 100 << 20
            theirs.close()

        nursery.start_soon(hang_up)
        with pytest.raises(AgentDied, match="without an answer, exit code 0"):
            await node_side.call(Header(op="run"), {}, 1 << 30)
    node_side.kill()


@pytest.mark.parametrize("said", [Header(op="result"), Header(op="ready", tensors=(TensorHead("y", "uint8", (1,), 1),))])
async def test_only_a_greeting_makes_an_agent_ready(tmp_path: Path, said: Header) -> None:
    node_side, theirs = agent(tmp_path)
    with theirs:
        for piece in pack(said, {}):
            theirs.sendall(piece)
        if said.op == "ready":
            await node_side.wait_ready()
            assert node_side.confinement == Confinement(), "who says nothing is not confined"
        else:
            with pytest.raises(AgentDied, match="nonsense: no greeting"):
                await node_side.wait_ready()
    node_side.kill()
