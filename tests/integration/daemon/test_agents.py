"""The agent pool with real processes: what dies is noticed, told and replaced; nothing stays behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import trio
import trio.testing

from dimnode.daemon.admission import Admit, Freed
from dimnode.daemon.agents import AgentCrashed, AgentPool, ModelFile
from dimnode.daemon.gpus import Gpu
from dimnode.daemon.grant import Grant
from dimnode.daemon.resources import NoRoom
from dimnode.domain.model import Needs
from dimnode.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from tests.support.daemon import AGENTS
from tests.support.models import WEIGHTS, linear_onnx, slow_onnx

X = np.ones((2, 4), np.float32)


@asynccontextmanager
async def running_pool(tmp_path: Path, admit: Admit | None = None, **changes: Any) -> AsyncGenerator[AgentPool]:
    pool = AgentPool(replace(AGENTS, **changes), tmp_path / "agents", admit=admit)
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run_pool)
        yield pool
        nursery.cancel_scope.cancel()


def fast(tmp_path: Path, name: str = "fast") -> ModelFile:
    path = linear_onnx(tmp_path / f"{name}.onnx")
    return ModelFile(name, "onnx", path, path.stat().st_size)


def slow(tmp_path: Path) -> ModelFile:
    path = slow_onnx(tmp_path / "slow.onnx")
    return ModelFile("slow", "onnx", path, path.stat().st_size)


def pids(pool: AgentPool) -> list[int]:
    return [a["pid"] for a in pool.statistics()["agents"]]


async def gone(pid: int) -> None:
    with trio.fail_after(10), contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            await trio.sleep(0.01)


async def test_warm_calls_reuse_the_agent_and_are_quick(tmp_path: Path) -> None:
    async with running_pool(tmp_path) as pool:
        model = fast(tmp_path)
        await pool.warm_up(model)
        await pool.warm_up(model)
        times = []
        for _ in range(200):
            start = time.perf_counter()
            out = await pool.run(model, {"x": X})
            times.append(time.perf_counter() - start)
        np.testing.assert_allclose(out["y"], X @ WEIGHTS)
        assert pool.statistics()["started"] == 1
        # the aim is 1 ms; other work shares this machine
        assert sorted(times)[len(times) // 4] < 0.005
        big = np.ones((300_000, 4), np.float32)
        assert (await pool.run(model, {"x": big}))["y"].shape == (300_000, 2)


async def test_agents_see_next_to_nothing_of_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIM_SECRET", "1")
    async with running_pool(tmp_path) as pool:
        await pool.warm_up(fast(tmp_path))
        agent = psutil.Process(pids(pool)[0])
        assert "DIM_SECRET" not in agent.environ()
        assert os.getsid(agent.pid) == agent.pid
        folder = Path(agent.cwd())
        assert folder.parent == tmp_path / "agents"
        assert list((tmp_path / "agents").iterdir()) == [folder]
        assert not list(folder.iterdir())
        if sys.platform == "linux":
            assert agent.rlimit(psutil.RLIMIT_CORE) == (0, 0)
            assert agent.rlimit(psutil.RLIMIT_DATA)[0] >= AGENTS.memory_base


@pytest.mark.parametrize(("number", "words"), [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGKILL, "memory")])
async def test_a_crash_in_the_middle_is_told_and_the_next_call_works(tmp_path: Path, number: int, words: str) -> None:
    async with running_pool(tmp_path) as pool:
        model = slow(tmp_path)
        await pool.warm_up(fast(tmp_path))

        async def kill() -> None:
            with trio.fail_after(10):
                while not pool.statistics()["busy"]:
                    await trio.sleep(0.01)
            os.kill(next(a["pid"] for a in pool.statistics()["agents"] if a["busy"]), number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            with pytest.raises(AgentCrashed, match=words):
                await pool.run(model, {"x": np.ones(1, np.float32)})
        assert (await pool.run(fast(tmp_path), {"x": X}))["y"].shape == (2, 2)
        assert pool.statistics()["crashes"] == 1


async def test_idle_agents_that_died_are_replaced_without_an_error(tmp_path: Path) -> None:
    async with running_pool(tmp_path) as pool:
        model = fast(tmp_path)
        await pool.warm_up(model)
        pid = pids(pool)[0]
        os.kill(pid, signal.SIGKILL)
        await gone(pid)
        await pool.run(model, {"x": X})
        assert pids(pool) != [pid]


async def test_cancelling_a_call_kills_its_agent_even_if_it_hangs(tmp_path: Path) -> None:
    async with running_pool(tmp_path) as pool:
        model = slow(tmp_path)
        await pool.warm_up(fast(tmp_path))
        with trio.move_on_after(1.0):
            await pool.run(model, {"x": np.ones(1, np.float32)})
        assert pool.statistics()["busy"] == 0
        servers = {f["pid"] for f in pool.statistics()["frameworks"].values()}
        for process in psutil.Process().children(recursive=True):
            if process.pid not in servers and process.pid not in pids(pool):
                await gone(process.pid)


async def test_repeated_crashes_refuse_the_model_for_a_while(tmp_path: Path) -> None:
    async with running_pool(tmp_path, start_timeout=0.0001, backoff_first=0.01, max_crashes=2) as pool:
        for _ in range(2):
            with pytest.raises(AgentCrashed, match="not loaded within"):
                await pool.run(fast(tmp_path), {"x": X})
        with pytest.raises(ResourceExhausted, match="2 times in a row") as refused:
            await pool.run(fast(tmp_path), {"x": X})
        assert refused.value.retry_after is not None
        assert pool.statistics()["refused_models"] == 1


async def test_the_limit_holds_and_the_longest_idle_agent_makes_room(tmp_path: Path) -> None:
    async with running_pool(tmp_path, max_agents=2) as pool:
        for name in ("a", "b", "c"):
            await pool.run(fast(tmp_path, name), {"x": X})
        assert len(pids(pool)) == 2
        assert [pool.is_warm(n) for n in ("a", "b", "c")] == [False, True, True]

        async def call(n: int) -> None:
            await pool.run(fast(tmp_path, "abc"[n % 3]), {"x": X})
            assert len(pids(pool)) <= 2

        async with trio.open_nursery() as nursery:
            for n in range(9):
                nursery.start_soon(call, n)


async def test_idle_agents_end_after_a_while(tmp_path: Path) -> None:
    async with running_pool(tmp_path, idle_seconds=0.2) as pool:
        await pool.warm_up(fast(tmp_path))
        pid = pids(pool)[0]
        await gone(pid)
        assert pids(pool) == []


async def test_errors_keep_the_agent(tmp_path: Path) -> None:
    async with running_pool(tmp_path) as pool:
        with pytest.raises(InvalidArgument):
            await pool.run(fast(tmp_path), {"z": X})
        junk = tmp_path / "junk.onnx"
        junk.write_bytes(b"junk")
        with pytest.raises(FailedPrecondition, match="cannot be loaded") as refused:
            await pool.run(ModelFile("j", "onnx", junk, 4), {})
        assert str(tmp_path) not in str(refused.value)
        schema = await pool.inspect(fast(tmp_path))
        assert schema.inputs[0].name == "x"
        assert len(pids(pool)) == 1


async def test_without_memory_no_agent_is_started(tmp_path: Path) -> None:
    def admit(format: str, size: int, needs: Needs, freed: Freed) -> Grant:
        raise NoRoom("not enough free memory")

    async with running_pool(tmp_path, admit) as pool:
        with pytest.raises(NoRoom, match="memory"):
            await pool.run(fast(tmp_path), {"x": X})


async def test_a_device_that_is_not_here_is_an_error_that_says_so(tmp_path: Path) -> None:
    def admit(format: str, size: int, needs: Needs, freed: Freed) -> Grant:
        return Grant(threads=1, memory=4 << 30, device="tensorrt")

    async with running_pool(tmp_path, admit) as pool:
        with pytest.raises(FailedPrecondition, match="no execution provider for 'tensorrt'") as refused:
            await pool.run(fast(tmp_path), {"x": X})
        assert "daemon.device" in refused.value.hint


async def test_agents_get_their_grant_and_statistics_show_it(tmp_path: Path) -> None:
    grant = Grant(threads=1, memory=3 << 30)
    async with running_pool(tmp_path, lambda format, size, needs, freed: grant) as pool:
        await pool.run(fast(tmp_path), {"x": X})
        (shown,) = pool.statistics()["agents"]
        assert shown["grant"] == {"threads": 1, "memory": 3 << 30, "device": "cpu", "gpu": None, "gpu_memory": 0}
        limits = Path(f"/proc/{shown['pid']}/limits")
        if limits.exists():
            assert str(3 << 30) in next(line for line in limits.read_text().splitlines() if line.startswith("Max data size"))


@pytest.mark.parametrize("loaded", [False, True])
async def test_inferences_together_get_no_more_threads_than_there_are_cores(tmp_path: Path, loaded: bool) -> None:
    async with running_pool(tmp_path, cores=3, threads=1, max_agents=5, per_model=5) as pool:
        running = [await pool.acquire(fast(tmp_path)) for _ in range(3)]
        another_runs = trio.Event()
        if loaded:
            await pool.warm_up(fast(tmp_path, "other"))

        async def another(model: ModelFile) -> None:
            running.append(await pool.acquire(model))
            another_runs.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(another, fast(tmp_path, "other"))
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert (pool.statistics()["busy"], pool.statistics()["starting"]) == (3, 0)
            pool.release(running.pop())
            await another_runs.wait()
    async with running_pool(tmp_path, cores=1, threads=2) as pool:
        await pool.run(fast(tmp_path), {"x": X})


async def test_a_model_loaded_ahead_of_its_need_waits_for_no_core(tmp_path: Path) -> None:
    async with running_pool(tmp_path, cores=1, threads=1) as pool:
        agent = await pool.acquire(fast(tmp_path))
        await pool.warm_up(fast(tmp_path, "next"))
        assert pool.is_warm("next")
        pool.release(agent)


async def test_without_room_for_a_further_agent_of_a_model_those_that_it_has_are_waited_for(tmp_path: Path) -> None:
    granted = 0

    def admit(format: str, size: int, needs: Needs, freed: Freed) -> Grant:
        nonlocal granted
        granted += 1
        if granted > 1:
            raise NoRoom("not enough free memory")
        return Grant(threads=1, memory=4 << 30)

    async with running_pool(tmp_path, admit, per_model=4) as pool:
        agent = await pool.acquire(fast(tmp_path))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.run, fast(tmp_path), {"x": X})
            nursery.start_soon(pool.run, fast(tmp_path), {"x": X})
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert granted == 2, "one asks, until there is a new look"
            pool.release(agent)
        assert len(pids(pool)) == 1


async def test_who_takes_more_of_its_card_than_it_was_granted_is_ended(tmp_path: Path) -> None:
    async with running_pool(tmp_path) as pool:
        agent = await pool.acquire(slow(tmp_path))
        agent.grant = Grant(threads=1, memory=agent.grant.memory, device="cuda", gpu=0, gpu_memory=1 << 20)
        pool.watch_cards((Gpu("card", 16 << 30, 0, ((agent.pid, 4 << 30),)),))
        with pytest.raises(AgentCrashed, match="more than its 1 MiB of GPU memory"):
            await pool.run_on(agent, slow(tmp_path), {"x": np.ones(1, np.float32)})


NODE = """
import sys, trio
from pathlib import Path
from dimnode.daemon.agents import AgentPool, ModelFile
from dimnode.daemon.settings import AgentSettings
import numpy as np
async def main():
    pool = AgentPool(AgentSettings(), Path(sys.argv[2]))
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run_pool)
        nursery.start_soon(pool.run, ModelFile("m", "onnx", Path(sys.argv[1]), 1), {"x": np.ones(1, np.float32)})
        while not pool.statistics()["busy"]:
            await trio.sleep(0.01)
        print(pool.statistics()["agents"][0]["pid"], flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


async def test_agents_die_with_a_node_that_is_killed_even_while_they_compute(tmp_path: Path) -> None:
    model = slow(tmp_path)
    node = subprocess.Popen([sys.executable, "-c", NODE, str(model.path), str(tmp_path / "agents")], stdout=subprocess.PIPE, text=True)
    try:
        assert node.stdout is not None
        agent = int(await trio.to_thread.run_sync(node.stdout.readline))
        assert psutil.pid_exists(agent)
    finally:
        node.kill()
        node.wait()
        node.stdout.close()
    await gone(agent)
