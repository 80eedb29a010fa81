"""The benchmark: what the system does as a whole, on one real node and with real clients.

    python -m tools.bench [--jobs 1000] [--json-only]

Prints a table beside the targets and writes ``bench-results.json``. Absolute figures depend on the
machine; where a peer or a baseline matters it is measured in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import trio
from google.protobuf import json_format
from rich.console import Console
from rich.table import Table

from dimnode.demo.local_swarm import LocalNode, LocalSwarm
from dimnode.rpc.v1 import orchestrator_pb2 as pb
from dimnode.rpc.v1.common_pb2 import JobSpec
from dimnode.rpc.v1.orchestrator_pb2_grpc import OrchestratorStub
from tools import bench_agents, bench_placement, bench_rpc, bench_submissions
from tools.bench_submissions import CLIENT_BATCH, MODEL, batched, drain, form, submissions

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Row:
    what: str
    value: float
    unit: str
    must: str = ""
    aim: str = ""


@contextmanager
def one_node() -> Generator[tuple[LocalSwarm, LocalNode]]:
    """A swarm of one with the benchmark's model."""
    with tempfile.TemporaryDirectory(prefix="dim-bench-") as folder:
        swarm = LocalSwarm(Path(folder))
        try:
            swarm.start(("bench",))
            node = swarm.nodes[0]
            with swarm.node_client(node) as client:
                client.add_model_file(str(MODEL), id="bench")
            yield swarm, node
        finally:
            swarm.stop()


async def latencies(address: str, count: int) -> list[float]:
    """Milliseconds from submitting one job to having its result, one after the other, model warm."""
    request = pb.SubmitJobRequest(spec=json_format.ParseDict(form(), JobSpec()))
    taken: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = OrchestratorStub(channel)
        for i in range(count + 20):
            started = time.perf_counter()
            accepted = await stub.SubmitJob(request)
            await stub.GetResult(pb.JobRequest(job_id=accepted.job_id, wait=30))
            if i >= 20:  # the first ones start the agent
                taken.append((time.perf_counter() - started) * 1000)
    return taken


def direct(count: int) -> float:
    """Milliseconds of the same inference in onnxruntime itself, in a process of its own; median."""
    code = (
        "import sys,time,statistics,numpy as np,onnxruntime as o\n"
        "s=o.InferenceSession(sys.argv[1],providers=['CPUExecutionProvider']);x={'x':np.ones((1,30),np.float32)}\n"
        "t=[]\nfor _ in range(int(sys.argv[2])):\n a=time.perf_counter();s.run(None,x);t.append(time.perf_counter()-a)\n"
        "print(statistics.median(t)*1000)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(MODEL), str(count)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def measure(jobs: int, agents: Mapping[str, Mapping[str, float]]) -> list[Row]:
    rows: list[Row] = []
    with one_node() as (swarm, node):
        with swarm.node_client(node) as client:
            address = client.status()["grpc"]
        warm = asyncio.run(latencies(address, 200))
        base = direct(2000)
        rows += [
            Row("one small warm inference, submit to result, p50", statistics.median(warm), "ms", "10 added", "MLServer's"),
            Row("one small warm inference, submit to result, p99", percentile(warm, 0.99), "ms"),
            Row("the same in onnxruntime itself, p50", base, "ms"),
        ]
        for clients in (1, 32):
            rate, _ = asyncio.run(submissions(address, clients, jobs))
            behind = asyncio.run(drain(address))
            rows.append(Row(f"acknowledged jobs, {clients} client{'s' * (clients > 1)}", rate, "jobs/s", "> 100", "> 1,000 (32)"))
            rows.append(Row(f"the {jobs} jobs completed, after the last acknowledgement", behind, "s"))
        rate, _ = asyncio.run(batched(address, 4, jobs, 200))
        asyncio.run(drain(address))
        rows.append(Row("acknowledged jobs, batches of 200, 4 clients", rate, "jobs/s", "", "> 5,000"))
    copied = bench_submissions.all_ways(3, jobs, 1, 32, 4, (200, CLIENT_BATCH))
    rows += [
        Row("acknowledged jobs with a copy on a second disk, 32 clients, 3 nodes", copied["single"][0]["copied_per_s"], "jobs/s", "500"),
        Row("the same in batches of 200, 4 clients", copied["batches of 200"][0]["copied_per_s"], "jobs/s", "3,000"),
        Row(
            f"the same in batches of {CLIENT_BATCH}, 4 clients", copied[f"batches of {CLIENT_BATCH}"][0]["copied_per_s"], "jobs/s", "3,000"
        ),
    ]
    rows += agent_rows(agents)
    rows += rpc_rows()
    chosen = bench_placement.run()
    rows.append(Row("node selection among 100 nodes", chosen["selection_100_ms"], "ms", "< 10", "< 0.2"))
    rows.append(Row("node selection among 10,000 nodes", chosen["selection_10000_ms"], "ms", "", "< 5"))
    return rows


def agent_rows(told: Mapping[str, Mapping[str, float]]) -> list[Row]:
    cuts = [Row(f"{name}: first inference, cut by pre-warming", f["cut"], "%", "50", "95") for name, f in told.items()]
    onnx = told["onnx"]
    return [
        *cuts,
        Row("onnx: 16 clients on one agent, each request alone", onnx["alone"], "per s"),
        Row("onnx: 16 clients on one agent, batched", onnx["batched"], "per s"),
        Row("onnx: 16 MB of input, through the socket", onnx["large_frames"], "ms"),
        Row("onnx: 16 MB of input, through shared memory", onnx["large_shared"], "ms"),
    ]


def rpc_rows() -> list[Row]:
    figures = trio.run(bench_rpc.health_calls)
    return [
        Row("100 Health calls, pooled connection", figures["pooled"] * 1000, "ms"),
        Row("100 Health calls, a new channel each", figures["new"] * 1000, "ms"),
        Row("time cut by pooling", 100 * figures["saved"], "%", "30", "90"),
    ]


def show(rows: list[Row], agents: Mapping[str, Mapping[str, float]]) -> None:
    table = Table(title=f"DIM benchmark: {os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}")
    for name in ("what", "value", "unit", "must", "aim"):
        table.add_column(name, justify="right" if name == "value" else "left")
    for r in rows:
        table.add_row(r.what, f"{r.value:,.3f}" if r.value < 10 else f"{r.value:,.1f}", r.unit, r.must, r.aim)
    console = Console(width=140)
    console.print(table)
    console.print(bench_agents.table(agents))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1000, help="jobs per submission figure")
    parser.add_argument("--json-only", action="store_true", help="no table")
    options = parser.parse_args()
    agents = trio.run(bench_agents.measure)
    rows = measure(options.jobs, agents)
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    document = {"machine": machine, "figures": [vars(r) for r in rows], "loaders": agents}
    (ROOT / "bench-results.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if not options.json_only:
        show(rows, agents)
    print(json.dumps(document))


if __name__ == "__main__":
    main()
