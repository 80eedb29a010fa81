"""Placement applied: from the registry to candidates, with what this orchestrator has sent out since.

Heartbeats are a second old; so the tasks that were sent to a node and are not back yet are counted here
and added to the load it told.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from dimnode.core.job_view import JobView
from dimnode.core.needs import GPU_CONTEXT, gpu_memory_needed, memory_needed
from dimnode.core.placement import Candidate, Need, Placement, place
from dimnode.domain.job_form import JobForm
from dimnode.domain.model import ModelManifest, ModelRef
from dimnode.domain.node import SANDBOX, NodeState
from dimnode.errors import FailedPrecondition
from dimnode.orchestrator.inputs import cabinet_of
from dimnode.ports import Models, NodeView, Registry
from patterns.api import Plan, TaskPlan

PROVIDERS = 16
"""Of each kind that a node is told of."""
SHARED_BYTES = 4 * 1024 * 1024
"""Of a model above which nodes that fetch it at the same time give parts to each other."""


@dataclass(frozen=True, slots=True)
class Choice:
    node: str | None
    reason: str = ""
    """If there is none: what the task waits for."""


def _take_one(counts: Counter[str], peer: str) -> None:
    counts[peer] -= 1
    if counts[peer] <= 0:
        del counts[peer]


class Selector:
    def __init__(self, registry: Registry, models: Models) -> None:
        self._registry = registry
        self._models = models
        self._sent: Counter[str] = Counter()
        self._fetching: dict[str, Counter[str]] = {}
        """By the CID of a large model: nodes that tasks of it were sent to and are not back from."""
        self._candidates: dict[str, Candidate] = {}
        self._version = -1

    # --- the swarm ---

    def name(self, peer: str) -> str:
        found = self._registry.find(peer)
        return found[0].heartbeat.name if found else peer

    def version(self) -> int:
        return self._registry.changed()

    async def wait_changed(self, version: int) -> None:
        await self._registry.wait_changed(version)

    async def wait_dead(self, peer: str) -> None:
        """Returns when the node is dead, removed or unknown."""
        await self._registry.wait_gone(peer)

    def state(self, peer: str) -> NodeState | None:
        """None if the node is unknown, or has left."""
        found = self._registry.find(peer)
        return found[0].state if found else None

    def gone(self, peers: Collection[str]) -> bool:
        """Whether there are such nodes and all of them are dead, removed or unknown."""
        return bool(peers) and not any(v.state in ("alive", "suspect") for p in peers for v in self._registry.find(p))

    def providers(self, ref: ModelRef, producers: Iterable[str]) -> tuple[str, ...]:
        """Who has a task's inputs and its model; last those that are fetching the model, too: each has other parts of it, and so the first holder
        does not send all of it to everybody."""
        fetching = itertools.islice(self._fetching.get(ref.cid, ()), PROVIDERS)
        return tuple(dict.fromkeys((*producers, *self._models.holders(ref.cid)[:PROVIDERS], *fetching)))

    @contextmanager
    def sent(self, peer: str, ref: ModelRef) -> Generator[None, None, None]:
        """While a task is out on a node it counts towards the node's load."""
        self._sent[peer] += 1
        if ref.size > SHARED_BYTES:
            self._fetching.setdefault(ref.cid, Counter())[peer] += 1
        try:
            yield
        finally:
            _take_one(self._sent, peer)
            if (fetching := self._fetching.get(ref.cid)) is not None:
                _take_one(fetching, peer)
                if not fetching:
                    del self._fetching[ref.cid]

    def has_warm(self, peer: str, cid: str) -> bool:
        """Whether the node says that it has the model loaded."""
        return any(m.cid == cid and m.warm for v in self._registry.find(peer) for m in v.heartbeat.models)

    # --- choosing ---

    def choose(self, plan: TaskPlan, ref: ModelRef, manifest: ModelManifest, budget: float | None, avoid: Iterable[str] = ()) -> Choice:
        placement = place(self._now(), self._need(plan, ref, manifest, budget, avoid))
        return Choice(placement.chosen) if placement.chosen else Choice(None, placement.why_none())

    def _need(self, plan: TaskPlan, ref: ModelRef, manifest: ModelManifest, budget: float | None = None, avoid: Iterable[str] = ()) -> Need:
        query = cabinet_of(plan)
        return Need(
            format=manifest.format,
            model_cid=ref.cid,
            memory=memory_needed(manifest.format, manifest.size, manifest.needs),
            gpu=manifest.needs.any_gpu,
            gpu_memory=gpu_memory_needed(manifest.size, manifest.needs) + GPU_CONTEXT if manifest.needs.any_gpu else 0,
            cabinet=query.name if query else None,
            allowed=plan.nodes,
            avoid=frozenset(avoid),
            budget=budget,
        )

    def _now(self) -> list[Candidate]:
        version = self._registry.changed()
        if version != self._version:
            self._candidates = {v.heartbeat.peer_id: candidate(v) for v in self._registry.nodes()}
            self._version = version
        if not self._sent:
            return list(self._candidates.values())
        return [replace(c, busy=c.busy + self._sent[p]) if p in self._sent else c for p, c in self._candidates.items()]

    # --- cost ---

    def budget_left(self, form: JobForm, view: JobView, placed: Mapping[str, str]) -> float | None:
        """Credits that a further task may cost: the maximum, less what was spent and what the other tasks, which
        are ``placed`` (task key -> node) and not done, will cost."""
        if form.form.max_cost is None:
            return None
        spent = sum(f.attempt.receipt.cost for facts in view.completed.values() for f in facts if f.attempt.receipt)
        running = sum(
            self._candidates[peer].price for task, peer in placed.items() if task not in view.attempts and peer in self._candidates
        )
        return form.form.max_cost - spent - running

    def estimate(self, plan: Plan, refs: Mapping[str, ModelRef], manifests: Mapping[str, ModelManifest], rounds: int) -> float:
        """The least that the job can cost: each task at the cheapest node that could run it."""
        return rounds * sum(self._cheapest(t, refs[t.model], manifests[t.model]) for t in plan.tasks)

    def _cheapest(self, task: TaskPlan, ref: ModelRef, manifest: ModelManifest) -> float:
        placement = place(self._now(), self._need(task, ref, manifest), most=len(self._candidates) or 1)
        return min((self._candidates[p].price for p in placement.ranked), default=0.0)

    def check_cost(self, plan: Plan, form: JobForm, refs: Mapping[str, ModelRef], manifests: Mapping[str, ModelManifest]) -> None:
        """Raises `FailedPrecondition` with the cheapest estimate if it is above ``max_cost``."""
        if form.form.max_cost is None:
            return
        least = self.estimate(plan, refs, manifests, rounds_of(form))
        if least > form.form.max_cost:
            raise FailedPrecondition(
                f"nothing within max_cost {form.form.max_cost:g}: the cheapest estimate is {least:g} credits",
                hint=f"Raise max_cost to {least:g}, or wait for cheaper nodes.",
            )

    # --- explaining ---

    def explain(self, plan: Plan | None, form: JobForm, manifests: Mapping[str, ModelManifest]) -> Mapping[str, Any]:
        """Per task: the choice, the scores and every refusal with its reason."""
        if plan is None:
            return {"accepted": True, "placement": {"waits": "no node can run this job now; it would wait"}, "estimated_cost": 0.0}
        refs = {n: self._models.resolve(n) for n in manifests}
        tasks: dict[str, Any] = {}
        taken: set[str] = set()
        for t in plan.tasks:
            placement = place(self._now(), self._need(t, refs[t.model], manifests[t.model], avoid=taken), explain=True)
            if placement.chosen and form.pattern != "chained":  # whose steps need not run at the same time
                taken.add(placement.chosen)
            tasks[t.key] = self._explained(t, placement)
        return {"accepted": True, "placement": tasks, "estimated_cost": self.estimate(plan, refs, manifests, rounds_of(form))}

    def _explained(self, task: TaskPlan, placement: Placement) -> dict[str, Any]:
        return {
            "model": task.model,
            "node": self.name(placement.chosen) if placement.chosen else None,
            "waits_for": None if placement.chosen else placement.why_none(),
            "scores": {self.name(p): round(s, 4) for p, s in placement.scores.items()},
            "refused": {self.name(p): r for p, r in placement.refused.items()},
        }


