"""Blocks that rot on a disk are never used: other providers are asked, else the task says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dimnode.client import TERMINAL
from dimnode.errors import DimError
from tests.support.real_swarm import MODELS, RealNode, RealSwarm, mlp, one_task, rows, wait_until


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealSwarm]:
    """Anna holds the seat; the others have what they are given."""
    settings = {"election.orchestrators": "1", "ipfs.fetch_timeout": "3"}
    with RealSwarm(tmp_path_factory.mktemp("s"), settings) as swarm:
        for name in ("bert", "cora"):
            swarm.node(name, election__eligible="false")
        swarm.start("anna", "bert", "cora")
        yield swarm


def block_files(node: RealNode) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in (node.home.path / "blocks").rglob("*") if p.is_file()}


def rot(node: RealNode, content: bytes) -> int:
    """Flips one byte in every stored file that holds this content; how many."""
    found = 0
    for path, data in block_files(node).items():
        at = data.find(content[:64])
        if at >= 0:
            found += 1
            broken = bytearray(data)
            broken[at + 40] ^= 0xFF
            path.chmod(0o600)
            path.write_bytes(bytes(broken))
    return found


def add(node: RealNode, model: str) -> bytes:
    file = MODELS / "mlp.onnx"
    with node.node_client() as client:
        client.add_model_file(str(file), id=model)
    return file.read_bytes()


def run_on(swarm: RealSwarm, name: str, model: str) -> dict[str, Any]:
    form = one_task(model, retries=0)
    form["config"]["pipeline"][0]["node_id"] = name
    x = rows(4)
    with swarm["anna"].client() as client:
        wait_until(lambda: model in {m["id"] for m in client.models()}, "anna knows the model")
        job = client.submit(form, {"x": x})["job_id"]
        try:
            got = client.wait(job)
        except DimError:
            got = client.get(job)
        else:
            np.testing.assert_allclose(got["outputs"]["probabilities"], mlp(x), rtol=1e-6)
    assert got["status"] in TERMINAL
    return got


def test_a_model_whose_only_copy_has_rotted_is_a_clear_error_and_is_fetched_once_another_has_it(swarm: RealSwarm) -> None:
    content = add(swarm["bert"], "m")
    assert rot(swarm["bert"], content) >= 1
    failed = run_on(swarm, "cora", "m")
    assert failed["status"] == "failed"
    said = failed["error"]["message"] + failed["error"]["hint"]
    print(said)
    assert said
    assert "Traceback" not in said
    assert "/" not in failed["error"]["message"].replace("r0/", "")
    add(swarm["anna"], "m")
    assert run_on(swarm, "cora", "m")["status"] == "completed"


def test_an_artifact_that_has_rotted_is_refused_and_not_served(swarm: RealSwarm) -> None:
    data = np.random.default_rng(9).bytes(500_000)
    with swarm["anna"].client() as client:
        cid = client.put_artifact(data)["cid"]
        assert b"".join(client.get_artifact(cid)) == data
        assert rot(swarm["anna"], data) >= 1
        with pytest.raises(DimError) as caught:
            b"".join(client.get_artifact(cid))
        print(caught.value.code, caught.value.message)
        assert client.put_artifact(data)["cid"] == cid
        assert b"".join(client.get_artifact(cid)) == data


def test_nobody_crashed(swarm: RealSwarm) -> None:
    for node in swarm.nodes.values():
        assert not node.crashed(), node.log()
