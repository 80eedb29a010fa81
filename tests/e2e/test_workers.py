"""Nodes that die, freeze or stop while they work: what they did not finish is done elsewhere."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from dimnode.client import TERMINAL, Client
from tests.support.models import UNTRIED, slow_onnx
from tests.support.real_swarm import MODELS, RealNode, RealSwarm, mlp, rows, wait_until

TURNS = 4_000_000
"""Of the slow model: longer than the drain on any machine, or the task ends where it is."""
DRAIN = 2.5
MARGIN = 2.0
"""For the interpreter to end, on a machine with other things to do."""
X = np.arange(4, dtype=np.float32)
WORKERS = ("bert", "cora")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealSwarm]:
    """Anna holds the only seat; bert and cora work."""
    settings = {"election.orchestrators": "1", "swarm.suspect": "2", "swarm.dead": "3", "node.drain": str(DRAIN)}
    with RealSwarm(tmp_path_factory.mktemp("s"), settings) as swarm:
        for name in WORKERS:
            swarm.node(name, election__eligible="false")
        swarm.start("anna", *WORKERS)
        with swarm["anna"].node_client() as node:
            node.add_model_file(str(slow_onnx(tmp_path_factory.mktemp("m") / "slow.onnx", TURNS, batch="N")), id="slow", form=UNTRIED)
        for name in swarm.nodes:
            swarm[name].keep_ports()
        yield swarm


@pytest.fixture
def swarm(running: RealSwarm) -> Iterator[RealSwarm]:
    """All of it up; whoever a test took away is brought back after it."""
    yield running
    for node in running.nodes.values():
        if not node.running:
            node.start()
    running.wait_formed()


def children_of(node: RealNode) -> list[psutil.Process]:
    """Its agents, once there is one: a task is running when its agent is started."""
    return wait_until(node.agents, f"{node.name} has an agent")


def assert_gone(processes: list[psutil.Process]) -> None:
    def left() -> list[psutil.Process]:
        return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    wait_until(lambda: not left(), f"no process is left of {processes}", 5)


def running_on(client: Client, job: str, count: int = 1) -> list[str]:
    """The nodes that run its tasks, once there are so many."""

    def look() -> list[str]:
        document = client.get(job)
        assert document["status"] not in TERMINAL, document
        nodes = [t["node"] for t in document["tasks"] if t["status"] == "running"]
        return nodes if document["status"] == "running" and len(nodes) == count else []

    return wait_until(look, f"{job} runs on {count} nodes")


def begin(swarm: RealSwarm, **more: object) -> tuple[str, RealNode, RealNode]:
    """A slow job on one of the two workers: the job, the worker, the other one."""
    form = {
        "pattern": "chained",
        "config": {"pipeline": [{"step": 1, "model_id": "slow", "input_source": "client_data", "nodes": list(WORKERS)}]},
        **more,
    }
    with swarm["anna"].client() as client:
        job = client.submit(form, {"x": X})["job_id"]
        worker = running_on(client, job)[0]
    other = next(n for n in WORKERS if n != worker)
    return job, swarm[worker], swarm[other]


def finish_elsewhere(swarm: RealSwarm, job: str, other: RealNode) -> None:
    with swarm["anna"].client() as client:
        got = client.wait(job)
    np.testing.assert_array_equal(got["outputs"]["y"], X + TURNS)
    print([(t["node"], t["status"], t.get("error")) for t in got["tasks"]])
    # The other one's may come first: an order that did not get there is given again under its number.
    assert [t["node"] for t in got["tasks"] if t["status"] == "completed"] == [other.name]
    assert any(t["node"] != other.name for t in got["tasks"])  # the worker, by its peer id if it has left the swarm
    assert got["cost"] == 1.0


def test_the_task_of_a_killed_node_is_retried_elsewhere_and_its_agents_are_gone(swarm: RealSwarm) -> None:
    job, worker, other = begin(swarm)
    agents = children_of(worker)
    worker.kill()
    assert_gone(agents)
    finish_elsewhere(swarm, job, other)


def test_the_task_of_a_frozen_node_goes_elsewhere(swarm: RealSwarm) -> None:
    job, worker, other = begin(swarm)
    worker.pause()
    try:
        for agent in children_of(worker):
            agent.suspend()  # the machine freezes, not the node's process alone
        finish_elsewhere(swarm, job, other)
    finally:
        for agent in worker.agents():
            agent.resume()
        worker.resume()
    wait_until(lambda: swarm["anna"].sees(worker.name), "the thawed node is alive again", 15)


def test_sigterm_hands_the_task_back_and_ends_within_drain(swarm: RealSwarm) -> None:
    job, worker, other = begin(swarm)
    agents = children_of(worker)
    code, took = worker.stop(signal.SIGTERM)
    print(f"stopped with a running task in {took:.2f} s")
    assert (code, worker.crashed()) == (0, False), worker.log()
    assert took < DRAIN + MARGIN
    assert_gone(agents)
    finish_elsewhere(swarm, job, other)


def test_a_job_completes_with_the_rest_if_min_nodes_allows(swarm: RealSwarm) -> None:
    form = {
        "pattern": "collaborative",
        "config": {"model_id": "slow", "nodes": list(WORKERS), "min_nodes": 1, "aggregation": {"method": "mean"}},
        "retries": 0,
    }
    with swarm["anna"].client() as client:
        job = client.submit(form, {"x": X})["job_id"]
        assert set(running_on(client, job, 2)) == set(WORKERS)
        swarm["bert"].kill()
        got = client.wait(job)
    statuses = {t["node"]: t["status"] for t in got["tasks"]}
    assert statuses["cora"] == "completed"
    assert statuses["bert"] != "completed"
    assert set(got["outputs"]) == {"y"}


def test_an_orchestrator_stops_within_drain_and_goes_on_with_its_job_when_it_is_back(swarm: RealSwarm) -> None:
    anna = swarm["anna"]
    job, _, _ = begin(swarm)
    with anna.client() as client:
        own = client.submit(
            {"pattern": "collaborative", "config": {"model_id": "slow", "nodes": ["anna"], "aggregation": {"method": "concat"}}}, {"x": X}
        )["job_id"]
        assert running_on(client, own) == ["anna"]
    agents = children_of(anna)
    code, took = anna.stop(signal.SIGINT)
    print(f"orchestrator stopped with jobs in {took:.2f} s")
    assert (code, anna.crashed()) == (0, False), anna.log()
    assert took < DRAIN + MARGIN
    assert_gone(agents)
    anna.start()
    with anna.client() as client:
        for one in (job, own):
            np.testing.assert_array_equal(client.wait(one)["outputs"]["y"], X + TURNS)


def test_a_restarted_worker_takes_tasks_at_once(swarm: RealSwarm) -> None:
    """It has a new certificate, and anna's connection to it is broken: neither may cost an attempt."""
    form = {
        "pattern": "chained",
        "config": {"pipeline": [{"step": 1, "model_id": "dim-test-fast", "input_source": "client_data", "node_id": "bert"}]},
        "retries": 0,
    }
    with swarm["anna"].node_client() as node:
        node.add_model_file(str(MODELS / "mlp.onnx"), id="dim-test-fast")
    x = rows(2)
    for restart in (swarm["bert"].kill, swarm["bert"].stop, swarm["bert"].kill):
        restart()
        swarm["bert"].start()
        wait_until(lambda: swarm["anna"].sees("bert"), "anna sees bert")
        with swarm["anna"].client() as client:
            got = client.wait(client.submit(form, {"x": x})["job_id"])
        np.testing.assert_allclose(got["outputs"]["probabilities"], mlp(x), rtol=1e-6)
