"""A daemon with real agents over in-memory seams, and orders for it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import trio

from dimnode.clock import SystemClock
from dimnode.daemon.resources import Look, look_around
from dimnode.daemon.service import Daemon
from dimnode.daemon.settings import AgentSettings, DaemonSettings
from dimnode.domain.record import Attempt, Ballot
from dimnode.domain.task import TaskInput, TaskOrder
from dimnode.domain.tensors import from_numpy
from dimnode.state.memory_journal import MemoryDisk, MemoryJournal
from p2p.ipfs.memory import MemoryExchange, MemoryStore
from tests.support.entries import FakeSigner, fake_verify

BALLOT = Ballot(1, "owner", "boot")
AGENTS = AgentSettings(max_agents=3)
SETTINGS = DaemonSettings(slots=2, queue_capacity=4, fetch_timeout=2.0, agents=AGENTS, min_free_memory=0, min_free_disk=0)


@dataclass
class Bench:
    daemon: Daemon
    store: MemoryStore
    journal: MemoryJournal
    nursery: trio.Nursery
    changes: list[str]


@asynccontextmanager
async def running_daemon(
    folder: Path,
    *,
    settings: DaemonSettings = SETTINGS,
    name: str = "node",
    disk: MemoryDisk | None = None,
    exchange: MemoryExchange | None = None,
    look: Look = look_around,
) -> AsyncGenerator[Bench]:
    store = MemoryStore(name, exchange or MemoryExchange())
    journal = MemoryJournal(disk or MemoryDisk())
    changes: list[str] = []
    daemon = Daemon(
        signer=FakeSigner(name), clock=SystemClock(), journal=journal, store=store, folder=folder, settings=settings,
        price=2.5, boot="boot-1", on_change=changes.append, verify=fake_verify, look=look,
    )  # fmt: skip
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        yield Bench(daemon, store, journal, nursery, changes)
        nursery.cancel_scope.cancel()


def with_agents(**changes: Any) -> DaemonSettings:
    return replace(SETTINGS, agents=replace(AGENTS, **changes))


def order(model: Any, manifest_cid: str, inputs: dict[str, Any] | None = None, **more: Any) -> TaskOrder:
    items = tuple(TaskInput(name=n, value=from_numpy(np.asarray(a))) for n, a in (inputs or {}).items())
    base: dict[str, Any] = {"job": "job-1", "task": "t", "attempt": 1, "ballot": BALLOT, "task_key": "k", "inputs": items}
    return TaskOrder(model_id=model.id, model_cid=model.cid, manifest_cid=manifest_cid, **{**base, **more})


async def finish(daemon: Daemon, task: TaskOrder) -> Attempt:
    """Runs a task to its end and returns its attempt."""
    entry = None
    async for update in daemon.run_task(task, "caller"):
        entry = update.entry
    assert entry is not None
    body = entry.body()
    assert isinstance(body, Attempt)
    return body
