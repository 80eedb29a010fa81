"""Which node runs a task: filters, then ranks. Pure and deterministic.

Filters say no with a reason, in the order in which a person would want to know; of what is left, the
score adds what makes a node a good choice now. Both are short functions over plain numbers, so that
10,000 nodes are looked at in a few milliseconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Reason = str
_LAST_RESORT = 1e6
"""Above any score."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node as placement sees it."""

    peer: str
    state: str
    """alive, suspect, dead, removed."""
    loaders: frozenset[str] = frozenset()
    memory_free: int = 0
    gpus: int = 0
    gpu_formats: frozenset[str] = frozenset()
    """Formats whose loaders there can use them."""
    gpu_memory: int | None = None
    """Bytes of its largest card; None: not known."""
    gpu_free: int | None = None
    """Bytes free on the card that has most."""
    cabinets: frozenset[str] = frozenset()
    barred: frozenset[str] = frozenset()
    """Cabinets that the node itself lets no agent at, for want of a complete sandbox."""
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
    gpu_memory: int = 0
    """Bytes that must be free on one card."""
    cabinet: str | None = None
    allowed: tuple[str, ...] = ()
    """Peer ids, the preferred first; empty: any."""
    avoid: frozenset[str] = frozenset()
    """Nodes that failed this task before: taken only if there is no other."""
    budget: float | None = None
    """Most credits that may be spent."""


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each quality counts: a score is a sum of qualities in 0..1 times these, less ``load`` for every round of
    tasks that a node has before it."""

    load: float = 2.0
    """A queue of one task for each slot weighs as much as a warm model. Being linear, it keeps deep queues even, too: what is
    constant (a price, a warm model) is worth a fixed length of the queue, not most of it."""
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
    if need.cabinet is None:
        return None
    if need.cabinet not in c.cabinets:
        return f"has no cabinet {need.cabinet}"
    return f"lacks the complete sandbox that cabinet {need.cabinet} demands" if need.cabinet in c.barred else None


def _memory(c: Candidate, need: Need) -> Reason | None:
    enough = need.model_cid in c.warm or c.memory_free >= need.memory
    return None if enough else f"has {c.memory_free >> 20} MiB of memory free and {need.memory >> 20} are needed"


def _gpu(c: Candidate, need: Need) -> Reason | None:
    if not need.gpu:
        return None
    if not c.gpus:
        return "has no GPU"
    if need.format not in c.gpu_formats:
        return f"has a GPU that its loader for {need.format} cannot use"
    wanted = need.gpu_memory
    if c.gpu_memory is not None and c.gpu_memory < wanted:
        return f"has no GPU with {wanted >> 20} MiB of memory"
    if c.gpu_free is not None and c.gpu_free < wanted and need.model_cid not in c.warm:
        return f"has {c.gpu_free >> 20} MiB of GPU memory free and {wanted >> 20} are needed"
    return None


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


def fitting(candidates: Iterable[Candidate], need: Need) -> list[Candidate]:
    """Those that no filter refuses: the same rules in one pass, since most calls want no reasons."""
    form, cid, memory = need.format, need.model_cid, need.memory
    fit = [
        c
        for c in candidates
        if c.state == "alive"
        and form in c.loaders
        and not c.leaving
        and (c.memory_free >= memory or cid in c.warm)
        and not (c.queue_capacity and c.busy >= c.slots + c.queue_capacity)
    ]
    if need.allowed:
        fit = [c for c in fit if c.peer in need.allowed]
    if need.cabinet is not None:
        fit = [c for c in fit if _cabinet(c, need) is None]
    if need.gpu:
        fit = [c for c in fit if _gpu(c, need) is None]
    if need.budget is not None:
        fit = [c for c in fit if c.price <= need.budget]
    return fit


def scores(fit: Sequence[Candidate], need: Need, trust: Mapping[str, float], weights: Weights) -> list[float]:
    """Higher is better. For being cheap alone, a node without a free slot is never preferred to an idle one. Where a node is
    free of charge, the others get nothing for their price."""
    w, cid = weights, need.model_cid
    cheapest = w.price * min((c.price for c in fit), default=1.0)
    middle = w.reputation * 0.5
    found = [
        (w.warm if cid in c.warm else w.cached if cid in c.cached else 0.0)
        + (cheapest / c.price if c.price > 0 else w.price)
        + (0.0 if c.latency is None else w.latency / (1.0 + 20.0 * c.latency))
        + middle
        - w.load * c.busy / c.slots
        for c in fit
    ]
    if not trust:
        return found
    return [s + w.reputation * (trust.get(c.peer, 0.5) - 0.5) for s, c in zip(found, fit, strict=True)]


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
    fit = fitting(known, need)
    refused = {c.peer: reason for c in known if (reason := refusal(c, need)) is not None} if explain or not fit else {}
    points = scores(fit, need, reputation or {}, weights or Weights())
    return Placement(
        tuple(c.peer for c in _best(fit, points, need, most)),
        refused,
        {c.peer: s for c, s in zip(fit, points, strict=True)} if explain else {},
    )


def _best(fit: Sequence[Candidate], points: Sequence[float], need: Need, most: int) -> list[Candidate]:
    """Only those that reach the score of the last place are compared in full."""
    if need.avoid:
        points = [s - _LAST_RESORT if c.peer in need.avoid else s for s, c in zip(points, fit, strict=True)]
    if len(fit) > most:
        bar = heapq.nlargest(most, points)[-1]
        contenders = [(-s, c) for s, c in zip(points, fit, strict=True) if s >= bar]
    else:
        contenders = [(-s, c) for s, c in zip(points, fit, strict=True)]
    preference = {peer: i for i, peer in enumerate(need.allowed)}
    best = heapq.nsmallest(most, contenders, key=lambda item: (item[0], preference.get(item[1].peer, 0), item[1].peer))
    return [c for _, c in best]
