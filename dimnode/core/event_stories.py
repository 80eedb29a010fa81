"""What is worth telling listeners of jobs and nodes: views of now, compared with what was told before. Pure.

Each event has one teller. Of a job, its progress is told by its owner and its end by whoever wrote it, both only in the boot that did it; of
the members, whoever holds the lowest seat tells. So nothing is told twice while everybody sees the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from dimnode.core.job_view import JobView
from dimnode.domain.events import Event
from dimnode.domain.node import NodeState

PROGRESS = ("fetching", "running", "aggregating")
NAMES: Mapping[NodeState, str] = {"suspect": "suspected", "dead": "died"}


@dataclass(slots=True)
class _Told:
    epoch: int
    at: float
    """When it was last looked at, wall clock."""
    ended: bool = False
    events: set[str] = field(default_factory=set[str])


class JobStory:
    """``me``, ``boot``: of this node. ``most``: jobs that are remembered. ``max_age``: seconds after which something is no news any more."""

    def __init__(self, me: str, boot: str, most: int, max_age: float) -> None:
        self._me = (me, boot)
        self._most = most
        self._max_age = max_age
        self._told: OrderedDict[str, _Told] = OrderedDict()

    def __len__(self) -> int:
        return len(self._told)

    def observe(self, view: JobView, now: float) -> list[Event]:
        """What is new of this job and this node's to tell, in the order in which it happened. ``now``: wall clock."""
        happened = self._mine(view)
        if not happened:
            return []
        told = self._told.get(view.job)
        if told is None or told.epoch < view.epoch:
            told = self._told[view.job] = _Told(view.epoch, now)
        told.at, told.ended = now, view.outcome is not None
        self._told.move_to_end(view.job)
        self._forget(now)
        new = {name: at for name, at in happened.items() if name not in told.events}
        told.events.update(new)
        return [Event(event=name, at=max(0.0, at), job=view.job, epoch=view.epoch) for name, at in new.items() if now - at <= self._max_age]

    def _forget(self, now: float) -> None:
        """Ends longer ago than ``max_age`` are not told again in any case."""
        while len(self._told) > self._most:
            self._told.popitem(last=False)
        while (job := next(iter(self._told))) and now - (oldest := self._told[job]).at > self._max_age:
            if oldest.ended:
                del self._told[job]
            else:
                oldest.at = now
                self._told.move_to_end(job)

    def _mine(self, view: JobView) -> dict[str, float]:
        happened: dict[str, float] = {}
        owner, outcome = view.owner, view.outcome
        if owner is not None and (owner.peer, owner.boot) == self._me:
            first = "accepted" if owner.n == 1 else "taken_over"
            happened[first] = view.times.get("queued" if owner.n == 1 else "scheduling", view.updated)
            happened |= {status: view.times[status] for status in PROGRESS if status in view.times}
            if view.status in PROGRESS:  # as attempts prove it, though nobody wrote it down
                happened.setdefault(view.status, view.updated)
        if outcome is not None and outcome.status != "deleted" and (outcome.ballot.peer, outcome.ballot.boot) == self._me:
            happened[outcome.status] = outcome.at
        return happened


@dataclass(frozen=True, slots=True)
class Seen:
    """A member as it is now."""

    state: NodeState
    boot: str


class NodeStory:
    """Members joining, falling silent, leaving; of states between two looks the last one counts. ``me`` is left out."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._before: Mapping[str, Seen] = {}

    def observe(self, members: Mapping[str, Seen], now: float) -> list[Event]:
        """What changed since the call before, to be told or not. ``now``: wall clock."""
        before, self._before = self._before, {peer: seen for peer, seen in members.items() if peer != self._me}
        events: list[tuple[str, str]] = []
        for peer, seen in self._before.items():
            events += [(word, peer) for word in _changes(before.get(peer), seen)]
        for peer, seen in before.items():
            if peer not in self._before:
                events.append(("forgotten" if seen.state == "dead" else "left", peer))
        return [Event(event=word, at=now, node=peer) for word, peer in events]


def _changes(before: Seen | None, seen: Seen) -> list[str]:
    if before is None:
        return ["joined"] if seen.state == "alive" else []
    words = ["restarted"] if seen.boot != before.boot else []
    if seen.state == before.state:
        return words
    return [*words, NAMES.get(seen.state, "recovered")]
