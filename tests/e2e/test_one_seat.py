"""Three nodes and one seat: one node serves the client API, and every node reaches it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from dimnode.rpc.v1 import daemon_pb2
from dimnode.rpc.v1.daemon_pb2_grpc import DaemonStub
from tests.support.real_swarm import MODELS, RealNode, RealSwarm, free_port, mlp, one_task, refuses, rows, wait_until, write_json

NAMES = ("anna", "bert", "cora")
LARGE = 2000
"""Rows: 240 kB in, above the inline limit of 64 KiB."""


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealSwarm]:
    with RealSwarm(tmp_path_factory.mktemp("s"), {"election.orchestrators": "1"}) as swarm:
        for name in NAMES:
            swarm.node(name, orchestrator__listen=f"127.0.0.1:{free_port()}")
        swarm.start(*NAMES)
        with swarm["cora"].node_client() as node:
            node.add_model_file(str(MODELS / "mlp.onnx"), id="mlp")
        for node in swarm.nodes.values():
            wait_until(lambda n=node: "mlp" in {m["id"] for m in n.node_client().models()}, f"{node.name} knows the model")
        yield swarm


@pytest.fixture
def seatless(swarm: RealSwarm) -> RealNode:
    return next(n for n in swarm.nodes.values() if n.status()["role"] == "node")


def outputs(document: dict[str, Any]) -> np.ndarray:
    found = document["outputs"]["probabilities"]
    return np.array(found["data"], found["dtype"]).reshape(found["shape"])


def test_only_the_holder_serves_and_the_others_ports_refuse(swarm: RealSwarm) -> None:
    status = {n: swarm[n].status() for n in NAMES}
    holders = [n for n in NAMES if status[n]["grpc"]]
    assert len(holders) == 1
    assert [n for n in NAMES if status[n]["role"] == "orchestrator"] == holders
    assert all(s["orchestrators"] == status[holders[0]]["orchestrators"] for s in status.values())
    assert status[holders[0]]["orchestrators"][0]["local_only"] is True
    for name in NAMES:
        port = int(swarm[name].settings["orchestrator.listen"].rpartition(":")[2])
        assert refuses(port) == (name not in holders)


def test_a_client_on_a_seatless_node_goes_through_the_network(seatless: RealNode) -> None:
    x = rows(LARGE)
    data = np.random.default_rng(1).bytes(4_000_000)
    with seatless.client() as client:
        got = client.wait(client.submit(one_task(), {"x": x})["job_id"])
        stored = client.put_artifact(data)
        assert stored["size"] == len(data)
        assert b"".join(client.get_artifact(stored["cid"])) == data
    np.testing.assert_allclose(got["outputs"]["probabilities"], mlp(x), rtol=1e-6)


def test_the_command_line_on_a_seatless_node(seatless: RealNode, tmp_path: Path) -> None:
    x = rows(LARGE, seed=5)
    np.savez(tmp_path / "x.npz", x=x)
    form = write_json(tmp_path / "job.json", one_task())
    result = seatless.cli("submit", str(form), "--data", str(tmp_path / "x.npz"), "--wait")
    assert result["status"] == "completed"
    out = tmp_path / "out.npz"
    seatless.cli("result", result["job_id"], "--out", str(out))
    np.testing.assert_allclose(np.load(out)["probabilities"], mlp(x), rtol=1e-6)
    assert seatless.cli("verify", result["job_id"])["ok"]


def test_a_hundred_jobs_at_once_equal_direct_computation(swarm: RealSwarm) -> None:
    inputs = [rows(3, seed=i) for i in range(100)]
    encoded = [{"x": {"dtype": "float32", "shape": list(x.shape), "data": x.ravel().tolist()}} for x in inputs]
    with swarm["bert"].client() as client:
        accepted = client.submit_many([one_task(client_data=data) for data in encoded])
        results = [client.wait(a["job_id"]) for a in accepted]
    for x, got in zip(inputs, results, strict=True):
        np.testing.assert_allclose(got["outputs"]["probabilities"], mlp(x), rtol=1e-6)
    spread = Counter(t["node"] for got in results for t in got["tasks"] if t["status"] == "completed")
    print(f"tasks by node: {dict(spread)}")
    assert sum(spread.values()) == 100
    assert len(spread) == 3


def test_the_daemons_port_wants_a_certificate_that_was_exchanged(swarm: RealSwarm) -> None:
    """Without one, and with one of a stranger's own making: no connection, and no task."""
    for node in swarm.nodes.values():
        address = node.status()["daemon_grpc"]
        for credentials in (grpc.ssl_channel_credentials(), None):
            channel = grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address)
            with channel, pytest.raises(grpc.RpcError) as caught:
                DaemonStub(channel).Health(daemon_pb2.HealthRequest(), timeout=5)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]


def test_no_node_has_met_an_error_of_its_own(swarm: RealSwarm) -> None:
    for node in swarm.nodes.values():
        assert not node.crashed(), node.log()
        assert json.dumps(node.status())
