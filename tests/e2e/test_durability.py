"""A job that was acknowledged is there after kill -9, inputs included, and finishes with the right result."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dimnode.client import Client
from dimnode.errors import DimError
from tests.support.models import UNTRIED, slow_onnx
from tests.support.real_swarm import MODELS, RealNode, RealSwarm, mlp, one_task, rows, wait_until

ROUNDS, JOBS = 10, 20
LARGE_ROWS = 1000
"""120 kB: above the inline limit of 64 KiB, so that the input is stored as a block."""
TURNS = 3_000_000
"""Of the slow model: about two seconds."""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    with RealSwarm(tmp_path_factory.mktemp("s")) as swarm:
        node = swarm.start("anna")["anna"]
        with node.node_client() as client:
            client.add_model_file(str(MODELS / "mlp.onnx"), id="mlp")
            client.add_model_file(str(slow_onnx(tmp_path_factory.mktemp("m") / "slow.onnx", TURNS)), id="slow", form=UNTRIED)
        yield node


def restart(node: RealNode) -> None:
    node.kill()
    node.start()


def check(client: Client, job: str, x: np.ndarray) -> None:
    got = client.wait(job)
    assert got["status"] == "completed"
    np.testing.assert_allclose(got["outputs"]["probabilities"], mlp(x), rtol=1e-6)


def test_nothing_acknowledged_is_lost_over_many_kills(node: RealNode) -> None:
    """Each round: a burst of jobs, small and large inputs mixed, then kill -9 at a moment of its own: right after the
    last acknowledgement, or while they run. All results are looked at after the last restart."""
    moment = random.Random(7)
    accepted: dict[str, np.ndarray] = {}
    for r in range(ROUNDS):
        with node.client() as client:
            for i in range(JOBS):
                x = rows(LARGE_ROWS if i == JOBS - 1 else 2, seed=r * JOBS + i)
                accepted[client.submit(one_task(), {"x": x})["job_id"]] = x
        if r % 2:
            time.sleep(moment.uniform(0, 0.6))  # the moment of the kill, not a wait for anything
        restart(node)
    assert len(accepted) == ROUNDS * JOBS
    with node.client() as client:
        for job, x in accepted.items():
            check(client, job, x)
        assert {j["job_id"] for j in client.list(limit=1000)} >= accepted.keys()
    assert not node.crashed()


def test_a_job_whose_agent_was_running_is_run_again(node: RealNode) -> None:
    x = np.zeros(1, np.float32)
    with node.client() as client:
        job = client.submit(one_task("slow"), {"x": x})["job_id"]
        wait_until(lambda: client.get(job)["status"] == "running", "the agent runs")
    children = node.agents()
    restart(node)
    with node.client() as client:
        seen = client.get(job)
        assert seen["epoch"] == 2
        got = client.wait(job)
    np.testing.assert_array_equal(got["outputs"]["y"], x + TURNS)
    wait_until(lambda: not any(c.is_running() and c.status() != "zombie" for c in children), "agents of the killed node are gone", 10)


def test_a_submission_cut_off_by_the_kill_is_acknowledged_once(node: RealNode) -> None:
    """The client repeats a submission with its key: one job, whether or not the first answer was lost."""
    form = one_task(idempotency_key="again")
    x = rows(4)
    with node.client() as client:
        first = client.submit(form, {"x": x})["job_id"]
    restart(node)
    with node.client() as client:
        assert client.submit(form, {"x": x})["job_id"] == first
        check(client, first, x)


def test_outcomes_survive_too(node: RealNode) -> None:
    with node.client() as client:
        cancelled = client.submit(one_task("slow"), {"x": np.zeros(1, np.float32)})["job_id"]
        assert client.cancel(cancelled)["status"] == "cancelled"
        x = rows(LARGE_ROWS)
        done = client.submit(one_task(), {"x": x})["job_id"]
        check(client, done, x)
        before = client.result(done)
    restart(node)
    with node.client() as client:
        assert client.get(cancelled)["status"] == "cancelled"
        with pytest.raises(DimError):
            client.result(cancelled)
        after = client.result(done)
    assert after["result_cid"] == before["result_cid"]
    np.testing.assert_array_equal(after["outputs"]["probabilities"], before["outputs"]["probabilities"])


def test_an_artifact_is_there_after_a_kill(node: RealNode, tmp_path: Path) -> None:
    data = np.random.default_rng(3).bytes(3_000_000)
    with node.client() as client:
        cid = client.put_artifact(data)["cid"]
    restart(node)
    with node.client() as client:
        assert b"".join(client.get_artifact(cid)) == data
