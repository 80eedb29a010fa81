"""Fork servers with real processes: one for each framework, and what fails before a model is there is no model's failure."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from dimnode.daemon.agent_main import AgentOptions
from dimnode.daemon.agents import AgentCrashed, AgentPool
from dimnode.daemon.frameworks import FrameworkFailed, Frameworks
from dimnode.daemon.grant import Grant
from dimnode.daemon.preload import formats_of, framework_of
from dimnode.daemon.sandbox.policy import AgentPolicy, library_folders
from loaders.registry import ENTRIES, available_loaders
from tests.integration.daemon.test_agents import X, fast, gone, pids, running_pool, slow
from tests.support.agent_starts import first
from tests.support.daemon import AGENTS


@asynccontextmanager
async def running_frameworks(folder: Path, **changes: Any) -> AsyncGenerator[Frameworks]:
    (folder / "agents").mkdir()
    frameworks = Frameworks(replace(AGENTS, **changes), folder / "agents")
    async with trio.open_nursery() as nursery:
        await nursery.start(frameworks.run)
        yield frameworks
        nursery.cancel_scope.cancel()


def options(folder: Path, format: str) -> AgentOptions:
    policy = AgentPolicy(memory=4 << 30, read=library_folders(), scratch=str(folder / "agents" / format))
    return AgentOptions(policy=policy, grant=Grant(threads=1, memory=4 << 30), format=format)


def test_formats_of_one_framework_share_it() -> None:
    assert set(formats_of("torch")) == {"pt2", "torchscript", "safetensors"}
    assert set(formats_of("onnxruntime")) == {"onnx", "coreml"}
    assert set(formats_of("mlx")) == {"mlx", "mlx-lm"}
    assert framework_of("unheard-of") == "unheard-of"


@pytest.mark.parametrize("framework", sorted({framework_of(f) for f in available_loaders()}))
@pytest.mark.timeout(120)
async def test_each_framework_has_one_server_that_forks_agents_of_all_its_formats(tmp_path: Path, framework: str) -> None:
    """A framework that starts threads when it is imported could not be forked: an agent would take ten times as long."""
    async with running_frameworks(tmp_path) as frameworks:
        agents = [await frameworks.start_agent(options(tmp_path, f)) for f in formats_of(framework)]
        told = frameworks.statistics()
        assert list(told) == [framework]
        assert told[framework]["agents"] == len(agents)
        assert told[framework]["forks"] is (sys.platform == "linux")
        assert all(agent.confinement.complete for agent in agents)
        for agent in agents:
            agent.kill()
            await agent.reap()


def test_every_format_belongs_to_a_framework_that_is_tested_here() -> None:
    assert {framework_of(f) for f in ENTRIES} == {"torch", "onnxruntime", "mlx", "cv2"}


async def test_a_framework_whose_server_dies_comes_back_and_no_model_is_blamed(tmp_path: Path) -> None:
    async with running_pool(tmp_path, max_crashes=1) as pool:
        model = fast(tmp_path)
        await pool.warm_up(model)
        server, agent = pool.statistics()["frameworks"]["onnxruntime"]["pid"], pids(pool)[0]
        os.kill(server, signal.SIGKILL)
        await gone(agent)
        assert (await pool.run(model, {"x": X}))["y"].shape == (2, 2)
        assert pool.statistics()["frameworks"]["onnxruntime"]["pid"] != server


async def test_a_call_that_ends_with_its_frameworks_server_is_not_counted_against_its_model(tmp_path: Path) -> None:
    async with running_pool(tmp_path, max_crashes=1) as pool:
        model = slow(tmp_path)

        async def kill() -> None:
            with trio.fail_after(10):
                while not pool.statistics()["busy"]:
                    await trio.sleep(0.01)
            os.kill(pool.statistics()["frameworks"]["onnxruntime"]["pid"], signal.SIGKILL)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            with pytest.raises(AgentCrashed):
                await pool.run(model, {"x": np.ones(1, np.float32)})
        assert pool.statistics()["refused_models"] == 0


async def test_a_slow_framework_costs_a_model_none_of_its_time(tmp_path: Path) -> None:
    late = first(tmp_path / "late", "import time; time.sleep(1.5)")
    async with running_pool(tmp_path, start_timeout=1.0, environment=late) as pool:
        assert (await pool.run(fast(tmp_path), {"x": X}))["y"].shape == (2, 2)
        assert pool.statistics()["crashes"] == 0


@pytest.mark.parametrize("fork", [True, False])
async def test_a_framework_that_does_not_start_is_given_up_and_its_models_are_not_to_blame(tmp_path: Path, fork: bool) -> None:
    """Without forking it is the agent that imports it."""
    broken = first(tmp_path / "broken", "import sys; (sys.argv[-1].isdigit() or 'onnxruntime' in sys.argv[-1]) and sys.exit(1)")
    if not fork:
        broken = first(tmp_path / "agents-only", "import sys; sys.argv[-1].isdigit() and sys.exit(1)")
    pool: AgentPool
    async with running_pool(tmp_path, fork=fork, environment=broken, max_crashes=2, backoff_first=0.01) as pool:
        for _ in range(2):
            with pytest.raises(FrameworkFailed):
                await pool.run(fast(tmp_path), {"x": X})
        with pytest.raises(FrameworkFailed, match="again and again"):
            await pool.run(fast(tmp_path), {"x": X})
        told = pool.statistics()
        assert (told["refused_models"], told["crashes"], told["starting"]) == (0, 0, 0)


async def test_a_framework_that_takes_for_ever_is_ended(tmp_path: Path) -> None:
    hanging = first(tmp_path / "hanging", "import time; time.sleep(60)")
    async with running_pool(tmp_path, framework_timeout=0.3, environment=hanging) as pool:
        with trio.fail_after(10), pytest.raises(FrameworkFailed, match=r"within 0\.3 s"):
            await pool.run(fast(tmp_path), {"x": X})
        assert pool.statistics()["refused_models"] == 0
