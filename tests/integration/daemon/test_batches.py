"""Requests that run together, large tensors in shared memory, agents that take too much: with real agents."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from onnx import TensorProto, helper, numpy_helper

from dimnode.daemon.agents import AgentCrashed, AgentPool, ModelFile
from dimnode.daemon.batching import BatchSettings
from dimnode.daemon.grant import Grant
from dimnode.errors import InvalidArgument
from tests.integration.daemon.test_agents import gone, pids, running_pool
from tests.support.daemon import finish, order, running_daemon, with_agents
from tests.support.models import WEIGHTS, linear_onnx, save, slow_onnx

ONE_AGENT: dict[str, Any] = {"per_model": 1, "batch": BatchSettings(delay=0.05)}


def linear(folder: Path) -> ModelFile:
    path = linear_onnx(folder / "linear.onnx")
    return ModelFile("linear", "onnx", path, path.stat().st_size, batchable=True)


def centred(folder: Path) -> ModelFile:
    """y = x - mean of x: looks as if it treated rows one by one, and does not."""
    path = save(
        folder / "centred.onnx",
        [helper.make_node("ReduceMean", ["x"], ["m"], keepdims=0), helper.make_node("Sub", ["x", "m"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
    )
    return ModelFile("centred", "onnx", path, path.stat().st_size, batchable=True)


async def crowd(pool: AgentPool, model: ModelFile, sizes: list[int], owners: list[str]) -> list[Any]:
    """One request for each size, all at once; the answers in order."""
    answers: list[Any] = [None] * len(sizes)

    async def one(i: int) -> None:
        x = np.full((sizes[i], 4), i + 1, np.float32)
        answers[i] = (await pool.run(model, {"x": x}, owners[i]))["y"]

    async with trio.open_nursery() as nursery:
        for i in range(len(sizes)):
            nursery.start_soon(one, i)
    return answers


async def test_a_crowd_is_served_in_batches_and_everybody_gets_their_own_rows(tmp_path: Path) -> None:
    async with running_pool(tmp_path, **ONE_AGENT) as pool:
        model = linear(tmp_path)
        await pool.warm_up(model)
        assert pool.batches(model.key)
        sizes = [1 + i % 4 for i in range(40)]
        for i, y in enumerate(await crowd(pool, model, sizes, ["a"] * 40)):
            np.testing.assert_allclose(y, np.full((sizes[i], 4), i + 1, np.float32) @ WEIGHTS, rtol=1e-5)
        told = pool.statistics()
        assert told["batching"]["requests"] >= 30
        assert told["batching"]["batches"] <= 4
        assert told["agents"][0]["calls"] <= 15


async def test_clients_are_never_mixed_and_models_that_mix_rows_are_left_alone(tmp_path: Path) -> None:
    async with running_pool(tmp_path, **ONE_AGENT) as pool:
        model = linear(tmp_path)
        await pool.warm_up(model)
        await crowd(pool, model, [1] * 6, [f"client-{i}" for i in range(6)])
        assert pool.statistics()["batching"]["batches"] == 0
        mixing = centred(tmp_path)
        await pool.warm_up(mixing)
        assert not pool.batches(mixing.key)
        for y in await crowd(pool, mixing, [2] * 6, ["a"] * 6):
            np.testing.assert_allclose(y, 0, atol=1e-6)
        assert pool.statistics()["batching"]["batches"] == 0


async def test_a_model_that_was_not_warmed_is_tried_after_its_first_run(tmp_path: Path) -> None:
    async with running_pool(tmp_path, **ONE_AGENT) as pool:
        model = linear(tmp_path)
        await pool.run(model, {"x": np.ones((1, 4), np.float32)}, "a")
        with trio.fail_after(10):
            while not pool.batches(model.key):
                await trio.sleep(0.01)


async def test_one_bad_request_does_not_spoil_its_batch(tmp_path: Path) -> None:
    async with running_pool(tmp_path, **ONE_AGENT) as pool:
        path = save(
            tmp_path / "g.onnx",
            [helper.make_node("Gather", ["table", "i"], ["y"], axis=0)],
            [helper.make_tensor_value_info("i", TensorProto.INT64, ["N"])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])],
            [numpy_helper.from_array(np.arange(3, dtype=np.float32), "table")],
        )
        model = ModelFile("gather", "onnx", path, 1, batchable=True)
        await pool.warm_up(model)
        results: dict[int, Any] = {}

        async def one(i: int) -> None:
            try:
                results[i] = (await pool.run(model, {"i": np.array([i])}, "a"))["y"].tolist()
            except Exception as e:  # noqa: BLE001 - compared below
                results[i] = type(e).__name__

        async with trio.open_nursery() as nursery:
            for i in (0, 1, 2, 99):
                nursery.start_soon(one, i)
        assert results == {0: [0.0], 1: [1.0], 2: [2.0], 99: "InferenceError"}
        with pytest.raises(InvalidArgument):
            await pool.run(model, {"z": np.array([1])}, "a")


async def test_one_that_leaves_does_not_take_the_batch_along_and_the_last_one_ends_it(tmp_path: Path) -> None:
    async with running_pool(tmp_path, **ONE_AGENT) as pool:
        path = slow_onnx(tmp_path / "slow.onnx", batch="N")
        model = ModelFile("slow", "onnx", path, 1, batchable=True)
        pool._batching.learn(model.key, True)
        scopes = [trio.CancelScope() for _ in range(3)]

        async def one(scope: trio.CancelScope) -> None:
            with scope:
                await pool.run(model, {"x": np.ones(1, np.float32)}, "a")

        async with trio.open_nursery() as nursery:
            for scope in scopes:
                nursery.start_soon(one, scope)
            with trio.fail_after(20):
                while not pool.statistics()["busy"]:
                    await trio.sleep(0.01)
            pid = pids(pool)[0]
            scopes[0].cancel()
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert pids(pool) == [pid]
            scopes[1].cancel()
            scopes[2].cancel()
        await gone(pid)


async def test_a_daemon_runs_the_queued_tasks_of_a_client_together(tmp_path: Path) -> None:
    settings = with_agents(per_model=1, batch=BatchSettings(delay=0.05))
    settings = type(settings)(**{f: getattr(settings, f) for f in settings.__dataclass_fields__} | {"slots": 1, "queue_capacity": 100})
    async with running_daemon(tmp_path / "home", settings=settings) as bench:
        manifest, cid = await bench.daemon.add_model_file(linear_onnx(tmp_path / "m.onnx"), id="m", licence="", batch_axis=None)
        assert await bench.daemon.prewarm(manifest.cid, cid, ())
        attempts: dict[int, Any] = {}

        async def one(i: int) -> None:
            task = order(manifest, cid, {"x": np.full((1, 4), i, np.float32)}, task=f"t{i}", task_key=f"k{i}", principal="client")
            attempts[i] = await finish(bench.daemon, task)

        async with trio.open_nursery() as nursery:
            for i in range(30):
                nursery.start_soon(one, i)
        for i, attempt in attempts.items():
            assert attempt.status == "completed"
            assert np.frombuffer(attempt.outputs["y"].raw, np.float32).tolist() == (np.full(4, i, np.float32) @ WEIGHTS).tolist()
        stats = bench.daemon.stats()
        assert stats["agents"]["batching"]["requests"] >= 15
        assert (stats["running"], stats["riding"], stats["queue"]["queued"]) == (0, 0, 0)


# --- shared memory ---


@pytest.mark.parametrize("share_from", [0, 1 << 16])
async def test_large_tensors_arrive_whole_either_way(tmp_path: Path, share_from: int) -> None:
    async with running_pool(tmp_path, share_from=share_from, per_model=1) as pool:
        model = linear(tmp_path)
        rng = np.random.default_rng(1)
        for rows in (10, 200_000, 300_000, 3, 250_000):
            x = rng.standard_normal((rows, 4)).astype(np.float32)
            out = await pool.run(model, {"x": x})
            np.testing.assert_allclose(out["y"], x @ WEIGHTS, rtol=1e-4, atol=1e-5)
            before = out["y"].copy()
            await pool.run(model, {"x": np.zeros((rows, 4), np.float32)})
            assert (out["y"] == before).all(), "an answer changed after the next call"
        agent = pool._idle[0]
        shared = [line for line in Path(f"/proc/{agent.pid}/maps").read_text().splitlines() if "dim-tensors" in line]
        assert bool(shared) is bool(share_from)
        assert len(shared) <= 4
    assert "dim-tensors" not in Path("/proc/self/maps").read_text() or share_from


async def test_large_tensors_are_not_copied_on_the_loop(tmp_path: Path) -> None:
    async with running_pool(tmp_path, per_model=1) as pool:
        model = linear(tmp_path)
        x = np.zeros((4_000_000, 4), np.float32)
        await pool.run(model, {"x": x})
        longest, last, done = 0.0, trio.current_time(), False

        async def tick() -> None:
            nonlocal longest, last
            while not done:
                await trio.sleep(0)
                longest, last = max(longest, trio.current_time() - last), trio.current_time()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick)
            await pool.run(model, {"x": x})
            done = True
        # copying 64 MB takes longer; other work shares this machine
        assert longest < 0.25


# --- agents that take too much ---


async def test_memory_that_no_limit_of_the_system_counts_is_seen_and_the_agent_ended(tmp_path: Path) -> None:
    async with running_pool(tmp_path, watch_interval=0.02) as pool:
        path = slow_onnx(tmp_path / "slow.onnx")
        model = ModelFile("slow", "onnx", path, 1)

        async def shrink() -> None:
            while not pool._busy:
                await trio.sleep(0.01)
            next(iter(pool._busy)).grant = Grant(threads=1, memory=1 << 20)  # what it holds now is too much

        async with trio.open_nursery() as nursery:
            nursery.start_soon(shrink)
            with trio.fail_after(20), pytest.raises(AgentCrashed, match="more than its 1 MiB of memory"):
                await pool.run(model, {"x": np.ones(1, np.float32)})


async def test_short_memory_ends_idle_agents_least_valuable_first(tmp_path: Path) -> None:
    async with running_pool(tmp_path, watch_interval=0.02) as pool:
        often, once = linear(tmp_path), ModelFile("once", "onnx", tmp_path / "linear.onnx", 1)
        for _ in range(5):
            await pool.run(often, {"x": np.ones((1, 4), np.float32)})
        await pool.run(once, {"x": np.ones((1, 4), np.float32)})
        with trio.fail_after(10):
            while not all(a.used for a in pool._idle):
                await trio.sleep(0.01)
        pool.relieve(1)
        assert (pool.is_warm("linear"), pool.is_warm("once")) == (True, False)
        pool.relieve(1 << 40)
        assert pids(pool) == []


async def test_agents_can_be_started_anew_instead_of_forked(tmp_path: Path) -> None:
    """As on macOS."""
    async with running_pool(tmp_path, fork=False) as pool:
        out = await pool.run(linear(tmp_path), {"x": np.ones((1, 4), np.float32)})
        assert out["y"].shape == (1, 2)
        assert pool.confinement.complete
        pid = pids(pool)[0]
        os.kill(pid, signal.SIGKILL)
        await gone(pid)