def rounds_of(form: JobForm) -> int:
    return getattr(form.config, "rounds", 1)


def candidate(view: NodeView) -> Candidate:
    beat = view.heartbeat
    can, load = beat.capabilities, beat.load
    confined = set(can.sandbox) >= SANDBOX
    known = bool(can.gpu_memory) and all(can.gpu_memory) and len(load.gpu_free) == len(can.gpu_memory)
    return Candidate(
        peer=beat.peer_id,
        state=view.state,
        loaders=frozenset(can.loaders),
        memory_free=load.memory_free if load.memory_free >= 0 else can.memory,
        gpus=len(can.gpus),
        gpu_formats=frozenset(can.gpu_formats),
        gpu_memory=max(can.gpu_memory) if known else None,
        gpu_free=max(load.gpu_free) if known else None,
        cabinets=frozenset(c.name for c in beat.cabinets),
        barred=frozenset(c.name for c in beat.cabinets if c.sandbox and not confined),
        price=beat.price,
        slots=max(1, load.slots),
        busy=max(0, load.running) + max(0, load.queued),
        queue_capacity=load.queue_capacity,
        cached=frozenset(m.cid for m in beat.models),
        warm=frozenset(m.cid for m in beat.models if m.warm),
        leaving=beat.leaving,
    )
