"""The swarm's state by name on real nodes: resolved where no seat is, and read by a node that is new and by one that lost its disk."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.real_swarm import MODELS, RealNode, RealSwarm, mlp, names, one_task, rows, wait_until

SETTINGS = {"election.orchestrators": "2", "ipfs.snapshot_interval": "1"}
JOBS = 6


def resolved(node: RealNode, path: str) -> dict[str, Any]:
    with node.node_client() as client:
        return client.resolve(path)


def published(node: RealNode, jobs: set[str], status: str = "completed") -> bool:
    found = {j["job_id"]: j["status"] for j in resolved(node, "jobs")["jobs"]}
    return jobs <= found.keys() and {found[j] for j in jobs} == {status}


def caught_up(node: RealNode) -> bool:
    with node.node_client() as client:
        return bool(client.stats()["state"]["caught_up"].get("complete"))


def has_taken(node: RealNode, jobs: int) -> bool:
    """From all seats together: each publishes the records that it has."""
    with node.node_client() as client:
        told = client.stats()["state"]["caught_up"]
    return told.get("urgent", 0) + told.get("later", 0) >= jobs


def test_registry_and_jobs_by_name_and_nodes_that_catch_up(tmp_path: Path) -> None:
    with RealSwarm(tmp_path / "s", SETTINGS) as swarm:
        swarm.start("anna", "ben", "carl")
        wait_until(lambda: len(swarm.holders("anna")) == 2, "two seats are held")
        seats = swarm.holders("anna")
        (plain,) = {"anna", "ben", "carl"} - set(seats)
        with swarm[plain].node_client() as client:
            client.add_model_file(str(MODELS / "mlp.onnx"), id="mlp")
        with swarm[plain].client() as jobs:
            x = [rows(4, seed=n) for n in range(JOBS)]
            made = [jobs.submit(one_task(), {"x": each})["job_id"] for each in x]
            for job, each in zip(made, x, strict=True):
                np.testing.assert_allclose(jobs.wait(job)["outputs"]["probabilities"], mlp(each), rtol=1e-6)
        ids = set(made)

        wait_until(lambda: published(swarm[plain], ids), "the jobs are published")
        found = swarm[plain].cli("ipfs", "resolve", "jobs")
        assert {s["name"] for s in found["seats"]} <= set(seats)
        assert all(s["ipns"].startswith("k51") and s["root"].startswith("bafy") for s in found["seats"])
        one = swarm[plain].cli("ipfs", "resolve", f"jobs/{made[0]}")["job"]
        assert (one["status"], one["verified"]) == ("completed", True)
        assert one["spec_cid"]
        wait_until(lambda: names(resolved(swarm[plain], "registry")["nodes"]) == {"anna", "ben", "carl"}, "all nodes are published")
        assert swarm[plain].cli("ipfs", "resolve", "registry")["path"] == "registry"
        assert swarm[plain].cli("ipfs", "resolve", "jobs/job-none", code=3)["error"]["code"] == "NOT_FOUND"
        assert swarm[plain].cli("ipfs", "resolve", "else", code=1)["error"]["code"] == "INVALID_ARGUMENT"
        state = swarm[seats[0]].status()["state"]
        assert (state["problem"], state["backlog"]) == ("", 0)
        assert state["name"].startswith("k51")

        newcomer = swarm.node("dora").start()
        wait_until(lambda: caught_up(newcomer), "a newcomer has caught up")
        assert published(newcomer, ids)

        lost = swarm[seats[0]]
        lost.stop()
        for path in ("journal.db", "journal.db-wal", "journal.db-shm"):
            (lost.home.path / path).unlink(missing_ok=True)
        shutil.rmtree(lost.home.path / "blocks")
        with swarm[plain].node_client() as client:
            lost.join = (client.invite(),)  # whom it had met was on that disk
        lost.start()
        wait_until(lambda: has_taken(lost, JOBS), "it has what it had")
        assert not any(node.crashed() for node in swarm.nodes.values())
        for node in swarm.nodes.values():
            if node is not lost:
                node.kill()
        wait_until(lambda: swarm.holders(lost.name) == [lost.name], "it is alone and holds a seat")
        with lost.client() as jobs:
            for job, each in zip(made, x, strict=True):
                np.testing.assert_allclose(jobs.wait(job)["outputs"]["probabilities"], mlp(each), rtol=1e-6)
        assert not lost.crashed()
