"""Ratios and generous bounds of what agents cost, the best of several times each: others' work on the machine only ever adds."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

from dimnode.daemon.agents import AgentPool
from dimnode.daemon.model_file import ModelFile
from tests.integration.daemon.test_agents import running_pool
from tests.support.models import linear_onnx

X = np.ones((2, 4), np.float32)


def model(folder: Path, name: str) -> ModelFile:
    path = linear_onnx(folder / f"{name}.onnx")
    return ModelFile(name, "onnx", path, path.stat().st_size)


async def seconds(call: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await call()
    return time.perf_counter() - began


async def first(pool: AgentPool, file: ModelFile, *, warmed: bool) -> float:
    """Seconds of the first inference of a model."""
    if warmed:
        await pool.warm_up(file)
    return await seconds(lambda: pool.run(file, {"x": X}))


async def test_a_model_that_was_warmed_answers_its_first_task_in_less_than_half_the_time(tmp_path: Path) -> None:
    async with running_pool(tmp_path, max_agents=16) as pool:
        await first(pool, model(tmp_path, "library"), warmed=False)  # the framework is there from now on, which is the harder comparison
        cold = min([await first(pool, model(tmp_path, f"cold-{i}"), warmed=False) for i in range(4)])
        warm = min([await first(pool, model(tmp_path, f"warm-{i}"), warmed=True) for i in range(4)])
    assert warm < 0.5 * cold, f"{warm * 1e3:.1f} of {cold * 1e3:.1f} ms"


async def test_a_small_inference_in_an_agent_takes_little_longer_than_without_one(tmp_path: Path) -> None:
    """Measured are some tenths of a millisecond; this is for defects, as a copy or a start too many."""
    file = model(tmp_path, "m")
    session = ort.InferenceSession(str(file.path), providers=["CPUExecutionProvider"])

    async def alone() -> None:
        session.run(None, {"x": X})

    async with running_pool(tmp_path) as pool:
        await pool.warm_up(file)
        through = min([await seconds(lambda: pool.run(file, {"x": X})) for _ in range(200)])
    plain = min([await seconds(alone) for _ in range(200)])
    assert through - plain < 0.010, f"{(through - plain) * 1e3:.2f} ms"
