"""How fast submissions are acknowledged: with their copies on other nodes, one job per call and in batches.

    python -m tools.bench_submissions [--nodes 3] [--jobs 3000] [--clients 32]

Real nodes on this machine, ``jobs.replicas`` = 1: a job is acknowledged once its record is on a second disk. The nodes
also run the jobs meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
from google.protobuf import json_format

from dimnode.demo.local_swarm import LocalSwarm
from dimnode.rpc.v1 import orchestrator_pb2 as pb
from dimnode.rpc.v1.common_pb2 import JobSpec
from dimnode.rpc.v1.orchestrator_pb2_grpc import OrchestratorStub

MODEL = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "models" / "mlp.onnx"
ROWS = np.ones((1, 30), np.float32)


def form() -> dict[str, Any]:
    return {
        "pattern": "chained",
        "config": {"pipeline": [{"step": 1, "model_id": "bench"}]},
        "client_data": {"x": {"dtype": "float32", "shape": list(ROWS.shape), "data": ROWS.ravel().tolist()}},
    }


async def submissions(address: str, clients: int, jobs: int) -> tuple[float, list[int]]:
    """Acknowledged jobs per second, one job per call, ``clients`` calls at once; and each job's copies."""
    request = pb.SubmitJobRequest(spec=json_format.ParseDict(form(), JobSpec()))
    copies: list[int] = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = OrchestratorStub(channel)
        await stub.SubmitJob(request)
        left = iter(range(jobs))

        async def client() -> None:
            for _ in left:
                copies.append((await stub.SubmitJob(request)).copies)  # noqa: PERF401 - one after the other

        started = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return jobs / (time.perf_counter() - started), copies


async def batched(address: str, jobs: int, size: int = 200) -> tuple[float, list[int]]:
    """The same in batches, one after the other."""
    spec = json_format.ParseDict(form(), JobSpec())
    copies: list[int] = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = OrchestratorStub(channel)
        started = time.perf_counter()
        for first in range(0, jobs, size):
            answer = await stub.SubmitJobs(pb.SubmitJobsRequest(specs=[spec] * min(size, jobs - first)))
            copies += [j.copies for j in answer.jobs]
        return jobs / (time.perf_counter() - started), copies


async def drain(address: str) -> float:
    """Seconds until no job is active."""
    started = time.perf_counter()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = OrchestratorStub(channel)
        while (await stub.ListJobs(pb.ListJobsRequest(active=True, limit=1))).jobs:  # noqa: ASYNC110 - the server is another process
            await asyncio.sleep(0.05)
    return time.perf_counter() - started


def measure(nodes: int, jobs: int, clients: int) -> dict[str, Any]:
    """Figures by name; each with how many jobs had how many copies when they were acknowledged."""
    with tempfile.TemporaryDirectory(prefix="dim-bench-") as folder:
        swarm = LocalSwarm(Path(folder))
        try:
            swarm.start(tuple(f"node{n}" for n in range(1, nodes + 1)))
            for node in swarm.nodes:
                with swarm.node_client(node) as client:
                    client.add_model_file(str(MODEL), id="bench")
            with swarm.node_client(swarm.nodes[0]) as client:
                address = client.status()["grpc"]
            found: dict[str, Any] = {}
            for name, work in (("single", submissions(address, clients, jobs)), ("batched", batched(address, jobs))):
                rate, copies = asyncio.run(work)
                found[name] = {
                    "per_s": round(rate, 1),
                    "copied_per_s": round(rate * sum(c > 1 for c in copies) / len(copies), 1),
                    "copies": _counted(copies),
                    "completed_after_s": round(asyncio.run(drain(address)), 1),
                }
            return found
        finally:
            swarm.stop()


def _counted(copies: Sequence[int]) -> dict[str, int]:
    return {str(n): times for n, times in sorted(Counter(copies).items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=3, help="as many as there are seats, so that each holds one")
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("--clients", type=int, default=32)
    options = parser.parse_args()
    print(json.dumps(measure(options.nodes, options.jobs, options.clients), indent=1))


if __name__ == "__main__":
    main()
