"""Jobs for an orchestrator on virtual time: forms, a running orchestrator, outcomes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import trio

from dimnode.domain.job_form import JobForm, parse_job_form
from dimnode.domain.tensors import from_numpy, to_json
from dimnode.errors import DimError
from dimnode.orchestrator import Orchestrator, OrchestratorSettings
from dimnode.records.table import RecordTable, TableSettings
from dimnode.state.memory_journal import MemoryJournal
from tests.support.orchestration import FakeSwarm, identity


async def double_model(swarm: FakeSwarm, model_id: str = "double") -> None:
    await swarm.add_model(model_id, lambda a: {"y": a["x"] * 2}, {"x": ("N", 2)}, {"y": ("N", 2)})


def form(**changes: Any) -> JobForm:
    base: dict[str, Any] = {
        "pattern": "chained",
        "config": {"pipeline": [{"step": 1, "model_id": "double"}]},
        "client_data": {"x": to_json(from_numpy(np.ones((3, 2), np.float32)))},
    }
    return parse_job_form({**base, **changes})


@asynccontextmanager
async def running(
    swarm: FakeSwarm,
    journal: MemoryJournal | None = None,
    keep: TableSettings | None = None,
    table: RecordTable | None = None,
    **settings: Any,
) -> AsyncGenerator[Orchestrator]:
    journal = journal or MemoryJournal()
    table = table or RecordTable(journal, identity("orchestrator"), settings=keep)
    await table.open()
    orchestrator = swarm.orchestrator(journal, OrchestratorSettings(**settings), table=table)
    async with trio.open_nursery() as nursery:
        await nursery.start(orchestrator.run)
        yield orchestrator
        nursery.cancel_scope.cancel()


def held_by(gate: trio.Event, error: DimError | None = None) -> Callable[[Any], Awaitable[None]]:
    """A task that runs until the gate opens, and fails then if there is an error to fail with."""

    async def behave(order: Any) -> None:
        del order
        await gate.wait()
        if error is not None:
            raise error

    return behave


async def finished(orchestrator: Orchestrator, job: str) -> dict[str, Any]:
    last: dict[str, Any] = {}
    async for document in orchestrator.watch(job):
        last = dict(document)
    return last


async def outcome(orchestrator: Orchestrator, job_form: JobForm) -> dict[str, Any]:
    accepted = await orchestrator.submit(job_form, "me")
    return await finished(orchestrator, accepted.job_id)
