"""A worker that loses its orchestrator, or its own process, in the middle of a task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dimnode.client import TERMINAL
from tests.support.models import UNTRIED, slow_onnx
from tests.support.real_swarm import RealNode, RealSwarm, wait_until

TURNS = 4_000_000
"""Of the slow model: some seconds."""
X = np.arange(4, dtype=np.float32)
FORM: dict[str, Any] = {
    "pattern": "chained",
    "config": {"pipeline": [{"step": 1, "model_id": "slow", "input_source": "client_data", "nodes": ["bert"]}]},
    "retries": 100,
}
"""Each try at a node that is not there counts."""


@pytest.fixture
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealSwarm]:
    """Anna holds the only seat that there can be; bert works."""
    settings = {"election.orchestrators": "1", "swarm.suspect": "2", "swarm.dead": "3"}
    with RealSwarm(tmp_path_factory.mktemp("s"), settings) as swarm:
        swarm.node("bert", election__eligible="false")
        swarm.start("anna", "bert")
        with swarm["anna"].node_client() as node:
            node.add_model_file(str(slow_onnx(tmp_path_factory.mktemp("m") / "slow.onnx", TURNS, batch="N")), id="slow", form=UNTRIED)
        for name in swarm.nodes:
            swarm[name].keep_ports()
        yield swarm


def daemon_of(node: RealNode) -> dict[str, Any]:
    """Its daemon's statistics, from itself."""
    with node.node_client() as client:
        return client.stats(node.name)


def begin(swarm: RealSwarm) -> str:
    """A job whose task runs on bert."""
    with swarm["anna"].client() as client:
        job = client.submit(FORM, {"x": X})["job_id"]

        def runs() -> bool:
            document = client.get(job)
            assert document["status"] not in TERMINAL, document
            return document["status"] == "running" and any(t["status"] == "running" for t in document["tasks"])

        wait_until(runs, f"{job} runs")
        return job


def assert_completes(swarm: RealSwarm, job: str) -> None:
    with swarm["anna"].client(retry_for=30.0) as client:
        np.testing.assert_array_equal(client.wait(job)["outputs"]["y"], X + TURNS)


def test_a_killed_worker_says_after_its_restart_that_the_task_was_interrupted(swarm: RealSwarm) -> None:
    job = begin(swarm)
    bert = swarm["bert"]
    bert.kill()
    bert.start()
    stats = daemon_of(bert)
    assert stats["counters"]["interrupted"] == 1
    assert_completes(swarm, job)
    assert not bert.crashed(), bert.log()


def test_a_task_whose_orchestrator_was_killed_ends_with_a_result_that_survives_the_workers_death_too(swarm: RealSwarm) -> None:
    job = begin(swarm)
    anna, bert = swarm["anna"], swarm["bert"]
    anna.kill()
    wait_until(lambda: daemon_of(bert)["kept"] == 1, "bert keeps the result", 60)
    assert daemon_of(bert)["counters"]["completed"] == 1
    bert.kill()
    bert.start(ready=False)  # no orchestrator serves: it will not call itself ready soon
    wait_until(lambda: daemon_of(bert)["kept"] == 1, "bert still keeps it", 60)
    assert daemon_of(bert)["counters"]["interrupted"] == 0
    anna.start()
    assert_completes(swarm, job)
    assert not bert.crashed(), bert.log()
