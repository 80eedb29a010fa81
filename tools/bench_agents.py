"""Agents: the first inference cold, with its framework warm, with its model warm; steady; in batches; large tensors.

    python -m tools.bench_agents

Milliseconds, each on fresh pools with the fixture's models; in sandboxes as the system has them.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import trio

from dimnode.daemon.agents import AgentPool, ModelFile
from dimnode.daemon.settings import AgentSettings

MODELS = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "models"
FILES = {"onnx": "mlp.onnx", "pt2": "mlp.pt2"}
SETTINGS = AgentSettings(per_model=1)
STEADY = 300
CROWD, REQUESTS = 16, 20


def model(format: str, name: str = "m") -> ModelFile:
    path = MODELS / FILES[format]
    return ModelFile(name, format, path, path.stat().st_size, batchable=True)


@asynccontextmanager
async def pool(settings: AgentSettings = SETTINGS) -> AsyncGenerator[AgentPool]:
    with tempfile.TemporaryDirectory(prefix="dim-bench-") as folder:
        agents = AgentPool(settings, Path(folder) / "agents")
        async with trio.open_nursery() as nursery:
            await nursery.start(agents.run_pool)
            yield agents
            nursery.cancel_scope.cancel()


async def inputs_of(agents: AgentPool, file: ModelFile, rows: int) -> dict[str, Any]:
    schema = await agents.inspect(file)
    return {t.name: np.ones((rows, *(n if isinstance(n, int) else 1 for n in t.shape[1:])), t.dtype) for t in schema.inputs}


async def timed(agents: AgentPool, file: ModelFile, inputs: Mapping[str, Any], owner: str | None = None) -> float:
    began = time.perf_counter()
    await agents.run(file, inputs, owner)
    return (time.perf_counter() - began) * 1000


async def first(format: str) -> dict[str, float]:
    async with pool() as agents:
        inputs = await inputs_of(agents, model(format), 1)
    out: dict[str, float] = {}
    async with pool() as agents:
        out["cold"] = await timed(agents, model(format), inputs)
        out["framework_warm"] = await timed(agents, model(format, "other"), inputs)
    async with pool() as agents:
        await agents.warm_up(model(format))
        out["prewarmed"] = await timed(agents, model(format), inputs)
        out["steady"] = statistics.median([await timed(agents, model(format), inputs) for _ in range(STEADY)])
    out["cut"] = 100 * (1 - out["prewarmed"] / out["cold"])
    return out


async def crowd(format: str, most: int) -> float:
    """Requests per second of ``CROWD`` clients of one principal, batches of up to ``most``."""
    settings = replace(SETTINGS, batch=replace(SETTINGS.batch, most_requests=most))
    async with pool(settings) as agents:
        file = model(format)
        inputs = await inputs_of(agents, file, 1)
        await agents.warm_up(file)

        async def client() -> None:
            for _ in range(REQUESTS):
                await agents.run(file, inputs, "client")

        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(CROWD):
                nursery.start_soon(client)
        return CROWD * REQUESTS / (time.perf_counter() - began)


async def large(share_from: int, megabytes: int = 16) -> float:
    async with pool(replace(SETTINGS, share_from=share_from)) as agents:
        file = model("onnx")
        row = await inputs_of(agents, file, 1)
        size = sum(a.nbytes for a in row.values())
        inputs = {name: np.repeat(a, (megabytes << 20) // size, axis=0) for name, a in row.items()}
        await timed(agents, file, inputs)
        await timed(agents, file, inputs)
        return statistics.median([await timed(agents, file, inputs) for _ in range(5)])


async def measure() -> dict[str, dict[str, float]]:
    out = {name: await first(name) for name in FILES}
    for most in (1, 32):
        out["onnx"][f"crowd_{most}"] = await crowd("onnx", most)
    out["onnx"]["large_frames"], out["onnx"]["large_shared"] = await large(0), await large(1 << 18)
    return out


if __name__ == "__main__":
    print(json.dumps(trio.run(measure), indent=2))
