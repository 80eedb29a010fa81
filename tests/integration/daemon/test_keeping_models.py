"""Which agents and files stay, which go, and what never comes back: with real agents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trio

from dimnode.daemon.admission import Freed
from dimnode.daemon.grant import Grant
from dimnode.daemon.resources import NoRoom
from dimnode.daemon.settings import PrewarmSettings
from dimnode.domain.model import Needs
from dimnode.errors import ResourceExhausted
from p2p.ipfs.memory import MemoryExchange
from tests.integration.daemon.test_agents import X, fast, gone, pids, running_pool
from tests.support.daemon import SETTINGS, finish, order, running_daemon
from tests.support.models import UNTRIED, linear_onnx, slow_onnx


async def until(met, seconds: float = 20) -> None:
    with trio.fail_after(seconds):
        while not met():
            await trio.sleep(0.01)


# --- what goes first ---


async def test_an_agent_that_is_wanted_goes_last_and_never_for_warming(tmp_path: Path) -> None:
    async with running_pool(tmp_path, max_agents=2) as pool:
        pool.keep = {"wanted"}.__contains__
        await pool.warm_up(fast(tmp_path, "wanted"))
        await pool.warm_up(fast(tmp_path, "other"))
        assert pool.may_warm()
        await pool.warm_up(fast(tmp_path, "third"))
        assert pool.is_warm("wanted")
        assert not pool.is_warm("other")
        pool.keep = {"wanted", "third"}.__contains__
        assert not pool.may_warm()
        assert not pool.has_room()
        await pool.run(fast(tmp_path, "task"), {"x": X})  # a task has the right of way
        assert pool.is_warm("task")


async def test_the_second_agent_of_a_wanted_model_may_go(tmp_path: Path) -> None:
    async with running_pool(tmp_path, max_agents=2, per_model=2) as pool:
        pool.keep = {"m"}.__contains__
        model = fast(tmp_path, "m")
        one, two = await pool.acquire(model), await pool.acquire(model)
        pool.release(one)
        pool.release(two)
        assert pool.may_warm()
        await pool.warm_up(fast(tmp_path, "n"))
        assert pool.is_warm("m")
        assert pool.is_warm("n")


async def test_agents_that_are_wanted_outlive_idleness(tmp_path: Path) -> None:
    async with running_pool(tmp_path, idle_seconds=0.2) as pool:
        pool.keep = {"wanted"}.__contains__
        await pool.warm_up(fast(tmp_path, "wanted"))
        await pool.warm_up(fast(tmp_path, "other"))
        await until(lambda: not pool.is_warm("other"))
        assert pool.is_warm("wanted")


async def test_no_agent_ends_for_one_that_cannot_be_started_anyway(tmp_path: Path) -> None:
    needed = 0

    def admit(format: str, size: int, needs: Needs, freed: Freed) -> Grant:
        if freed.memory < needed:
            raise NoRoom("too little memory")
        return Grant(threads=1, memory=4 << 30)

    async with running_pool(tmp_path, admit=admit) as pool:
        for name in ("a", "b"):
            await pool.warm_up(fast(tmp_path, name))
        await until(lambda: all(a.used for a in pool._idle))
        needed = sum(a.used for a in pool._idle) + 1
        with_both = pids(pool)
        with pytest.raises(ResourceExhausted, match="too little memory"):
            await pool.run(fast(tmp_path, "c"), {"x": X})
        assert pids(pool) == with_both
        needed = min(a.used for a in pool._idle)
        await pool.run(fast(tmp_path, "c"), {"x": X})
        assert len(pids(pool)) == 2


# --- removed models ---


async def test_the_agents_of_a_removed_model_end_and_busy_ones_when_they_are_done(tmp_path: Path) -> None:
    async with running_pool(tmp_path) as pool:
        idle, model = fast(tmp_path, "idle"), fast(tmp_path, "busy")
        await pool.warm_up(idle)
        pid = pids(pool)[0]
        agent = await pool.acquire(model)
        pool.forget("idle")
        pool.forget("busy")
        await gone(pid)
        assert [a["busy"] for a in pool.statistics()["agents"]] == [True]
        assert (await pool.run_on(agent, model, {"x": X}))["y"].shape == (2, 2)
        assert pids(pool) == []
        await pool.warm_up(model)  # asked for again
        assert pool.is_warm("busy")


async def test_an_agent_that_starts_while_its_model_is_removed_serves_and_ends(tmp_path: Path) -> None:
    async with running_pool(tmp_path) as pool:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.run, fast(tmp_path, "m"), {"x": X})
            await until(lambda: pool.statistics()["starting"])
            pool.forget("m")
        assert pool.statistics()["started"] == 1
        assert pids(pool) == []


async def test_a_removed_model_leaves_agents_cache_and_lists_though_a_task_still_runs(tmp_path: Path) -> None:
    exchange = MemoryExchange()
    async with (
        running_daemon(tmp_path / "a", name="a", exchange=exchange) as a,
        running_daemon(tmp_path / "b", name="b", exchange=exchange) as b,
    ):
        manifest, cid = await a.daemon.add_model_file(slow_onnx(tmp_path / "s.onnx"), id="slow", licence="", batch_axis=None, form=UNTRIED)
        task = order(manifest, cid, {"x": np.ones(1, np.float32)}, providers=("a",))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(finish, b.daemon, task)
            await until(lambda: b.daemon.stats()["agents"]["busy"])
            assert [r.id for r in b.daemon.models() if r.cid == manifest.cid] == ["slow"]
            await b.daemon.remove_model("slow")
            assert not [r for r in b.daemon.models() if r.cid == manifest.cid]
            assert await b.daemon.cancel_task("job-1", "t", 1, task.ballot)
        assert b.daemon.stats()["agents"]["agents"] == []
        await until(lambda: not list((tmp_path / "b" / "models").iterdir()))
        assert manifest.cid not in b.daemon.needed_blocks()


# --- pinned models ---


async def test_a_pinned_model_comes_from_another_node_and_is_loaded_and_kept(tmp_path: Path) -> None:
    exchange = MemoryExchange()
    prewarm = PrewarmSettings(most=1, interval=0.1, pinned=("wanted",))
    agents = replace(SETTINGS.agents, max_agents=1)
    async with (
        running_daemon(tmp_path / "a", name="a", exchange=exchange) as a,
        running_daemon(
            tmp_path / "b", name="b", exchange=exchange, settings=replace(SETTINGS, prewarm=prewarm, agents=agents, cache_bytes=250)
        ) as b,
    ):
        manifest, _ = await a.daemon.add_model_file(linear_onnx(tmp_path / "m.onnx"), id="wanted", licence="", batch_axis=None)
        other, other_cid = await a.daemon.add_model_file(linear_onnx(tmp_path / "o.onnx", batch=3), id="other", licence="", batch_axis=None)
        assert manifest.size + other.size > 250, "one of them fits"
        task = order(other, other_cid, {"x": np.ones((3, 4), np.float32)}, providers=("a",))
        assert (await finish(b.daemon, task)).status == "completed"
        refs = {r.id: r for r in a.daemon.models()}
        b.daemon.find_model = lambda name: (refs[name], ("a",))
        # the one agent is idle, with a model that nobody wants
        await until(lambda: any(r.cid == manifest.cid and r.warm for r in b.daemon.models()))
        refused = await finish(b.daemon, order(other, other_cid, {"x": np.ones((3, 4), np.float32)}, providers=("a",), task="u"))
        assert refused.error is not None
        assert "full of models in use" in refused.error.message
        await b.daemon.remove_model("wanted")
        await trio.sleep(0.5)
        assert not [r for r in b.daemon.models() if r.cid == manifest.cid]
        assert b.daemon.stats()["agents"]["agents"] == []
