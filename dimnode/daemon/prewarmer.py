"""Keeps the models loaded that are about to be used. `warmth` decides; here it is done."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import trio

from dimnode.daemon.settings import PrewarmSettings
from dimnode.daemon.warmth import Warmth
from dimnode.domain.model import ModelRef
from dimnode.errors import DimError

PATIENCE = 60.0
"""Seconds until a model that could not be warmed is tried again."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Known:
    """A model that this node could warm."""

    cid: str
    manifest_cid: str
    providers: tuple[str, ...] = ()


class Prewarmer:
    def __init__(
        self,
        settings: PrewarmSettings,
        *,
        warm: Callable[[Known], Awaitable[None]],
        is_warm: Callable[[str], bool],
        room: Callable[[], bool],
        models: Callable[[], tuple[ModelRef, ...]],
        queued: Callable[[], Mapping[Known, int]],
    ) -> None:
        """``warm`` raises `DimError`; ``room``: an agent could be started without ending another."""
        self._settings = settings
        self._warm, self._is_warm, self._room, self._models, self._queued = warm, is_warm, room, models, queued
        self._warmth = Warmth(settings)
        self._known: dict[str, Known] = {}
        self._not_before: dict[str, float] = {}
        self._poked = trio.Event()
        self._kept: frozenset[str] = frozenset()
        self.warmed = self.failed = 0

    def keeps(self, cid: str) -> bool:
        """Wanted, as of the last look: not to be ended for idleness alone."""
        return cid in self._kept

    def used(self, known: Known) -> None:
        """A task asks for this model."""
        self._remember(known)
        self._warmth.used(known.cid, trio.current_time())
        self._poked.set()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. One model at a time: warming takes a core that tasks could have."""
        task_status.started()
        while self._settings.most:
            for known in self._wanted():
                await self._try(known)
            self._poked = trio.Event()
            with trio.move_on_after(self._settings.interval):
                await self._poked.wait()
                await trio.sleep(self._settings.interval / 10)  # a burst of tasks is looked at once

    def _wanted(self) -> list[Known]:
        queued = self._queued()
        for known in queued:
            self._remember(known)
        refs = [r for r in self._models() if {r.cid, r.id} & set(self._settings.pinned)]
        for ref in refs:
            self._remember(Known(ref.cid, ref.manifest_cid))
        waiting = {known.cid: n for known, n in queued.items()}
        now = trio.current_time()
        chosen = self._warmth.wanted(pinned=[r.cid for r in refs], queued=waiting, now=now)
        self._kept = frozenset(chosen)
        return [
            self._known[cid] for cid in chosen if cid in self._known and not self._is_warm(cid) and self._not_before.get(cid, now) <= now
        ]

    async def _try(self, known: Known) -> None:
        if self._is_warm(known.cid) or not self._room():
            return
        try:
            await self._warm(known)
            self.warmed += 1
            self._not_before.pop(known.cid, None)
        except DimError as e:
            self.failed += 1
            self._not_before[known.cid] = trio.current_time() + PATIENCE
            _log.info("a model could not be warmed", extra={"model_cid": known.cid, "reason": e.message})

    def _remember(self, known: Known) -> None:
        while len(self._known) >= 2048:
            del self._known[next(iter(self._known))]
        self._known[known.cid] = known
