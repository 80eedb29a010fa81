"""Agents that send what is no frame, to a real pool: each is taken for a crash of its model, and the node goes on."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from dimnode.daemon import agent_process
from dimnode.daemon.agent_process import AgentDied, AgentProcess
from dimnode.daemon.agent_protocol import (
    MOST_AXES,
    MOST_TENSORS,
    PREFIX,
    Header,
    ProtocolError,
    TensorHead,
    check_sizes,
    pack,
    unpack_header,
    unpack_tensors,
)
from dimnode.daemon.agents import AgentCrashed, AgentPool, ModelFile
from dimnode.errors import InvalidArgument, ResourceExhausted
from tests.support.daemon import AGENTS

X = np.ones((2, 4), np.float32)


def frame(header: Header | bytes, payload: bytes = b"") -> bytes:
    """Also one that no honest agent would send."""
    encoded = header if isinstance(header, bytes) else b"".join(map(bytes, pack(header, {})))[PREFIX.size :]
    return PREFIX.pack(len(encoded), len(payload)) + encoded + payload


def result(*heads: TensorHead, payload: bytes = b"") -> bytes:
    return frame(Header(op="result", tensors=heads), payload)


GOOD = {
    "load": frame(Header(op="loaded")),
    "run": b"".join(map(bytes, pack(Header(op="result"), {"y": X}))),
    "probe": frame(Header(op="result", independent=True)),
}
DEEP = b'{"op":"result","zz":' + b"[" * 200_000
NONSENSE = {
    "nested": frame(DEEP),
    "nested and well formed": frame(DEEP + b"]" * 200_000 + b"}"),
    "no json": frame(b"\xff\x00"),
    "dtype with a bracket": result(TensorHead("y", "(1,f4", (1,), 4), payload=bytes(4)),
    "dtype with a comma": result(TensorHead("y", "(,)f4", (1,), 4), payload=bytes(4)),
    "dtype of parts": result(TensorHead("y", "f4,f4", (1,), 8), payload=bytes(8)),
    "axis beyond any machine": result(TensorHead("y", "uint8", (0, 1 << 70), 0)),
    "axes that overflow": result(TensorHead("y", "uint8", (0, 1 << 62, 1 << 62), 0)),
    "nothing like the shape": result(TensorHead("y", "str", (1 << 62,), 0)),
    "outside of shared memory": result(TensorHead("y", "uint8", (4,), 4, at=0)),
}


class Server:
    """Of agents that live in this process."""

    gone = False

    def __init__(self) -> None:
        self.killed = trio.Event()

    def status(self, pid: int) -> int | None:
        return 0 if self.killed.is_set() else None

    async def wait_ended(self, pid: int) -> int:
        await self.killed.wait()
        return 0

    def kill_agent(self, pid: int) -> None:
        self.killed.set()


class Agents:
    """In the place of frameworks: every agent says what the test wants."""

    def __init__(self, folder: Path, nursery: trio.Nursery, says: Mapping[str, bytes]) -> None:
        self.says, self._folder, self._nursery = dict(says), folder, nursery

    async def start_agent(self, options: object) -> AgentProcess:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        self._nursery.start_soon(self._serve, trio.SocketStream(trio.socket.from_stdlib_socket(theirs)), dict(self.says))
        server: Any = Server()
        return AgentProcess(server, 1, trio.socket.from_stdlib_socket(ours), self._folder / "none", 0)

    async def _serve(self, stream: trio.SocketStream, says: Mapping[str, bytes]) -> None:
        buffer = b""
        async with stream:
            while True:
                if len(buffer) >= PREFIX.size:
                    header, payload = PREFIX.unpack(buffer[: PREFIX.size])
                    end = PREFIX.size + header + payload
                    if len(buffer) >= end:
                        asked, buffer = unpack_header(buffer[PREFIX.size : PREFIX.size + header]), buffer[end:]
                        try:
                            await stream.send_all(says[asked.op])
                        except (trio.BrokenResourceError, trio.ClosedResourceError):
                            return
                        continue
                try:
                    data = await stream.receive_some(1 << 16)
                except trio.BrokenResourceError:
                    return
                if not data:
                    return
                buffer += data


@asynccontextmanager
async def pool_of(folder: Path, **says: bytes) -> AsyncGenerator[AgentPool]:
    pool = AgentPool(replace(AGENTS, max_crashes=1), folder / "agents")
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run_pool)
        frameworks: Any = Agents(folder, nursery, GOOD | says)
        pool._frameworks.start_agent = frameworks.start_agent
        yield pool
        # whatever came, the pool is alive and serves other models
        frameworks.says = GOOD
        with trio.fail_after(10):
            np.testing.assert_array_equal((await pool.run(ModelFile("good", "onnx", folder / "good", 1), {"x": X}))["y"], X)
        nursery.cancel_scope.cancel()


async def blamed(pool: AgentPool, model: ModelFile) -> None:
    assert pool.statistics()["crashes"] == 1
    with pytest.raises(ResourceExhausted, match="crashed or hung 1 times in a row"):
        await pool.run(model, {"x": X})


@pytest.mark.parametrize("said", NONSENSE)
@pytest.mark.parametrize("op", ["load", "run"])
async def test_nonsense_is_a_crash_of_the_model_and_ends_nothing_else(tmp_path: Path, op: str, said: str) -> None:
    model = ModelFile("m", "onnx", tmp_path / "m", 1)
    async with pool_of(tmp_path, **{op: NONSENSE[said]}) as pool:
        with trio.fail_after(10), pytest.raises(AgentCrashed, match="nonsense"):
            await pool.run(model, {"x": X})
        await blamed(pool, model)


@pytest.mark.parametrize("said", NONSENSE)
async def test_so_it_is_when_the_pool_asks_by_itself(tmp_path: Path, said: str) -> None:
    model = ModelFile("m", "onnx", tmp_path / "m", 1, batchable=True)
    async with pool_of(tmp_path, probe=NONSENSE[said]) as pool:
        await pool.run(model, {"x": X}, "owner")
        with trio.fail_after(10):
            while pool._batching.asking(model.key):
                await trio.sleep(0.01)
        assert not pool.batches(model.key)
        await blamed(pool, model)


@pytest.mark.parametrize("said", NONSENSE)
async def test_so_it_is_in_a_batch(tmp_path: Path, said: str) -> None:
    model = ModelFile("m", "onnx", tmp_path / "m", 1, batchable=True)
    async with pool_of(tmp_path, run=NONSENSE[said]) as pool:
        pool._batching.learn(model.key, True)
        with trio.fail_after(10), pytest.raises(AgentCrashed, match="nonsense"):
            await pool.run(model, {"x": X}, "owner")
        await blamed(pool, model)


@pytest.mark.parametrize(
    ("heads", "payload", "words"),
    [
        ([TensorHead("a", "uint8", (1,), -(1 << 50)), *[TensorHead("b", "uint8", (1 << 30,), 1 << 30, at=0)] * 9], 0, "impossible"),
        ([TensorHead("a", "str", (1,), 1 << 20), TensorHead("b", "str", (1,), -(1 << 20))], 0, "impossible"),
        ([TensorHead("a", "uint8", (1,) * (MOST_AXES + 1), 1)], 1, "impossible"),
        ([TensorHead("a", "uint8", (-1, -1), 1)], 1, "impossible"),
        ([TensorHead("a", "uint8", (1 << 63,), 1)], 1, "impossible"),
        ([TensorHead("a", "uint8", (0,), 0)] * (MOST_TENSORS + 1), 0, "too many"),
        ([TensorHead("a", "uint8", (600,), 600, at=0), TensorHead("b", "uint8", (600,), 600)], 600, "1200 bytes is too large"),
        ([TensorHead("a", "uint8", (4,), 4)], 5, "differ"),
        ([TensorHead("a", "uint8", (4,), 4), TensorHead("b", "uint8", (4,), 4, at=0)], 8, "differ"),
    ],
)
def test_sizes_that_cannot_be_are_refused_before_anything_is_done(heads: list[TensorHead], payload: int, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        check_sizes(heads, payload, 1000)
    if "1200" not in words:
        with pytest.raises(ProtocolError, match=words):
            unpack_tensors(heads, bytearray(payload))


def test_a_shape_of_very_many_axes_is_not_multiplied() -> None:
    began = time.thread_time()
    with pytest.raises(ProtocolError):
        unpack_tensors([TensorHead("a", "uint8", (9,) * 200_000, 1)], bytearray(1))
    assert time.thread_time() - began < 0.5


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each piece of work was given to a thread."""
    seen: list[bool] = []
    real = agent_process._off_loop

    async def off_loop(heavy: bool, work: Callable[..., Any], *args: object) -> Any:
        seen.append(heavy)
        return await real(heavy, work, *args)

    monkeypatch.setattr(agent_process, "_off_loop", off_loop)
    return seen


