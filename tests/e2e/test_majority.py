"""Three real node processes that elect by majority: one is killed and replaced, two are killed and the last one gives up."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.real_swarm import MODELS, RealNode, RealSwarm, mlp, one_task, rows, wait_until

REPLACED_WITHIN = 10.0
LEASE = 3.0
NAMES = ("anna", "bert", "cora")
MAJORITY = {"election.mode": "majority", "election.orchestrators": "1", "p2p.redial_max": "2"}


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[RealSwarm]:
    with RealSwarm(tmp_path, MAJORITY) as swarm:
        swarm.start(*NAMES)
        yield swarm


def holders_agreed(swarm: RealSwarm) -> str | None:
    """The one holder, if all running nodes name the same."""
    named = {tuple(swarm.holders(n.name)) for n in swarm.nodes.values() if n.running}
    return next(iter(named))[0] if len(named) == 1 and len(next(iter(named))) == 1 else None


@pytest.mark.timeout(300)
def test_one_is_replaced_and_without_a_majority_nobody_orchestrates(swarm: RealSwarm) -> None:
    first = swarm["anna"]
    assert swarm["bert"].cli("electorate", "add", "cora", code=1)["error"]["code"] == "FAILED_PRECONDITION", "no operator's key there"
    with first.node_client() as operator:
        assert operator.electorate()["majority"] == 1
        operator.change_electorate("bert", "add")
    listed = first.cli("electorate", "add", "cora")
    assert (listed["version"], listed["acts"], listed["majority"], len(listed["voters"])) == (3, True, 2, 3)
    wait_until(lambda: all(version(n) == 3 for n in swarm.nodes.values()), "the list is everywhere")
    for node in swarm.nodes.values():
        with node.node_client() as client:
            client.add_model_file(str(MODELS / "mlp.onnx"), id="mlp")

    holder = wait_until(lambda: holders_agreed(swarm), "all see one holder")
    x = rows(4)
    others = [n for n in swarm.nodes.values() if n.name != holder]
    with others[0].client() as client:
        accepted = client.submit(one_task(), {"x": x})
        assert accepted["copies"] >= 2
        np.testing.assert_allclose(client.wait(accepted["job_id"])["outputs"]["probabilities"], mlp(x), rtol=1e-6)

    swarm[holder].kill()
    began = time.monotonic()
    successor = wait_until(lambda: found if (found := holders_agreed(swarm)) != holder else None, "another holder", REPLACED_WITHIN)
    wait_until(lambda: swarm[successor].status()["grpc"], "it serves", REPLACED_WITHIN)
    took = time.monotonic() - began
    print(f"another orchestrator after {took:.2f} s")
    assert took < REPLACED_WITHIN
    with swarm[successor].client() as client:
        assert client.result(accepted["job_id"])["status"] == "completed", "what the first one acknowledged is known"
        again = client.submit(one_task(), {"x": x})
        np.testing.assert_allclose(client.wait(again["job_id"])["outputs"]["probabilities"], mlp(x), rtol=1e-6)

    next(n for n in others if n.name != successor).kill()
    last = swarm[successor]
    wait_until(lambda: last.status()["grpc"] is None and last.status()["role"] == "node", "the last one gives its seat up", 2 * LEASE + 4)
    assert swarm.holders(successor) == []
    refused = last.cli("submit", str(_form(swarm.folder)), "--data", str(_data(swarm.folder, x)), code=3)
    assert refused["error"]["code"] == "UNAVAILABLE"
    with last.node_client() as client:
        assert client.electorate()["quorum"] is False

    swarm[holder].start(ready=False)
    wait_until(lambda: holders_agreed(swarm), "two of three elect again", 30)
    with last.client(retry_for=30.0) as client:
        assert client.result(again["job_id"])["status"] == "completed"
    assert not any(n.crashed() for n in swarm.nodes.values())


def version(node: RealNode) -> float:
    with node.node_client() as client:
        return client.electorate()["version"]


def _form(folder: Path) -> Path:
    path = folder / "form.json"
    path.write_text(json.dumps(one_task()))
    return path


def _data(folder: Path, x: np.ndarray) -> Path:
    path = folder / "data.npz"
    np.savez(path, x=x)
    return path


def test_a_home_that_knows_no_operator_is_told_what_to_do(tmp_path: Path) -> None:
    with RealSwarm(tmp_path, MAJORITY) as swarm:
        node = swarm.node("dora")
        node.cli("init")
        (node.home.operator_path).unlink()
        node.start(ready=False)
        assert node.process is not None
        assert node.process.wait(30) == 1
        assert "operator" in node.log()
