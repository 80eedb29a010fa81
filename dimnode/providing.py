"""Tells the swarm's DHT what content this node has for everybody: models and their manifests, published states, what people pinned.

Only roots: who has a root has what is below it. Blocks of jobs are never announced: pins that jobs made are left out by their reasons, and
whatever has an audience ([decision 16](../docs/decisions/0016-a-jobs-blocks.md)) by that, right before it would be.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import structlog
import trio

from dimnode.core.provide_plan import ProvidePlan, ProvideSettings
from dimnode.garbage import PASSING
from dimnode.records.holder import PIN as COPY
from p2p.ipfs.api import ContentError, Pin

log = structlog.get_logger(__name__)
_OF_JOBS = (COPY, "output of ", "result of ")
"""How the reasons of pins begin that belong to jobs."""


class Content(Protocol):
    """What of the content store is needed."""

    async def is_public(self, cid: str) -> bool: ...
    async def list_pins(self) -> dict[str, Pin]: ...


class Announcer(Protocol):
    """What of the DHT is needed."""

    async def provide(self, cid: str) -> int: ...
    def withdraw(self, cid: str) -> None: ...


def worth_announcing(models: Collection[str], pins: Mapping[str, Pin]) -> list[str]:
    """CIDs, models first, then pins, the newest first; without what jobs pinned."""
    public = {cid: pin for cid, pin in pins.items() if pin.reason not in PASSING and not pin.reason.startswith(_OF_JOBS)}
    return list(dict.fromkeys((*models, *sorted(public, key=lambda cid: (-public[cid].at, cid)))))


class Providing:
    """``models``: CIDs of the models and manifests that this node tells others about. ``met``: whether there is anybody to tell."""

    def __init__(
        self,
        dht: Announcer,
        store: Content,
        models: Callable[[], Collection[str]],
        met: Callable[[], bool],
        settings: ProvideSettings | None = None,
    ) -> None:
        self._dht = dht
        self._store = store
        self._models = models
        self._met = met
        self._settings = settings or ProvideSettings()
        self._plan = ProvidePlan(self._settings, random.Random())  # noqa: S311 - jitter

    def statistics(self) -> Mapping[str, int]:
        return {"announced": self._plan.provided, "left_out": self._plan.left_out}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        task_status.started()
        while True:
            if self._met():
                await self._look()
            await trio.sleep(self._settings.look)

    async def _look(self) -> None:
        pins = await self._store.list_pins()
        for gone in self._plan.update(worth_announcing(self._models(), pins), trio.current_time()):
            self._dht.withdraw(gone)
        while (root := self._plan.next(trio.current_time())) is not None:
            try:
                if await self._store.is_public(root):
                    self._plan.announced(root, await self._dht.provide(root), trio.current_time())
                else:
                    self._plan.withheld(root, trio.current_time())
            except (ContentError, OSError) as error:
                log.debug("providing.failed", cid=root, reason=str(error))
                self._plan.announced(root, 0, trio.current_time())
            await trio.sleep(self._settings.pace)
