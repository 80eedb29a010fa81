"""Agents, for each loader: the first inference cold, with its library warm, with its model warm; steady; in batches.

    python -m tools.bench_agents [FORMAT ...]

Milliseconds, each on fresh pools; in sandboxes as the system has them. A request is one row of a small network, or 16 tokens of a tiny language model.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import trio
from rich.table import Table

from dimnode.daemon.agents import AgentPool, ModelFile
from dimnode.daemon.settings import AgentSettings
from tools.bench_models import Model, make

SETTINGS = AgentSettings(per_model=1)
STEADY = 300
CROWD, REQUESTS = 16, 20


@asynccontextmanager
async def pool(settings: AgentSettings = SETTINGS) -> AsyncGenerator[AgentPool]:
    with tempfile.TemporaryDirectory(prefix="dim-bench-") as folder:
        agents = AgentPool(settings, Path(folder) / "agents")
        async with trio.open_nursery() as nursery:
            await nursery.start(agents.run_pool)
            yield agents
            nursery.cancel_scope.cancel()


async def timed(agents: AgentPool, file: ModelFile, inputs: Mapping[str, Any], owner: str | None = None) -> float:
    began = time.perf_counter()
    await agents.run(file, inputs, owner)
    return (time.perf_counter() - began) * 1000


async def first(model: Model) -> dict[str, float]:
    file, inputs = model.file, model.inputs
    out: dict[str, float] = {}
    async with pool() as agents:
        out["cold"] = await timed(agents, file, inputs)
        out["library_warm"] = await timed(agents, replace(file, cid="other"), inputs)
    async with pool() as agents:
        await agents.warm_up(file)
        out["model_warm"] = await timed(agents, file, inputs)
        out["steady"] = statistics.median([await timed(agents, file, inputs) for _ in range(STEADY if model.batches else STEADY // 10)])
    out["cut"] = 100 * (1 - out["model_warm"] / out["cold"])
    return out


async def crowd(model: Model, most: int) -> float:
    """Requests per second of ``CROWD`` clients of one principal, batches of up to ``most``."""
    settings = replace(SETTINGS, batch=replace(SETTINGS.batch, most_requests=most))
    async with pool(settings) as agents:
        await agents.warm_up(model.file)

        async def client() -> None:
            for _ in range(REQUESTS):
                await agents.run(model.file, model.inputs, "client")

        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(CROWD):
                nursery.start_soon(client)
        return CROWD * REQUESTS / (time.perf_counter() - began)


async def large(model: Model, share_from: int, megabytes: int = 16) -> float:
    async with pool(replace(SETTINGS, share_from=share_from)) as agents:
        size = sum(a.nbytes for a in model.inputs.values())
        inputs = {name: np.repeat(a, (megabytes << 20) // size, axis=0) for name, a in model.inputs.items()}
        for _ in range(2):
            await timed(agents, model.file, inputs)
        return statistics.median([await timed(agents, model.file, inputs) for _ in range(5)])


async def measure(formats: Collection[str] = ()) -> dict[str, dict[str, float]]:
    """Format -> figures; of ``formats``, or of all."""
    with tempfile.TemporaryDirectory(prefix="dim-bench-") as folder:
        models = await trio.to_thread.run_sync(make, Path(folder))
        out: dict[str, dict[str, float]] = {}
        for name, model in models.items():
            if formats and name not in formats:
                continue
            out[name] = await first(model)
            if model.batches:
                out[name] |= {"alone": await crowd(model, 1), "batched": await crowd(model, 32)}
        if "onnx" in out:
            small = models["onnx"]
            out["onnx"] |= {"large_frames": await large(small, 0), "large_shared": await large(small, 1 << 18)}
        return out


def table(figures: Mapping[str, Mapping[str, float]]) -> Table:
    """Cold, library-warm, model-warm, steady, batched, for each loader."""
    out = Table(title="Agents: first inference cold, with its library, with its model loaded; then steady, alone and batched (16 clients)")
    for heading in ("loader", "cold, ms", "library-warm, ms", "model-warm, ms", "cut", "steady, ms", "alone, 1/s", "batched, 1/s"):
        out.add_column(heading, justify="left" if heading == "loader" else "right")
    for name, f in figures.items():
        rates = [f"{f[k]:,.0f}" if k in f else "-" for k in ("alone", "batched")]
        times = [f"{f[k]:,.1f}" for k in ("cold", "library_warm", "model_warm")]
        out.add_row(name, *times, f"{f['cut']:.1f} %", f"{f['steady']:.2f}", *rates)
    return out


if __name__ == "__main__":
    print(json.dumps(trio.run(measure, sys.argv[1:]), indent=2))
