"""Jobs on several seats, whichever drives them."""

from __future__ import annotations

from typing import Any

import trio

from dimnode.orchestrator import Orchestrator
from tests.support.orchestrated_jobs import form
from tests.support.several_seats import SeatNode, Town

CONCAT = {"model_id": "double", "aggregation": {"method": "concat"}}


def api(node: SeatNode) -> Orchestrator:
    assert node.orchestrator is not None
    return node.orchestrator


async def owner_of(here: Town, job: str) -> SeatNode:
    """The seat that drives it."""
    with trio.fail_after(30):
        while True:
            for node in here.seated:
                if node.orchestrator is not None and job in node.orchestrator.owned():
                    return node
            await trio.sleep(0.05)


async def submitted(here: Town, **changes: Any) -> tuple[str, SeatNode]:
    node = here.living()[0]
    job = (await api(node).submit(form(**changes), "me")).job_id
    return job, node


async def ended(here: Town, job: str) -> Any:
    """Its last document, at whichever seat has it."""
    with trio.fail_after(5000):
        while True:
            for node in here.living():
                if node.orchestrator is not None and node.table.holds(job) and node.table.view(job).terminal:
                    return await node.orchestrator.get(job)
            await trio.sleep(0.1)
