"""What a daemon does when the machine runs short: real agents, and looks at the machine that the test makes up."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from dimnode.daemon.gpus import Gpu
from dimnode.daemon.grant import Grant
from dimnode.daemon.resources import Snapshot
from dimnode.errors import ResourceExhausted
from p2p.ipfs.memory import MemoryExchange
from tests.support.daemon import SETTINGS, Bench, finish, order, running_daemon
from tests.support.models import linear_onnx

GIB = 1 << 30
X = np.ones((2, 4), np.float32)
SHORT = replace(SETTINGS, min_free_memory=GIB, min_free_disk=GIB, resource_interval=3600.0)
"""Looks are made by the tests alone."""


@dataclass
class Machine:
    memory: int = 64 * GIB
    disk: int = 64 * GIB
    cards: tuple[Gpu, ...] = field(default=())

    def look(self, folder: Path, before: tuple[Gpu, ...]) -> Snapshot:
        return Snapshot(64 * GIB, self.memory, 0.0, self.disk, self.cards)

    async def seen(self, bench: Bench) -> None:
        """As after `ResourceMonitor`'s interval."""
        monitor = bench.daemon._resources
        monitor._latest = await monitor._look()
        monitor._on_change()


async def add(bench: Bench, path: Path, id: str, **needs: Any) -> tuple[Any, str]:
    model = linear_onnx(path / f"{id}.onnx", batch=id)  # of another CID for each id
    return await bench.daemon.add_model_file(model, id=id, licence="", batch_axis=None, form=json.dumps({"needs": needs}))


def agents(bench: Bench) -> list[dict[str, Any]]:
    return bench.daemon.stats()["agents"]["agents"]


