"""Several agents at once, with real processes: who gets which, and what they really do side by side."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import trio

from dimnode.daemon.agents import AgentCrashed
from dimnode.errors import ResourceExhausted
from tests.integration.daemon.test_agents import X, fast, pids, running_pool, slow
from tests.support.agent_starts import first


async def test_who_waits_for_a_place_takes_an_agent_of_its_own_model_instead_of_ending_it(tmp_path: Path) -> None:
    async with running_pool(tmp_path, max_agents=1, per_model=4) as pool:
        model = fast(tmp_path)
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(pool.run, model, {"x": X})
        assert pool.statistics()["started"] == 1
        assert pool.statistics()["warm_calls"] == 5


async def test_agents_of_one_model_compute_at_the_same_time(tmp_path: Path) -> None:
    async with running_pool(tmp_path, max_agents=2, per_model=2) as pool:
        model = slow(tmp_path)
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(pool.run, model, {"x": np.ones(1, np.float32)})
            with trio.fail_after(20):
                while pool.statistics()["busy"] < 2:
                    await trio.sleep(0.01)
            processes = [psutil.Process(pid) for pid in pids(pool)]
            assert len(processes) == 2
            before = [p.cpu_times().user for p in processes]
            with trio.fail_after(20):  # neither waits for the other: both come forward
                while any(p.cpu_times().user < start + 0.1 for p, start in zip(processes, before, strict=True)):
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()


EXITS = """
import os
from dimnode.daemon.agent_main import Agent
answer = Agent._answer
Agent._answer = lambda self, header, tensors: os._exit(0) if header.op == "run" else answer(self, header, tensors)
"""
"""As a library does that ends the process it is in."""


@pytest.mark.skipif(sys.platform != "linux", reason="code is put into forked agents")
async def test_an_agent_that_ends_well_without_an_answer_has_failed(tmp_path: Path) -> None:
    async with running_pool(tmp_path, environment=first(tmp_path / "first", EXITS), max_crashes=2, backoff_first=0.01) as pool:
        model = fast(tmp_path)
        for _ in range(2):
            with pytest.raises(AgentCrashed, match="ended without an answer, exit code 0"):
                await pool.run(model, {"x": X})
        assert pids(pool) == []
        assert pool.statistics()["crashes"] == 2
        with pytest.raises(ResourceExhausted, match="2 times in a row"):
            await pool.run(model, {"x": X})
