"""Jobs for real swarms whose course a test decides: who drives them, where their tasks run and for how long; what ran where."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from dimnode.client import Client
from dimnode.domain import tensors
from tests.support.models import WEIGHTS, linear_onnx, training_onnx
from tests.support.real_swarm import RealNode, RealSwarm, wait_until

WIDE = 1_000_000
"""Weights of the model "wide": a round's values take a while to gather."""


def add_models(node: RealNode, folder: Path) -> None:
    """one and two (the same linear function), train and wide (weights, and rows to train with)."""
    files = {
        "one": linear_onnx(folder / "one.onnx", batch="N1"),
        "two": linear_onnx(folder / "two.onnx", batch="N2"),
        "train": training_onnx(folder / "train.onnx"),
        "wide": training_onnx(folder / "wide.onnx", WIDE),
    }
    with node.node_client() as client:
        for name, path in files.items():
            client.add_model_file(str(path), id=name)


# --- forms


def pinned(node: str, model: str = "one", **more: Any) -> dict[str, Any]:
    """One task on one node."""
    return {"pattern": "chained", "config": {"pipeline": [{"step": 1, "model_id": model, "node_id": node}]}, **more}


def chain(*nodes: str, **more: Any) -> dict[str, Any]:
    """A step on each node. The steps compute the same; each waits for the one before it."""
    sources = ["client_data", *(["client_data", f"step_{n}_output"] for n in range(1, len(nodes)))]
    steps = [{"step": n, "model_id": "one", "node_id": node, "input_source": sources[n - 1]} for n, node in enumerate(nodes, 1)]
    return {"pattern": "chained", "config": {"pipeline": steps}, **more}


def votes(*nodes: str, **more: Any) -> dict[str, Any]:
    """Models one and two on the same rows."""
    config = {"model_ids": ["one", "two"], "nodes": list(nodes), "consensus": {"method": "mean"}}
    return {"pattern": "comparative", "config": config, **more}


def shards(*nodes: str, **more: Any) -> dict[str, Any]:
    config = {"model_id": "one", "nodes": list(nodes), "aggregation": {"method": "concat"}}
    return {"pattern": "collaborative", "config": config, **more}


def training(rounds: int, *nodes: str, model: str = "train", method: str = "federated_averaging", **more: Any) -> dict[str, Any]:
    config = {"model_id": model, "nodes": list(nodes), "aggregation": {"method": method}, "rounds": rounds, "feedback": {"w2": "w"}}
    return {"pattern": "collaborative", "config": config, **more}


def rows4(count: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


def linear(x: np.ndarray) -> np.ndarray:
    """What models one and two compute."""
    return x @ WEIGHTS


# --- submitting


def submit_to(client: Client, form: Mapping[str, Any], data: Mapping[str, np.ndarray]) -> str:
    """To the very seat that the client speaks to: a job with inputs by CID is not handed to another."""
    stored = {name: client.put_artifact(tensors.to_npy(array))["cid"] for name, array in data.items()}
    inputs = {name: {"dtype": str(a.dtype), "shape": list(a.shape), "cid": stored[name]} for name, a in data.items()}
    return client.submit({**form, "client_data": inputs})["job_id"]


# --- holding tasks


@contextlib.contextmanager
def held(*nodes: RealNode) -> Iterator[None]:
    """The agents of these nodes do not get on with their tasks meanwhile: what runs there goes on running. With one slot a node,
    everything that is ordered later waits there."""
    agents = [a for node in nodes for a in node.agents()]
    assert agents
    for agent in agents:
        agent.suspend()
    try:
        yield
    finally:
        for agent in agents:
            with contextlib.suppress(psutil.NoSuchProcess):
                agent.resume()


# --- what ran


def executions(nodes: Iterable[RealNode]) -> Counter[str]:
    """What their daemons have counted since they started."""
    total: Counter[str] = Counter()
    for node in nodes:
        with node.node_client() as client:
            total.update({k: int(v) for k, v in client.stats(node.name)["counters"].items()})
    return total


def tasks_of(document: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """(task, attempt, status) of a job or a result, in order of the tasks."""
    found = (t["task_id"].rsplit(":", 2) for t in document["tasks"])
    return sorted((key, int(attempt), t["status"]) for (_, key, attempt), t in zip(found, document["tasks"], strict=True))


def recorded(node: RealNode, jobs: Iterable[str]) -> dict[str, bool]:
    """Of these jobs those whose record is on this node's own disk, and whether it says there that the job has ended."""
    with contextlib.closing(sqlite3.connect(f"file:{node.home.path / 'journal.db'}?mode=ro", uri=True, timeout=10)) as journal:
        wanted = list(jobs)
        marks = ",".join("?" * len(wanted))
        return {job: bool(end) for job, end in journal.execute(f"SELECT job, finished FROM jobs WHERE job IN ({marks})", wanted)}


def assert_each_ran_once(document: Mapping[str, Any]) -> None:
    tasks = tasks_of(document)
    assert tasks
    wrong = {t["task_id"]: t.get("error") for t in document["tasks"] if t["status"] != "completed"}
    assert [(attempt, status) for _, attempt, status in tasks] == [(1, "completed")] * len(tasks), (tasks, wrong)
    assert len({key for key, _, _ in tasks}) == len(tasks), tasks


def wait_seats(swarm: RealSwarm, within: float = 20.0) -> None:
    """Every running node sees every other one and holds a seat that all of them know and reach."""
    names = {n.name for n in swarm.nodes.values() if n.running}
    swarm.wait_formed()
    for name in names:
        wait_until(lambda n=name: set(swarm.holders(n)) == names and swarm[n].status()["grpc"], f"{name} sees {names} seated", within)


def all_of(client: Client, jobs: Sequence[str], epoch: int) -> bool:
    return all(client.get(j)["epoch"] >= epoch for j in jobs)
