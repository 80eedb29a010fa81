"""How fast submissions are acknowledged: with their copies on other nodes, one job per call and in batches.

    python -m tools.bench_submissions [--nodes 3] [--jobs 3000] [--clients 32] [--batch-clients 4] [--batches 200,500] [--rounds 2]

Real nodes on this machine, ``jobs.replicas`` = 1: a job is acknowledged once its record is on a second disk. The nodes
also run the jobs meanwhile. Each way is measured in a swarm of its own that has just begun and run two hundred jobs, and again in the same swarm
when that has run those jobs, too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
from google.protobuf import json_format

from dimnode.client import TransferSettings
from dimnode.demo.local_swarm import LocalSwarm
from dimnode.rpc.v1 import orchestrator_pb2 as pb
from dimnode.rpc.v1.common_pb2 import JobSpec
from dimnode.rpc.v1.orchestrator_pb2_grpc import OrchestratorStub

MODEL = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "models" / "mlp.onnx"
WARM_UP = 200
"""Jobs before anything is measured: connections, caches."""
SETTLE = 1.0
"""Seconds of rest after those."""
CLIENT_BATCH = TransferSettings().batch_jobs
"""Jobs per call when `dimnode.client` has many to submit."""
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


async def batched(address: str, clients: int, jobs: int, size: int) -> tuple[float, list[int]]:
    """The same in batches."""
    spec = json_format.ParseDict(form(), JobSpec())
    copies: list[int] = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = OrchestratorStub(channel)
        left = iter(range(0, jobs, size))

        async def client() -> None:
            for first in left:
                answer = await stub.SubmitJobs(pb.SubmitJobsRequest(specs=[spec] * min(size, jobs - first)))
                copies.extend(j.copies for j in answer.jobs)

        started = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return jobs / (time.perf_counter() - started), copies


async def drain(address: str) -> float:
    """Seconds until no job is active."""
    started = time.perf_counter()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = OrchestratorStub(channel)
        while (await stub.ListJobs(pb.ListJobsRequest(active=True, limit=1))).jobs:  # noqa: ASYNC110 - the server is another process
            await asyncio.sleep(0.05)
    return time.perf_counter() - started


Work = Callable[[str, int], Coroutine[Any, Any, tuple[float, list[int]]]]
"""(address, jobs) -> acknowledged jobs per second, and each one's copies."""


def measure(nodes: int, jobs: int, rounds: int, work: Work) -> list[dict[str, Any]]:
    """Figures, in a swarm that has just begun and in the same one after that; each with how many jobs had how many copies when they
    were acknowledged."""
    with tempfile.TemporaryDirectory(prefix="dim-bench-") as folder:
        swarm = LocalSwarm(Path(folder))
        try:
            swarm.start(tuple(f"node{n}" for n in range(1, nodes + 1)))
            for node in swarm.nodes:
                with swarm.node_client(node) as client:
                    client.add_model_file(str(MODEL), id="bench")
            with swarm.node_client(swarm.nodes[0]) as client:
                address = client.status()["grpc"]
            asyncio.run(batched(address, 1, WARM_UP, WARM_UP))
            asyncio.run(drain(address))
            time.sleep(SETTLE)
            found: list[dict[str, Any]] = []
            for _ in range(rounds):
                rate, copies = asyncio.run(work(address, jobs))
                found.append(
                    {
                        "per_s": round(rate, 1),
                        "copied_per_s": round(rate * sum(c > 1 for c in copies) / len(copies), 1),
                        "copies": _counted(copies),
                        "completed_after_s": round(asyncio.run(drain(address)), 1),
                    }
                )
            return found
        finally:
            swarm.stop()


def all_ways(nodes: int, jobs: int, rounds: int, clients: int, batch_clients: int, sizes: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """``single`` and ``batches of N``: as `measure`."""
    ways: dict[str, Work] = {"single": lambda address, count: submissions(address, clients, count)}
    for size in sizes:
        ways[f"batches of {size}"] = partial(_in_batches, batch_clients, size)
    return {name: measure(nodes, jobs, rounds, work) for name, work in ways.items()}


async def _in_batches(clients: int, size: int, address: str, jobs: int) -> tuple[float, list[int]]:
    return await batched(address, clients, jobs, size)


def _counted(copies: Sequence[int]) -> dict[str, int]:
    return {str(n): times for n, times in sorted(Counter(copies).items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=3, help="as many as there are seats, so that each holds one")
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("--clients", type=int, default=32, help="at once, one job per call")
    parser.add_argument("--batch-clients", type=int, default=4, help="at once, many jobs per call")
    parser.add_argument("--batches", default=f"200,{CLIENT_BATCH}", help="jobs per call")
    parser.add_argument("--rounds", type=int, default=2, help="in one swarm")
    options = parser.parse_args()
    sizes = [int(size) for size in options.batches.split(",") if size]
    print(json.dumps(all_ways(options.nodes, options.jobs, options.rounds, options.clients, options.batch_clients, sizes), indent=1))


if __name__ == "__main__":
    main()