HEAVY = agent_process.COPY_INLINE


@pytest.mark.parametrize(
    ("heads", "heavy"),
    [
        ([TensorHead("a", "uint8", (64,), 64, at=0)], False),
        ([TensorHead(f"{n}", "uint8", (HEAVY // 4,), HEAVY // 4, at=0) for n in range(4)], True),  # the same place again and again
        ([TensorHead("a", "str", (), 1 << 16, at=0)], True),
    ],
)
async def test_all_that_is_copied_counts(tmp_path: Path, heads: list[TensorHead], heavy: bool, threads: list[bool]) -> None:
    if not agent_process.AVAILABLE:
        pytest.skip("no shared memory here")
    async with trio.open_nursery() as nursery:
        agent = await Agents(tmp_path, nursery, {"run": result(*heads)}).start_agent(None)
        agent._out = agent_process.create(HEAVY)[1]
        with contextlib.suppress(AgentDied):  # zeros are no text
            await agent.call(Header(op="run"), {}, 1 << 30)
        assert threads[-1] is heavy
        agent.kill()


async def test_a_reply_is_bounded_with_what_lies_in_shared_memory(tmp_path: Path, threads: list[bool]) -> None:
    heads = [TensorHead("a", "uint8", (1,), -(1 << 50)), *[TensorHead(f"{n}", "uint8", (1 << 20,), 1 << 20, at=0) for n in range(9)]]
    for said, words in ((heads, "impossible"), (heads[1:], "too large")):
        async with trio.open_nursery() as nursery:
            agent = await Agents(tmp_path, nursery, {"run": result(*said)}).start_agent(None)
            with pytest.raises(AgentDied, match=words):
                await agent.call(Header(op="run"), {}, 1 << 20)
            agent.kill()
    assert threads == [False, False], "requests only: nothing of the replies was touched"


def test_what_no_frame_carries_is_told_to_the_caller() -> None:
    for tensors, words in (
        ({"a": np.zeros(1, "datetime64[s]")}, "datetime64"),
        ({str(n): np.zeros(0) for n in range(MOST_TENSORS + 1)}, "more than the 1024"),
        ({"a" * (5 << 20): np.zeros(1)}, "more than the 4194304"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            pack(Header(op="run"), tensors)
