"""The agent's loop in a thread of this process, over a real socket."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dimnode.daemon import model_about
from dimnode.daemon.agent_main import Agent, warm_up
from dimnode.daemon.agent_protocol import PREFIX, Header, pack, unpack_header, unpack_prefix, unpack_tensors
from dimnode.daemon.grant import Grant
from dimnode.daemon.rows import independent
from dimnode.domain.model import GoldenPair, TensorSpec
from dimnode.domain.tensors import TensorValue
from loaders.api import InferenceFailed, ModelSchema, TensorSchema
from loaders.trial import made_up
from tests.support.models import WEIGHTS, linear_onnx


class Peer:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def call(self, header: Header, tensors: Mapping[str, Any] | None = None) -> tuple[Header, dict[str, Any]]:
        for piece in pack(header, tensors or {}):
            self.connection.sendall(piece)
        header_size, payload_size = unpack_prefix(self._exactly(PREFIX.size), 1 << 30)
        reply = unpack_header(self._exactly(header_size))
        return reply, unpack_tensors(reply.tensors, bytearray(self._exactly(payload_size)))

    def _exactly(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            data += self.connection.recv(n - len(data))
        return data


@pytest.fixture
def peer() -> Iterator[Peer]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        thread = threading.Thread(target=Agent(theirs, Grant(threads=1, memory=1 << 30)).serve)
        thread.start()
        yield Peer(ours)
        ours.close()
        thread.join(10)
        assert not thread.is_alive()


def test_loads_runs_and_answers_errors_without_ending(peer: Peer, tmp_path: Path) -> None:
    assert peer.call(Header(op="run"))[0].kind == "failed"
    assert peer.call(Header(op="load", format="paper", path="x"))[0].kind == "rejected"
    path = linear_onnx(tmp_path / "m.onnx")
    loaded, _ = peer.call(Header(op="load", format="onnx", path=str(path), warm=True))
    assert [t.name for t in loaded.outputs] == ["y", "class"]
    x = np.ones((3, 4), np.float32)
    reply, out = peer.call(Header(op="run"), {"x": x})
    assert reply.op == "result"
    np.testing.assert_allclose(out["y"], x @ WEIGHTS)
    assert peer.call(Header(op="run"), {"z": x})[0].kind == "input"
    big = np.ones((100_000, 4), np.float32)
    assert peer.call(Header(op="run"), {"x": big})[1]["y"].shape == (100_000, 2)


class Giving:
    schema = ModelSchema((), ())

    def __init__(self, output: Any) -> None:
        self.output = output

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"y": self.output}


class Unwritable:
    def __str__(self) -> str:
        raise KeyError("/secret/path")


@pytest.mark.parametrize(
    ("output", "kind", "words"),
    [
        (np.broadcast_to(np.float32(1), (1 << 22, 1 << 23)), "memory", "memory limit"),  # one number that poses as many
        (np.zeros(2, "datetime64[s]"), "failed", "datetime64.*not supported"),
        (np.array([Unwritable()], object), "failed", "KeyError"),
        (None, "failed", "cannot be sent"),
    ],
)
def test_an_answer_that_cannot_be_sent_is_an_error_that_says_so(output: Any, kind: str, words: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        agent = Agent(theirs, Grant(threads=1, memory=1 << 30))
        agent._model = Giving(output)
        thread = threading.Thread(target=agent.serve)
        thread.start()
        peer = Peer(ours)
        for _ in range(2):  # it goes on
            reply, _ = peer.call(Header(op="run"))
            assert (reply.op, reply.kind) == ("error", kind)
            assert re.search(words, reply.message)
            assert "secret" not in reply.message
        ours.close()
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    "about",
    [
        model_about.encode(golden=GoldenPair(inputs={"x": TensorValue(dtype="float32", shape=(7,), raw=b"xx")})),
        model_about.encode(golden=GoldenPair(inputs={"x": TensorValue(cid="bafy")})),
        model_about.encode(golden=GoldenPair(inputs={"x": TensorValue(dtype="(1,f4", shape=(1,), raw=b"1234")})),
        model_about.encode(golden=GoldenPair(inputs={"x": TensorValue(dtype="uint8", shape=(0, 1 << 70), raw=b"")})),
        '{"architecture": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}",
        "{",
        model_about.encode((TensorSpec(name="x", dtype="(1,f4", shape=(1,)),)),
        model_about.encode((TensorSpec(name="x", dtype="float32", shape=(-1,)),)),
        model_about.encode((TensorSpec(name="x", dtype="float32", shape=(1 << 70,)),)),
    ],
)
def test_a_malformed_manifest_is_rejected_and_its_file_is_not_to_blame(peer: Peer, tmp_path: Path, about: str) -> None:
    path = str(linear_onnx(tmp_path / "m.onnx"))
    reply, _ = peer.call(Header(op="load", format="onnx", path=path, about=about))
    assert (reply.op, reply.kind) == ("error", "rejected")
    assert "manifest is malformed" in reply.message
    assert peer.call(Header(op="load", format="onnx", path=path))[0].op == "loaded"


class Failing:
    schema = ModelSchema((TensorSchema("a", "str", (None,)), TensorSchema("b", "int32", ("N", 2))), ())

    def __init__(self, error: Exception) -> None:
        self.error = error

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        raise self.error


@pytest.mark.parametrize("shape", [(1 << 31, 1 << 31), (2, 1 << 40)])
def test_sizes_that_only_a_manifest_claims_are_not_tried(shape: tuple[int, ...]) -> None:
    model = Failing(AssertionError("it was run"))
    model.schema = ModelSchema((TensorSchema("x", "float32", shape),), ())
    warm_up(model)
    assert not independent(model)


def test_warm_up_minds_no_failure_and_memory_is_told() -> None:
    made = made_up(Failing.schema, 1)
    assert made is not None
    assert made["a"].tolist() == [""]
    assert made["b"].shape == (1, 2)
    warm_up(Failing(InferenceFailed("no zeros")))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        agent = Agent(theirs, Grant(threads=1, memory=1 << 30))
        for error, kind in ((MemoryError(), "memory"), (InferenceFailed("x"), "failed"), (OSError("/secret/path"), "failed")):
            agent._model = Failing(error)
            reply, _ = agent._answer(Header(op="run"), {})
            assert reply.kind == kind
            assert "secret" not in reply.message
