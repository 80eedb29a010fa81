"""While a chained job's first step runs, the nodes that will probably run the later ones get their models ready.

A hint: a node that is not warmed in time, or is not chosen after all, costs nothing but that work. Placement prefers nodes that
have a model loaded, so what is warmed is probably used.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import structlog
import trio

from dimnode.errors import DimError
from dimnode.orchestrator.selection import Selector
from dimnode.orchestrator.settings import OrchestratorSettings
from dimnode.ports import DaemonClient, Models
from patterns.api import Plan, TaskPlan

AT_ONCE = 2
"""Steps of one job: what is needed first is warmed first, and the step that runs has cores left."""
log = structlog.get_logger(__name__)


def later_tasks(plan: Plan) -> tuple[TaskPlan, ...]:
    """Those that wait for another; each model once, in order."""
    later = {t.model: t for t in reversed(plan.tasks) if any(s.kind == "task" for s in t.sources)}
    now = {t.model for t in plan.tasks if t not in later.values() and not any(s.kind == "task" for s in t.sources)}
    return tuple(t for t in plan.tasks if later.get(t.model) is t and t.model not in now)


class WarmAhead:
    def __init__(self, client: DaemonClient, models: Models, selector: Selector, settings: OrchestratorSettings) -> None:
        self._client, self._models, self._selector, self._settings = client, models, selector, settings
        self._asked: set[tuple[str, str]] = set()
        """Nodes that are warming a model for some job now."""

    def begin(self, nursery: trio.Nursery, plan: Plan) -> None:
        """In the job's nursery: it ends with the job."""
        if self._settings.warm_ahead:
            turns = trio.CapacityLimiter(AT_ONCE)
            for task in later_tasks(plan)[: self._settings.warm_most]:
                nursery.start_soon(self._warm, task, turns)

    async def _warm(self, task: TaskPlan, turns: trio.CapacityLimiter) -> None:
        async with turns:
            await self._warm_now(task)

    async def _warm_now(self, task: TaskPlan) -> None:
        with trio.move_on_after(self._settings.warm_timeout):
            try:
                ref = self._models.resolve(task.model)
                node = self._selector.choose(task, ref, await self._models.manifest(ref), None).node
                if node is None or (node, ref.cid) in self._asked or self._selector.has_warm(node, ref.cid):
                    return
                with self._asking(node, ref.cid):
                    warm = await self._client.prewarm(node, ref.cid, ref.manifest_cid, self._selector.providers(ref, ()))
                    log.debug("task.warmed_ahead", task=task.key, node=node, warm=warm)
            except DimError as e:
                log.debug("task.not_warmed", task=task.key, reason=e.message)

    @contextmanager
    def _asking(self, node: str, cid: str) -> Generator[None, None, None]:
        self._asked.add((node, cid))
        try:
            yield
        finally:
            self._asked.discard((node, cid))
