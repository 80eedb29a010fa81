"""Anybody may write a manifest for any model's bytes: what one says has no effect on tasks that go by another. Real agents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from dimnode.daemon.agent_protocol import Header
from dimnode.daemon.agents import AgentPool
from dimnode.daemon.batching import BatchSettings
from dimnode.daemon.grant import Grant
from dimnode.daemon.model_file import ModelFile, claims
from dimnode.domain.model import Needs
from dimnode.errors import DimError, ResourceExhausted
from tests.integration.daemon.test_agents import X, fast, pids, running_pool
from tests.support.models import linear_onnx

OTHER = '{"architecture": {"other": 1}}'


def told(pool: AgentPool) -> list[tuple[str, Path]]:
    """What each load was told of its model, from now on."""
    out: list[tuple[str, Path]] = []
    launch = pool._launch

    async def launched(model: Any, grant: Any) -> Any:
        out.append((model.about, model.path))
        return await launch(model, grant)

    pool._launch = launched
    return out


def test_claims_stand_for_all_that_a_manifest_says_and_are_the_same_in_every_process() -> None:
    said = claims("onnx", 1, OTHER)
    assert said == claims("onnx", 1, OTHER, Needs())
    assert len({said, claims("pt2", 1, OTHER), claims("onnx", 2, OTHER), claims("onnx", 1), claims("onnx", 1, OTHER, Needs(memory=5))}) == 5
    assert said == "736ea4abeb227e2f24ccabacf59dd6f63aa60cdf8ef7aeca531f27dc5d2925f7"


async def test_an_agent_that_loaded_a_model_as_another_manifest_says_gets_no_task(tmp_path: Path) -> None:
    async with running_pool(tmp_path, per_model=1) as pool:
        model = fast(tmp_path, "m")
        other, loads = replace(model, about=OTHER), told(pool)
        await pool.run(other, {"x": X})
        assert pool.holds(other.key)
        assert not pool.holds(model.key)
        await pool.run(model, {"x": X})
        await pool.warm_up(replace(model, about='{"architecture": {"third": 1}}'))
        assert [about for about, _ in loads] == [OTHER, "", '{"architecture": {"third": 1}}']
        await pool.run(other, {"x": X})
        assert (len(loads), len(pids(pool))) == (3, 3)


async def test_how_many_agents_a_model_may_have_and_who_waits_for_them_goes_by_manifest(tmp_path: Path) -> None:
    async with running_pool(tmp_path, per_model=1) as pool:
        model = fast(tmp_path, "m")
        other = replace(model, about=OTHER)
        agent = await pool.acquire(other)
        pool._short.add(other.key)
        with trio.fail_after(10):
            await pool.run(model, {"x": X})
        pool.release(agent)


def batchable(folder: Path, **changes: Any) -> ModelFile:
    path = linear_onnx(folder / "linear.onnx")
    return replace(ModelFile("linear", "onnx", path, path.stat().st_size, batchable=True), **changes)


async def test_what_was_found_out_about_rows_goes_by_manifest_and_ends_with_the_model(tmp_path: Path) -> None:
    async with running_pool(tmp_path) as pool:
        model = batchable(tmp_path)
        await pool.warm_up(model)
        assert pool.batches(model.key)
        assert not pool.batches(replace(model, about=OTHER).key)
        pool.forget("linear")
        assert not pool.batches(model.key)


@pytest.mark.parametrize("what", ["about", "path"])
async def test_requests_that_may_share_a_batch_run_the_model_that_they_name(tmp_path: Path, what: str) -> None:
    """Another manifest, or the same model in a place of its own."""
    (tmp_path / "again").mkdir()
    async with running_pool(tmp_path, batch=BatchSettings(delay=0.01)) as pool:
        first = batchable(tmp_path)
        second = replace(first, about=OTHER) if what == "about" else batchable(tmp_path / "again")
        loads = told(pool)
        for model in (first, second):
            await pool.warm_up(model)
            assert pool.batches(model.key)
            pool.relieve(1 << 40)
            await pool.run(model, {"x": np.ones((1, 4), np.float32)}, "client")
            assert loads[-1] == (model.about, model.path)
            pool.relieve(1 << 40)
        assert len(pool._batching._runners) == 2
        pool.forget("linear")
        assert not pool._batching._runners


@pytest.mark.parametrize("kind", ["failed", "memory"])
async def test_a_manifest_with_which_a_model_does_not_load_refuses_it_to_no_other(tmp_path: Path, kind: str) -> None:
    async with running_pool(tmp_path, max_crashes=2, backoff_first=0.01) as pool:
        model = fast(tmp_path, "m")
        theirs, launch = replace(model, about=OTHER), pool._launch

        async def launched(model: ModelFile, grant: Grant) -> Any:
            agent = await launch(model, grant)

            async def call(*_: object) -> tuple[Header, dict[str, Any]]:
                return Header(op="error", kind=kind, message="that does not load"), {}

            if model.about == OTHER:
                agent.call = call
            return agent

        pool._launch = launched
        for _ in range(2):
            with pytest.raises(DimError, match="does not load"):
                await pool.run(theirs, {"x": X})
        with pytest.raises(ResourceExhausted, match="2 times in a row"):
            await pool.run(theirs, {"x": X})
        await pool.run(model, {"x": X})
        with pytest.raises(ResourceExhausted, match="2 times in a row"):
            await pool.run(theirs, {"x": X})
