"""What a node and a cabinet demand of the sandbox, with real agents on a system that lacks some of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dimnode.daemon.sandbox.report import Confinement
from dimnode.domain.task import CabinetQuery
from dimnode.errors import FailedPrecondition
from tests.integration.daemon.test_agents import X, fast, pids, running_pool
from tests.support.agent_starts import NO_LANDLOCK, first
from tests.support.daemon import finish, order, running_daemon, with_agents
from tests.support.models import linear_onnx

COMPLETE = Confinement(files=("x",), network=("x",), processes=("x",), privileges=("x",), limits=("x",))


async def test_what_is_required_and_there_is_used_and_off_is_told(tmp_path: Path) -> None:
    async with running_pool(tmp_path, sandbox="require") as pool:
        await pool.warm_up(fast(tmp_path))
    async with running_pool(tmp_path, sandbox="off") as pool:
        assert not pool.confinement.complete
        await pool.warm_up(fast(tmp_path))
        assert pool.confinement.missing() == ("files", "network", "processes", "privileges")


async def test_what_is_required_and_cannot_be_had_is_refused_by_the_agent(tmp_path: Path) -> None:
    async with running_pool(tmp_path, sandbox="require", environment=first(tmp_path / "first", NO_LANDLOCK)) as pool:
        with pytest.raises(FailedPrecondition, match="cannot confine agents as required; missing: files") as refused:
            await pool.run(fast(tmp_path), {"x": X})
        assert "daemon.sandbox" in (refused.value.hint or "")
        assert pids(pool) == []
        assert pool.statistics()["refused_models"] == 0


async def test_a_cabinet_that_demands_a_sandbox_gives_nothing_to_an_agent_without_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=np.ones((12, 4), np.float32))
    settings = with_agents(environment=first(tmp_path / "first", NO_LANDLOCK))
    async with running_daemon(tmp_path / "home", settings=settings) as bench:
        manifest, cid = await bench.daemon.add_model_file(linear_onnx(tmp_path / "m.onnx"), id="m", licence="", batch_axis=None)
        await bench.daemon.add_cabinet("rows", tmp_path / "rows.npz", {"sandbox": True})
        await bench.daemon.add_cabinet("open", tmp_path / "rows.npz", None)
        pool = bench.daemon._pool
        assert await bench.daemon.prewarm(manifest.cid, cid, ())
        pool._confinement = COMPLETE  # what the last agent, or the look at the system, said
        refused = await finish(bench.daemon, order(manifest, cid, cabinet=CabinetQuery(name="rows")))
        assert refused.error is not None
        assert refused.error.code == "PERMISSION_DENIED"
        assert "complete sandbox" in refused.error.message
        assert [a["calls"] for a in pool.statistics()["agents"]] == [1], "it was told more than to load its model"
        done = await finish(bench.daemon, order(manifest, cid, cabinet=CabinetQuery(name="open"), task="u"))
        assert done.status == "completed"


async def test_what_is_in_force_is_in_the_heartbeat(tmp_path: Path) -> None:
    settings = with_agents(environment=first(tmp_path / "first", NO_LANDLOCK))
    async with running_daemon(tmp_path / "home", settings=settings) as bench:
        assert bench.daemon.capabilities().sandbox == ("files", "network", "processes", "privileges", "limits")
        await bench.daemon.add_model_file(linear_onnx(tmp_path / "m.onnx"), id="m", licence="", batch_axis=None)
        assert bench.daemon.capabilities().sandbox == ("network", "processes", "privileges", "limits"), "as the agent found it"
