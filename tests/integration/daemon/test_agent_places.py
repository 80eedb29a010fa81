"""Who gets an agent's place, a core and a grant, and who waits: with real agents."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from dimnode.core.needs import GPU_CONTEXT
from dimnode.daemon.admission import Freed
from dimnode.daemon.agents import AgentCrashed, AgentPool
from dimnode.daemon.grant import Grant
from dimnode.daemon.resources import NoRoom
from dimnode.domain.model import Needs
from tests.integration.daemon.test_agents import X, fast, pids, running_pool
from tests.support.daemon import AGENTS

GIB = 1 << 30


def hang_for(pool: AgentPool, cid: str) -> None:
    """Agents for this model are not there for as long as anybody waits."""
    launch = pool._launch

    async def launched(model: Any, grant: Grant) -> Any:
        if model.cid == cid:
            await trio.sleep_forever()
        return await launch(model, grant)

    pool._launch = launched


# --- cores ---


@pytest.mark.parametrize("begin", [AgentPool.warm_up, AgentPool.inspect, AgentPool.acquire])
async def test_what_is_loaded_meanwhile_keeps_no_task_from_an_idle_agent(tmp_path: Path, begin: Any) -> None:
    async with running_pool(tmp_path, cores=1, threads=1) as pool:
        await pool.warm_up(fast(tmp_path, "warm"))
        hang_for(pool, "hangs")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(begin, pool, fast(tmp_path, "hangs"))
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert pool.statistics()["starting"] == 1
            with trio.fail_after(10):
                await pool.run(fast(tmp_path, "warm"), {"x": X})
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("begin", "waits"), [(AgentPool.warm_up, False), (AgentPool.inspect, False), (AgentPool.acquire, True)])
async def test_a_model_is_loaded_for_a_task_beside_what_is_loaded_for_none(tmp_path: Path, begin: Any, waits: bool) -> None:
    async with running_pool(tmp_path, cores=1, threads=1) as pool:
        hang_for(pool, "hangs")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(begin, pool, fast(tmp_path, "hangs"))
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.start_soon(pool.run, fast(tmp_path, "cold"), {"x": X})
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert pool.statistics()["starting"] == (1 if waits else 2)
            nursery.cancel_scope.cancel()


async def test_a_model_that_waits_for_its_next_try_takes_neither_place_nor_core(tmp_path: Path) -> None:
    async with running_pool(tmp_path, cores=1, threads=1, max_agents=1, backoff_first=60, backoff_most=60) as pool:
        await pool.warm_up(fast(tmp_path, "warm"))
        with_warm = pids(pool)
        pool._health.crashed("crashed", "SIGSEGV", trio.current_time())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.run, fast(tmp_path, "crashed"), {"x": X})
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert (pids(pool), pool.statistics()["starting"]) == (with_warm, 0)
            with trio.fail_after(10):
                await pool.run(fast(tmp_path, "warm"), {"x": X})
            nursery.cancel_scope.cancel()


async def test_a_model_that_waited_for_its_next_try_gets_it(tmp_path: Path) -> None:
    async with running_pool(tmp_path, backoff_first=0.05) as pool:
        pool._health.crashed("crashed", "SIGSEGV", trio.current_time())
        with trio.fail_after(20):
            await pool.run(fast(tmp_path, "crashed"), {"x": X})


# --- places ---


async def test_the_agent_whose_place_is_taken_counts_as_freed_and_stays_if_that_is_not_enough(tmp_path: Path) -> None:
    free, needed = GIB, 4 * GIB

    def admit(format: str, size: int, needs: Needs, freed: Freed) -> Grant:
        if free + freed.memory < needed:
            raise NoRoom("too little memory")
        return Grant(threads=1, memory=8 * GIB)

    async with running_pool(tmp_path, admit, max_agents=1, watch_interval=60) as pool:
        free = 64 * GIB
        await pool.warm_up(fast(tmp_path, "a"))
        pool._idle[0].used, free = 4 * GIB, GIB
        needed = 6 * GIB
        with pytest.raises(NoRoom):
            await pool.run(fast(tmp_path, "b"), {"x": X})
        assert pool.is_warm("a")
        needed = 5 * GIB
        await pool.run(fast(tmp_path, "b"), {"x": X})
        assert (pool.is_warm("a"), pool.is_warm("b")) == (False, True)


# --- grants ---


@pytest.mark.parametrize("fails", [False, True])
async def test_a_grant_is_given_back_as_a_promise_when_its_load_has_ended_either_way(tmp_path: Path, fails: bool) -> None:
    loaded: list[Grant] = []
    grants = [Grant(threads=1, memory=8 * GIB) for _ in range(2)]
    left = list(grants)
    settings = replace(AGENTS, start_timeout=0.0001 if fails else 60.0)
    pool = AgentPool(settings, tmp_path / "agents", admit=lambda format, size, needs, freed: left.pop(), loaded=loaded.append)
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run_pool)
        with pytest.raises(AgentCrashed) if fails else contextlib.nullcontext():
            await pool.run(fast(tmp_path), {"x": X})
        assert [g is grants[1] for g in loaded] == [True]
        hang_for(pool, "hangs")
        with trio.move_on_after(0.05):
            await pool.run(fast(tmp_path, "hangs"), {"x": X})
        assert [g is grants[0] for g in loaded] == [False, True]
        nursery.cancel_scope.cancel()


async def test_what_living_and_starting_agents_were_granted_of_a_card_counts_as_held(tmp_path: Path) -> None:
    async with running_pool(tmp_path) as pool:
        idle, busy = await pool.acquire(fast(tmp_path, "idle")), await pool.acquire(fast(tmp_path, "busy"))
        pool.release(idle)
        for agent in (idle, busy):
            agent.grant = Grant(threads=1, memory=8 * GIB, device="cuda", gpu=1, gpu_memory=GIB)
        pool._admit = lambda format, size, needs, freed: Grant(threads=1, memory=8 * GIB, device="cuda", gpu=0, gpu_memory=2 * GIB)
        hang_for(pool, "hangs")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.warm_up, fast(tmp_path, "hangs"))
            await trio.testing.wait_all_tasks_blocked(0.01)
            seen = pool.idle()
            assert dict(seen.held) == {0: 2 * GIB + GPU_CONTEXT, 1: 2 * (GIB + GPU_CONTEXT)}
            assert dict(seen.gpus) == {1: GIB + GPU_CONTEXT}
            nursery.cancel_scope.cancel()
        pool.release(busy)


async def test_idle_agents_that_have_died_are_neither_warm_nor_memory_after_the_next_look(tmp_path: Path) -> None:
    changes: list[None] = []
    pool = AgentPool(AGENTS, tmp_path / "agents", on_change=lambda: changes.append(None))
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run_pool)
        for name in ("dies", "lives"):
            await pool.warm_up(fast(tmp_path, name))
        dead = pool._idle[0]
        os.kill(dead.pid, signal.SIGKILL)
        with trio.fail_after(10):
            while dead.alive():
                await trio.sleep(0.01)
        changes.clear()
        pool.relieve(0)
        assert (pool.is_warm("dies"), pool.is_warm("lives"), len(changes)) == (False, True, 1)
        nursery.cancel_scope.cancel()
