"""Models that fail again and again are left alone for a while; those that only met impatient or greedy callers are not. Real agents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from dimnode.daemon import model_about
from dimnode.daemon.agent_protocol import Header
from dimnode.daemon.agents import AgentPool, ModelFile
from dimnode.domain.model import GoldenPair
from dimnode.domain.tensors import TensorValue
from dimnode.errors import DimError, FailedPrecondition, ResourceExhausted
from tests.integration.daemon.test_agents import X, fast, pids, running_pool, slow
from tests.support.models import linear_onnx, slow_onnx

ONE = {"x": np.ones(1, np.float32)}


async def hang(pool: AgentPool, model: ModelFile, owner: str | None = None) -> None:
    with trio.move_on_after(0.5) as scope:
        await pool.run(model, ONE, owner)
    assert scope.cancelled_caught


async def test_a_model_that_never_answers_in_its_callers_time_is_refused_in_the_end(tmp_path: Path) -> None:
    async with running_pool(tmp_path, hang_seconds=0.1, max_crashes=2, backoff_first=0.01) as pool:
        await pool.warm_up(fast(tmp_path))  # the framework is there
        for _ in range(2):
            await hang(pool, slow(tmp_path))
        with trio.fail_after(10), pytest.raises(ResourceExhausted, match=r"hung 2 times in a row.*no answer after"):
            await pool.run(slow(tmp_path), ONE)
        await pool.run(fast(tmp_path), {"x": X})


async def test_so_is_one_whose_requests_run_in_batches(tmp_path: Path) -> None:
    async with running_pool(tmp_path, hang_seconds=0.1, max_crashes=2, backoff_first=0.01) as pool:
        await pool.warm_up(fast(tmp_path))
        path = slow_onnx(tmp_path / "s.onnx", batch="N")
        model = ModelFile("slow", "onnx", path, 1, batchable=True)
        pool._batching.learn(model.key, True)
        for _ in range(2):
            await hang(pool, model, "client")
        with trio.fail_after(10), pytest.raises(ResourceExhausted, match="hung 2 times in a row"):
            await pool.run(model, ONE, "client")


async def test_short_deadlines_and_cancelled_calls_refuse_no_model(tmp_path: Path) -> None:
    async with running_pool(tmp_path, hang_seconds=30, max_crashes=1) as pool:
        await pool.warm_up(fast(tmp_path))
        for _ in range(2):
            await hang(pool, slow(tmp_path))
        assert pool.statistics()["refused_models"] == 0
    async with running_pool(tmp_path, hang_seconds=0.0, max_crashes=1) as pool:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.run, slow(tmp_path), ONE)
            with trio.fail_after(20):
                while not pool.statistics()["busy"]:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()  # somebody has changed their mind
        assert pool.statistics()["refused_models"] == 0


async def test_a_rejected_model_is_not_loaded_again_for_every_task_and_costs_nobody_an_agent(tmp_path: Path) -> None:
    async with running_pool(tmp_path, max_agents=1) as pool:
        junk = tmp_path / "junk.onnx"
        junk.write_bytes(b"junk")
        model = ModelFile("j", "onnx", junk, 4)
        with pytest.raises(FailedPrecondition, match="cannot be loaded"):
            await pool.run(model, {})
        await pool.warm_up(fast(tmp_path))
        with_fast, started = pids(pool), pool.statistics()["started"]
        for _ in range(3):
            with pytest.raises(FailedPrecondition, match="cannot be loaded"):
                await pool.run(model, {})
        assert (pids(pool), pool.statistics()["started"]) == (with_fast, started)
        assert pool.statistics()["refused_models"] == 1
        with pytest.raises(FailedPrecondition, match="cannot be loaded"):  # another manifest is another question
            await pool.run(replace(model, about='{"architecture": {}}'), {})
        assert pool.statistics()["started"] == started + 1
        linear_onnx(junk)
        await pool.inspect(model)  # who asks for a check gets one, and what it finds holds
        assert (await pool.run(model, {"x": X}))["y"].shape == (2, 2)


async def test_a_malformed_manifest_gets_nobody_elses_file_refused(tmp_path: Path) -> None:
    golden = GoldenPair(inputs={"x": TensorValue(dtype="float32", shape=(7,), raw=b"xx")})
    async with running_pool(tmp_path, max_crashes=1) as pool:
        good = fast(tmp_path)
        for _ in range(3):
            with pytest.raises(FailedPrecondition, match="manifest is malformed"):
                await pool.run(replace(good, about=model_about.encode(golden=golden)), {"x": X})
        assert (await pool.run(good, {"x": X}))["y"].shape == (2, 2)


@pytest.mark.parametrize("kind", ["memory", "input", "failed"])
async def test_too_many_rows_or_wrong_ones_are_no_proof_that_a_model_works(tmp_path: Path, kind: str) -> None:
    async with running_pool(tmp_path, max_crashes=2, backoff_first=0.01) as pool:
        model = fast(tmp_path, "m")
        pool._health.crashed("m", "SIGSEGV", trio.current_time())
        agent = await pool.acquire(model)

        async def call(*_: object) -> tuple[Header, dict[str, Any]]:
            return Header(op="error", kind=kind, message="that is too much"), {}

        agent.call = call
        with pytest.raises(DimError, match="too much"):
            await pool.run_on(agent, model, {"x": X})
        assert bool(pids(pool)) is (kind != "memory"), "an agent that ran out of memory is not used again"
        assert pool.statistics()["refused_models"] == 0
        pool._health.crashed("m", "SIGSEGV", trio.current_time())
        assert pool.statistics()["refused_models"] == 1
