"""Which node runs a task: filters, then ranks. Pure and deterministic.

Filters say no with a reason, in the order in which a person would want to know; of what is left, the
score adds what makes a node a good choice now. Both are short functions over plain numbers, so that
10,000 nodes are looked at in a few milliseconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

Reason = str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node as placement sees it."""

    peer: str
    state: str
    """alive, suspect, dead, removed."""
    loaders: frozenset[str] = frozenset()
    memory_free: int = 0
    gpus: int = 0
    cabinets: frozenset[str] = frozenset()
    price: float = 1.0
    slots: int = 1
    busy: int = 0
    """Running and queued tasks, those that were sent since the node last told included."""
    queue_capacity: int = 0
    cached: frozenset[str] = frozenset()
    """CIDs of models on its disk."""
    warm: frozenset[str] = frozenset()
    """CIDs of models loaded in an agent."""
    leaving: bool = False
    latency: float | None = None
    """Seconds of a round trip, if known."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a task asks of a node."""

    format: str
    model_cid: str
    memory: int = 0
    """Bytes that must be free."""
    gpu: bool = False
    cabinet: str | None = None
    allowed: tuple[str, ...] = ()
    """Peer ids, the preferred first; empty: any."""
    avoid: frozenset[str] = frozenset()
    """Nodes that failed this task before: taken only if there is no other."""
    budget: float | None = None
    """Most credits that may be spent."""


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each quality counts; a score is a sum of qualities in 0..1 times these."""

    capacity: float = 4.0
    warm: float = 2.0
    cached: float = 1.0
    reputation: float = 2.0
    latency: float = 1.0
    price: float = 1.0


@dataclass(frozen=True, slots=True)
class Placement:
    ranked: tuple[str, ...]
    """Peer ids, best first."""
    refused: Mapping[str, Reason] = field(default_factory=dict[str, Reason])
    scores: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def chosen(self) -> str | None:
        return self.ranked[0] if self.ranked else None

    def why_none(self) -> Reason:
        """The commonest reason, for a person who waits."""
        if not self.refused:
            return "a node to join the swarm"
        counts: dict[Reason, int] = {}
        for reason in self.refused.values():
            counts[reason] = counts.get(reason, 0) + 1
        best = max(counts, key=lambda r: (counts[r], r))
        return f"a node that can run it ({counts[best]} of {len(self.refused)}: {best})"


Filter = Callable[[Candidate, Need], Reason | None]


def _alive(c: Candidate, need: Need) -> Reason | None:
    del need
    if c.leaving:
        return "is leaving the swarm"
    return None if c.state == "alive" else f"is {c.state}"


def _allowed(c: Candidate, need: Need) -> Reason | None:
    return None if not need.allowed or c.peer in need.allowed else "is not among the nodes of the job"


def _loader(c: Candidate, need: Need) -> Reason | None:
    return None if need.format in c.loaders else f"has no loader for {need.format}"


def _cabinet(c: Candidate, need: Need) -> Reason | None:
    return None if need.cabinet is None or need.cabinet in c.cabinets else f"has no cabinet {need.cabinet}"


def _memory(c: Candidate, need: Need) -> Reason | None:
    enough = need.model_cid in c.warm or c.memory_free >= need.memory
    return None if enough else f"has {c.memory_free >> 20} MiB of memory free and {need.memory >> 20} are needed"


def _gpu(c: Candidate, need: Need) -> Reason | None:
    return None if not need.gpu or c.gpus > 0 else "has no GPU"


def _price(c: Candidate, need: Need) -> Reason | None:
    return None if need.budget is None or c.price <= need.budget else f"asks {c.price:g} and {max(0.0, need.budget):g} are left of max_cost"


def _queue(c: Candidate, need: Need) -> Reason | None:
    del need
    return "has a full queue" if c.queue_capacity and c.busy >= c.slots + c.queue_capacity else None


FILTERS: tuple[Filter, ...] = (_alive, _allowed, _loader, _cabinet, _gpu, _memory, _price, _queue)


def refusal(c: Candidate, need: Need) -> Reason | None:
    """The first reason against a node, or None."""
    for accept in FILTERS:
        reason = accept(c, need)
        if reason is not None:
            return reason
    return None


def score(c: Candidate, need: Need, reputation: float, cheapest: float, weights: Weights) -> float:
    """Higher is better. ``reputation`` is in 0..1. A node with twice the work per slot of another has
    half its capacity, so a queue is never preferred to a free slot for being cheap."""
    total = weights.capacity * c.slots / (c.slots + c.busy)
    if need.model_cid in c.warm:
        total += weights.warm
    elif need.model_cid in c.cached:
        total += weights.cached
    total += weights.reputation * reputation
    if c.latency is not None:
        total += weights.latency / (1.0 + 20.0 * c.latency)
    if c.price > 0:
        total += weights.price * (cheapest / c.price)
    else:
        total += weights.price
    return total


def place(
    candidates: Iterable[Candidate],
    need: Need,
    *,
    reputation: Mapping[str, float] | None = None,
    weights: Weights | None = None,
    explain: bool = False,
    most: int = 16,
) -> Placement:
    """The ``most`` best nodes. Ties go to the node that the job lists first, then to the lower peer id.
    Reasons and scores of all nodes are collected only if ``explain``, or if nobody fits. ``reputation``:
    peer id -> 0..1, 0.5 if unknown."""
    known = list(candidates)
    fit = [c for c in known if refusal(c, need) is None]
    refused = {c.peer: refusal(c, need) or "" for c in known if refusal(c, need)} if explain or not fit else {}
    if not fit:
        return Placement((), refused)
    weights = weights or Weights()
    trust = reputation or {}
    cheapest = min((c.price for c in fit if c.price > 0), default=1.0)
    preference = {peer: i for i, peer in enumerate(need.allowed)}
    scored = [
        (c.peer in need.avoid, -score(c, need, trust.get(c.peer, 0.5), cheapest, weights), preference.get(c.peer, 0), c.peer) for c in fit
    ]
    best = heapq.nsmallest(most, scored)
    return Placement(
        tuple(peer for _, _, _, peer in best),
        refused,
        {peer: -negative for _, negative, _, peer in scored} if explain else {},
    )