async def until(true: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not true():
            await trio.sleep(0.01)


async def test_when_memory_is_seen_to_be_short_idle_agents_go(tmp_path: Path) -> None:
    machine = Machine()
    async with running_daemon(tmp_path / "home", settings=SHORT, look=machine.look) as bench:
        model, manifest = await add(bench, tmp_path, "m")
        assert await bench.daemon.prewarm(model.cid, manifest, ())
        await machine.seen(bench)
        assert len(agents(bench)) == 1
        machine.memory = GIB - 1
        await machine.seen(bench)
        assert agents(bench) == []


async def test_the_monitor_itself_tells_of_each_look(tmp_path: Path) -> None:
    machine = Machine()
    quick = replace(SHORT, resource_interval=0.01)
    async with running_daemon(tmp_path / "home", settings=quick, look=machine.look) as bench:
        model, manifest = await add(bench, tmp_path, "m")
        assert await bench.daemon.prewarm(model.cid, manifest, ())
        machine.memory = 0
        await until(lambda: agents(bench) == [])


@pytest.mark.parametrize(("short", "what"), [({"memory": GIB - 1}, "memory"), ({"disk": GIB - 1}, "disk")])
async def test_while_the_reserve_is_touched_no_order_is_accepted(tmp_path: Path, short: dict[str, int], what: str) -> None:
    machine = Machine()
    async with running_daemon(tmp_path / "home", settings=SHORT, look=machine.look) as bench:
        model, manifest = await add(bench, tmp_path, "m")
        for name, value in short.items():
            setattr(machine, name, value)
        await machine.seen(bench)
        with pytest.raises(ResourceExhausted, match=f"not enough free {what}"):
            await finish(bench.daemon, order(model, manifest, {"x": X}))
        assert bench.daemon.stats()["counters"]["accepted"] == 0
        assert await bench.journal.load("job-1") == ()


async def test_what_was_granted_is_not_granted_twice_and_an_order_without_room_is_refused_at_the_door(tmp_path: Path) -> None:
    machine = Machine(memory=7 * GIB)
    async with running_daemon(tmp_path / "home", settings=SHORT, look=machine.look) as bench:
        first, second = await add(bench, tmp_path, "a"), await add(bench, tmp_path, "b", memory=4 * GIB)
        await machine.seen(bench)
        await machine.seen(bench)
        assert bench.daemon.load().memory_free == 6 * GIB
        granted = bench.daemon._admission.grant("onnx", 1, second[0].needs, bench.daemon._pool.idle())
        assert bench.daemon.load().memory_free == 2 * GIB
        with pytest.raises(ResourceExhausted, match="not enough free memory"):
            await finish(bench.daemon, order(*second, {"x": X}))
        assert bench.daemon.stats()["counters"]["accepted"] == 0
        assert (await finish(bench.daemon, order(*first, {"x": X}, task="small"))).status == "completed"
        await machine.seen(bench)
        await machine.seen(bench)
        assert bench.daemon.load().memory_free == 2 * GIB, "it is still loading"
        bench.daemon._admission.loaded(granted)
        await machine.seen(bench)
        assert (await finish(bench.daemon, order(*second, {"x": X}, task="now it shows"))).status == "completed"


@pytest.mark.parametrize(("short", "words"), [({"memory": 3 * GIB}, "not enough free memory"), ({"disk": GIB}, "not enough free disk")])
async def test_a_shortage_that_shows_only_after_acceptance_is_no_failure_of_the_task(
    tmp_path: Path, short: dict[str, int], words: str
) -> None:
    """The node does not know the model yet: what it needs is seen when it has been fetched."""
    exchange, machine = MemoryExchange(), Machine(**short)
    async with running_daemon(tmp_path / "a", exchange=exchange, name="a") as author:
        model, manifest = await add(author, tmp_path, "m", memory=4 * GIB)
        async with running_daemon(tmp_path / "b", settings=SHORT, look=machine.look, exchange=exchange, name="b") as bench:
            done = await finish(bench.daemon, order(model, manifest, {"x": X}, providers=("a",)))
            assert (done.status, done.shortage, done.retryable) == ("failed", True, True)
            assert done.error is not None
            assert done.error.code == "RESOURCE_EXHAUSTED"
            assert words in done.error.message


async def test_a_manifest_tells_what_the_trial_run_took_unless_the_author_says_more(tmp_path: Path) -> None:
    async with running_daemon(tmp_path / "home") as bench:
        measured, again = await add(bench, tmp_path, "a"), await add(bench, tmp_path, "a")
        assert 16 << 20 < measured[0].needs.memory < 4 * GIB
        assert measured[0].needs.memory % (64 << 20) == 0
        assert measured == again, "the same model gets the same manifest"
        assert (await add(bench, tmp_path, "b", memory=5 * GIB))[0].needs.memory == 5 * GIB


async def test_a_card_that_no_loader_can_use_is_told_but_runs_nothing(tmp_path: Path) -> None:
    machine = Machine(cards=(Gpu("card", 16 * GIB, 8 * GIB),))
    async with running_daemon(tmp_path / "home", settings=SHORT, look=machine.look) as bench:
        bench.daemon._admission._built_for = lambda format: ()
        can, load = bench.daemon.capabilities(), bench.daemon.load()
        assert (can.gpus, can.gpu_memory, can.gpu_formats) == (("card",), (16 * GIB,), ())
        assert load.gpu_free == (8 * GIB - SHORT.min_free_gpu_memory,)
        bench.daemon._admission._built_for = lambda format: ("cuda",) if format == "onnx" else ()
        assert bench.daemon.capabilities().gpu_formats == ("onnx",)
        machine.cards = ()
        await machine.seen(bench)
        assert bench.daemon.capabilities().gpus == bench.daemon.load().gpu_free == ()


async def test_an_agent_that_is_seen_to_hold_too_much_of_its_card_is_ended(tmp_path: Path) -> None:
    machine = Machine()
    async with running_daemon(tmp_path / "home", settings=SHORT, look=machine.look) as bench:
        model, manifest = await add(bench, tmp_path, "m")
        assert await bench.daemon.prewarm(model.cid, manifest, ())
        (agent,) = bench.daemon._pool._idle
        agent.grant = Grant(threads=1, memory=agent.grant.memory, device="cuda", gpu=0, gpu_memory=1 << 20)
        machine.cards = (Gpu("card", 16 * GIB, 8 * GIB, ((agent.pid, 4 * GIB),)),)
        await machine.seen(bench)
        await until(lambda: not agent.alive())
