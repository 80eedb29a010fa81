"""`Tasks` on virtual time: work that takes its time, a journal that can crash, callers that come and go."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from dimnode.clock import TrioClock
from dimnode.daemon.execution import Execution
from dimnode.daemon.settings import DaemonSettings
from dimnode.daemon.tasks import Tasks
from dimnode.domain.record import Attempt, Ballot, SignedEntry
from dimnode.domain.task import TaskOrder, TaskUpdate
from dimnode.state.memory_journal import MemoryDisk, MemoryJournal
from tests.support.entries import FakeSigner

SETTINGS = DaemonSettings(slots=2, queue_capacity=20, default_timeout=1000.0)


def owner(n: int, peer: str = "owner") -> Ballot:
    return Ballot(n, peer, "boot")


def order(task: str = "t", seconds: float = 1.0, n: int = 1, **more: Any) -> TaskOrder:
    """Work of so many seconds, by the owner with ballot ``n``."""
    base: dict[str, Any] = {"job": "job-1", "attempt": 1, "ballot": owner(n), "task_key": "k", "principal": str(seconds)}
    return TaskOrder(task=task, model_id="m", model_cid="c", manifest_cid="f", **{**base, **more})


@dataclass
class Bench:
    tasks: Tasks
    journal: MemoryJournal
    nursery: trio.Nursery
    ran: list[str] = field(default_factory=list)
    """Tasks whose work has begun."""

    async def take(self, task: TaskOrder) -> Attempt:
        """Stays to the end."""
        return attempt_of(await self.entry(task))

    async def entry(self, task: TaskOrder) -> SignedEntry:
        updates: list[TaskUpdate] = []
        await self.follow(task, updates)
        assert updates[-1].entry is not None
        return updates[-1].entry

    async def leave(self, task: TaskOrder) -> None:
        """Stays until the task is accepted, then goes."""
        async with aclosing(self.tasks.watch(task)) as updates:
            assert (await anext(updates)).stage == "accepted"

    async def follow(self, task: TaskOrder, into: list[TaskUpdate]) -> None:
        async with aclosing(self.tasks.watch(task)) as updates:
            async for update in updates:
                into.append(update)  # noqa: PERF401 - seen by others while it grows


def attempt_of(entry: SignedEntry) -> Attempt:
    body = entry.body()
    assert isinstance(body, Attempt)
    return body


@asynccontextmanager
async def running(disk: MemoryDisk | None = None, *, sync: float = 0.0, settings: DaemonSettings = SETTINGS) -> AsyncGenerator[Bench]:
    """Until the block ends: then everything stops where it is, and what was not durable is gone."""
    journal = MemoryJournal(disk or MemoryDisk(), sync)
    signer = FakeSigner("node")

    async def work(execution: Execution) -> Attempt:
        task = execution.order
        bench.ran.append(task.task)
        execution.stage("running")
        await trio.sleep(float(task.principal))
        return Attempt(
            job=task.job, ballot=task.ballot, task=task.task, attempt=task.attempt, task_key=task.task_key, status="completed", node="node"
        )

    tasks = Tasks(
        signer=signer, clock=TrioClock(), journal=journal, settings=settings, work=work, refusal=lambda order: None, on_change=lambda: None
    )
    async with trio.open_nursery() as nursery:
        bench = Bench(tasks, journal, nursery)
        await nursery.start(tasks.run)
        yield bench
        nursery.cancel_scope.cancel()
    journal.crash()
