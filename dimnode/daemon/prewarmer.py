"""Keeps the models on disk that are pinned, and those loaded that are about to be used. `warmth` decides; here it is done."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import trio

from dimnode.daemon.settings import PrewarmSettings
from dimnode.daemon.warmth import Warmth
from dimnode.domain.model import ModelRef
from dimnode.errors import DimError

PATIENCE = 60.0
"""Seconds until a model that could not be fetched or warmed is tried again."""
REMEMBERED = 2048
V = TypeVar("V")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Known:
    """A model that this node could warm."""

    cid: str
    manifest_cid: str
    providers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stock:
    """What there is of models, here and elsewhere, and what can be done about it."""

    models: Callable[[], tuple[ModelRef, ...]]
    """Those of this node."""
    find: Callable[[str], Known | None]
    """One that other nodes have, by id or CID."""
    queued: Callable[[], Mapping[Known, int]]
    """Tasks that wait, by model."""
    is_here: Callable[[str], bool]
    """Its file is in the cache."""
    is_warm: Callable[[str], bool]
    may_warm: Callable[[], bool]
    """An agent could be started without ending one that is wanted."""
    fetch: Callable[[Known], Awaitable[None]]
    """Raises `DimError`, as ``warm`` does."""
    warm: Callable[[Known], Awaitable[None]]


class Prewarmer:
    def __init__(self, settings: PrewarmSettings, stock: Stock) -> None:
        self._settings, self._stock = settings, stock
        self._warmth = Warmth(settings)
        self._known: dict[str, Known] = {}
        self._removed: dict[str, None] = {}
        """Models that were removed and that nobody has asked for since, also if they are pinned."""
        self._not_before: dict[str, float] = {}
        self._poked = trio.Event()
        self._kept: frozenset[str] = frozenset()
        self._at_work: dict[str, trio.CancelScope] = {}
        self.warmed = self.failed = 0

    def keeps(self, cid: str) -> bool:
        """Wanted, as of the last look: not to be ended for idleness alone."""
        return cid in self._kept

    def used(self, known: Known) -> None:
        """A task asks for this model."""
        self._removed.pop(known.cid, None)
        self._remember(known)
        self._warmth.used(known.cid, trio.current_time())
        self._poked.set()

    def forget(self, cid: str) -> None:
        """A model was removed: it is not brought back unless somebody asks for it."""
        _bounded(self._removed)[cid] = None
        self._known.pop(cid, None)
        self._warmth.forget(cid)
        self._kept -= {cid}
        if cid in self._at_work:
            self._at_work[cid].cancel()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            if self._settings.pinned:
                nursery.start_soon(self._keep_here)
            if self._settings.most:
                nursery.start_soon(self._keep_warm)
            task_status.started()

    async def _keep_here(self) -> None:
        """One download at a time, which may take long: nothing else waits for it."""
        while True:
            for known in self._pinned():
                if not self._stock.is_here(known.cid) and self._may_try(known.cid):
                    await self._try(self._stock.fetch, known)
            await trio.sleep(self._settings.interval)

    async def _keep_warm(self) -> None:
        """One model at a time: warming takes a core that tasks could have."""
        while True:
            for known in self._wanted():
                if not self._stock.is_warm(known.cid) and self._stock.may_warm() and await self._try(self._stock.warm, known):
                    self.warmed += 1
            self._poked = trio.Event()
            with trio.move_on_after(self._settings.interval):
                await self._poked.wait()
                await trio.sleep(self._settings.interval / 10)  # a burst of tasks is looked at once

    def _pinned(self) -> list[Known]:
        """Those of this node before what others call so."""
        here = self._stock.models()
        out: list[Known] = []
        for name in self._settings.pinned:
            mine = [Known(r.cid, r.manifest_cid) for r in here if name in (r.cid, r.id)]
            out += mine or [known for known in [self._stock.find(name)] if known is not None]
        return [known for known in out if known.cid not in self._removed]

    def _wanted(self) -> list[Known]:
        queued, pinned = self._stock.queued(), self._pinned()
        for known in (*queued, *pinned):
            self._remember(known)
        waiting = {known.cid: n for known, n in queued.items() if known.cid not in self._removed}
        chosen = self._warmth.wanted(pinned=[k.cid for k in pinned], queued=waiting, now=trio.current_time())
        self._kept = frozenset(chosen)
        fetching = {k.cid for k in pinned if not self._stock.is_here(k.cid)} - waiting.keys()
        return [self._known[cid] for cid in chosen if cid in self._known and cid not in fetching and self._may_try(cid)]

    def _may_try(self, cid: str) -> bool:
        return cid not in self._at_work and self._not_before.get(cid, 0.0) <= trio.current_time()

    async def _try(self, what: Callable[[Known], Awaitable[None]], known: Known) -> bool:
        if not self._may_try(known.cid):
            return False
        scope = self._at_work[known.cid] = trio.CancelScope()
        try:
            with scope:
                await what(known)
                self._not_before.pop(known.cid, None)
                return True
        except DimError as e:
            self.failed += 1
            _bounded(self._not_before)[known.cid] = trio.current_time() + PATIENCE
            _log.info("a model could not be kept ready", extra={"model_cid": known.cid, "reason": e.message})
        finally:
            del self._at_work[known.cid]
        return False

    def _remember(self, known: Known) -> None:
        if known.cid not in self._removed:
            _bounded(self._known)[known.cid] = known


def _bounded(table: dict[str, V]) -> dict[str, V]:
    """With room for one more."""
    while len(table) >= REMEMBERED:
        del table[next(iter(table))]
    return table
