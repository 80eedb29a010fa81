"""Much text on its way to an agent and back: the event loop has its turns meanwhile."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import trio

from dimnode.daemon.agents import ModelFile
from tests.integration.daemon.test_agents import running_pool
from tests.support.models import identity_onnx


async def test_much_text_is_not_encoded_on_the_loop(tmp_path: Path) -> None:
    texts = np.array([f"text number {i}" for i in range(300_000)], dtype=object)
    path = identity_onnx(tmp_path / "m.onnx")
    model = ModelFile("m", "onnx", path, path.stat().st_size)
    async with running_pool(tmp_path, per_model=1) as pool:
        await pool.warm_up(model)
        longest, last, done = 0.0, time.thread_time(), False

        async def tick() -> None:
            nonlocal longest, last
            while not done:
                await trio.sleep(0)
                longest, last = max(longest, time.thread_time() - last), time.thread_time()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick)
            out = await pool.run(model, {"a": texts})
            done = True
        assert (out["b"] == texts).all()
        # of this thread's own time, so that other work on the machine does not count
        assert longest < 0.03
