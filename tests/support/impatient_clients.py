"""Clients that lose patience soon, and what tests of their failover do with them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from dimnode.client import Settings, TransferSettings
from dimnode.errors import DimError
from dimnode.rpc.finder import FinderSettings
from dimnode.rpc.roaming import ClientSettings
from tests.support.orchestrators import Orchestrator, Swarm

FORM = {"pattern": "collaborative", "config": {"model_id": "m"}}
QUICK = FinderSettings(greeting=0.4, stagger=0.05, silence=0.4, refresh=0.3)
HUNG_WITHIN = 5.0
"""Seconds: silence, two greetings in vain, and a slow machine."""


def settings(transfer: TransferSettings | None = None, **changes: Any) -> Settings:
    connection: dict[str, Any] = {"timeout": 20.0, "finder": QUICK, **changes}
    return Settings(ClientSettings(**connection), transfer or TransferSettings(poll=0.02))


def background(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Runs it in a thread; the list gets what it returns or the `DimError` that it raises."""
    out: list[Any] = []

    def run() -> None:
        try:
            out.append(work())
        except DimError as e:
            out.append(e)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, out


def seats(swarm: Swarm, count: int) -> list[Orchestrator]:
    return [swarm.start() for _ in range(count)]
