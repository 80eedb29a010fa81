"""Who is in the swarm: alive, suspect, dead, removed. A pure state machine fed by heartbeats and time.

Every node judges for itself by the silence of the others; the sender says how often it speaks
(``Heartbeat.interval``), because that grows with the swarm: ``max(heartbeat, N / rate)``. Heartbeats are ordered
by (incarnation, seq): what is not newer than the last one changes nothing, so repeats and replays are harmless. A
restart has a new boot id and must have a higher incarnation.

    alive    silent for `suspect`, or disconnected and not back in time   -> suspect
    suspect  silent for `dead`                                            -> dead
    dead     silent for `removed` more                                    -> removed
    any      a newer heartbeat                                            -> alive
    any      a heartbeat that says it is leaving                          -> removed

Removed members leave a tombstone, so that an old heartbeat does not bring them back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from dimnode.domain.node import Heartbeat, NodeState


@dataclass(frozen=True, slots=True)
class MembershipSettings:
    """``swarm.*`` of the configuration; times in seconds."""

    heartbeat: float = 1.0
    """Least time between two heartbeats of a node."""
    rate: float = 5.0
    """Heartbeats per second in the whole swarm: with N nodes the interval is N / rate."""
    suspect: float = 3.0
    """Silence, at the least interval; grows with the interval as that grows with the swarm."""
    dead: float = 5.0
    """The same."""
    removed: float = 3600.0
    reconnect_grace: float = 2.0
    """A peer whose connection broke and that is not heard within this is suspect."""
    burst: int = 8
    """Heartbeats that a node may send ahead of time (changes go out at once)."""
    max_members: int = 10_000
    max_tombstones: int = 4096
    max_leap: int = 1 << 20
    """An incarnation or sequence number that leaps by more is refused."""

    def interval(self, members: int) -> float:
        """Seconds between a node's heartbeats in a swarm of so many."""
        return max(self.heartbeat, members / self.rate)


class Change(StrEnum):
    JOINED = "joined"
    UPDATED = "updated"
    RESTARTED = "restarted"
    SUSPECTED = "suspected"
    RECOVERED = "recovered"
    DIED = "died"
    LEFT = "left"
    REMOVED = "removed"


class Refusal(StrEnum):
    """Why a heartbeat changed nothing."""

    STALE = "stale"
    RAPID = "rapid"
    LEAP = "leap"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class MemberEvent:
    peer: str
    change: Change


@dataclass(slots=True)
class Member:
    """A member as this node knows it. ``seen`` is this node's monotonic clock."""

    heartbeat: Heartbeat
    seen: float
    state: NodeState
    suspect_at: float
    dead_at: float
    removed_at: float
    tokens: float
    """Heartbeats that it may send right now; `MembershipSettings.burst` at the most."""

    def due(self) -> float:
        """When silence changes its state next."""
        match self.state:
            case "alive":
                return self.suspect_at
            case "suspect":
                return self.dead_at
            case _:
                return self.removed_at


class Membership:
    """All members but the node itself."""

    def __init__(self, settings: MembershipSettings, me: str) -> None:
        self.settings = settings
        self.me = me
        self._members: dict[str, Member] = {}
        self._tombstones: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._next = float("inf")
        """No member changes by silence before this."""

    # --- what is so -----------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def get(self, peer: str) -> Member | None:
        return self._members.get(peer)

    def state(self, peer: str) -> NodeState:
        """``removed`` for those that are not known."""
        member = self._members.get(peer)
        return member.state if member else "removed"

    def interval(self) -> float:
        """How often this node should speak: by the members not known to be dead, itself included."""
        return self.settings.interval(1 + sum(m.state != "dead" for m in self._members.values()))

    # --- what happened --------------------------------------------------------------------------

    def judge(self, heartbeat: Heartbeat, now: float) -> Refusal | None:
        """Whether `observe` would take it; changes nothing. For gossip validators."""
        order = (heartbeat.incarnation, heartbeat.seq)
        member = self._members.get(heartbeat.peer_id)
        if min(order) < 0:
            return Refusal.LEAP
        if member is None:
            return self._judge_stranger(heartbeat.peer_id, order)
        last = member.heartbeat
        if order <= (last.incarnation, last.seq) or (heartbeat.boot != last.boot and heartbeat.incarnation == last.incarnation):
            return Refusal.STALE
        base = last.seq if heartbeat.incarnation == last.incarnation else 0
        if heartbeat.incarnation - last.incarnation > self.settings.max_leap or heartbeat.seq - base > self.settings.max_leap:
            return Refusal.LEAP
        if self._tokens(member, now) < 1 and not heartbeat.leaving:
            return Refusal.RAPID
        return None

    def observe(self, heartbeat: Heartbeat, now: float) -> tuple[MemberEvent, ...] | Refusal:
        """Take in a heartbeat whose author is known to be ``heartbeat.peer_id``, which is not me."""
        refusal = self.judge(heartbeat, now)
        if refusal is not None:
            return refusal
        peer = heartbeat.peer_id
        if heartbeat.leaving:
            known = self._members.pop(peer, None)
            self._bury(peer, heartbeat)
            return (MemberEvent(peer, Change.LEFT),) if known else ()
        member = self._members.get(peer)
        if member is None:
            if not self._make_room():
                return Refusal.FULL
            self._tombstones.pop(peer, None)
            self._members[peer] = self._renewed(heartbeat, now, self.settings.burst - 1)
            return (MemberEvent(peer, Change.JOINED),)
        events = self._changes(member, heartbeat)
        self._members[peer] = self._renewed(heartbeat, now, self._tokens(member, now) - 1)
        return events

    def disconnected(self, peer: str, now: float) -> None:
        """The connection to a member broke: it becomes suspect unless it is heard in time."""
        member = self._members.get(peer)
        if member is not None and member.state == "alive":
            member.suspect_at = min(member.suspect_at, now + self.settings.reconnect_grace)
            self._next = min(self._next, member.suspect_at)

    def tick(self, now: float) -> tuple[MemberEvent, ...]:
        """What silence has changed by now. Costs nothing while nothing is due."""
        if now < self._next:
            return ()
        events: list[MemberEvent] = []
        for peer, member in list(self._members.items()):
            while member.state != "removed" and now >= member.due():
                events.append(self._silence(peer, member))
        self._next = min((m.due() for m in self._members.values()), default=float("inf"))
        return tuple(events)

    # --- inside ---------------------------------------------------------------------------------

    def _judge_stranger(self, peer: str, order: tuple[int, int]) -> Refusal | None:
        grave = self._tombstones.get(peer)
        if grave is not None and order <= grave:
            return Refusal.STALE
        if grave is not None and order[0] - grave[0] > self.settings.max_leap:
            return Refusal.LEAP
        if len(self._members) >= self.settings.max_members and not any(m.state == "dead" for m in self._members.values()):
            return Refusal.FULL
        return None

    def _tokens(self, member: Member, now: float) -> float:
        """Two per least interval: a node may speak twice as often as ever needed, and a few times at once."""
        gained = 2 * (now - member.seen) / self.settings.heartbeat
        return min(self.settings.burst, member.tokens + gained)

    def _renewed(self, heartbeat: Heartbeat, now: float, tokens: float) -> Member:
        """What the sender says of its interval counts within the bounds of the largest swarm."""
        s = self.settings
        slower = min(max(heartbeat.interval, s.heartbeat), s.interval(s.max_members)) / s.heartbeat
        dead_at = now + s.dead * slower
        member = Member(heartbeat, now, "alive", now + s.suspect * slower, dead_at, dead_at + s.removed, tokens)
        self._next = min(self._next, member.suspect_at)
        return member

    def _changes(self, member: Member, heartbeat: Heartbeat) -> tuple[MemberEvent, ...]:
        peer = heartbeat.peer_id
        events: list[MemberEvent] = []
        if heartbeat.boot != member.heartbeat.boot:
            events.append(MemberEvent(peer, Change.RESTARTED))
        if member.state != "alive":
            events.append(MemberEvent(peer, Change.RECOVERED))
        return tuple(events) or (MemberEvent(peer, Change.UPDATED),)

    def _silence(self, peer: str, member: Member) -> MemberEvent:
        match member.state:
            case "alive":
                member.state = "suspect"
                return MemberEvent(peer, Change.SUSPECTED)
            case "suspect":
                member.state = "dead"
                return MemberEvent(peer, Change.DIED)
            case _:
                member.state = "removed"
                del self._members[peer]
                self._bury(peer, member.heartbeat)
                return MemberEvent(peer, Change.REMOVED)

    def _make_room(self) -> bool:
        if len(self._members) < self.settings.max_members:
            return True
        dead = [(m.seen, p) for p, m in self._members.items() if m.state == "dead"]
        if not dead:
            return False
        oldest = min(dead)[1]
        self._bury(oldest, self._members.pop(oldest).heartbeat)
        return True

    def _bury(self, peer: str, heartbeat: Heartbeat) -> None:
        self._tombstones[peer] = (heartbeat.incarnation, heartbeat.seq)
        self._tombstones.move_to_end(peer)
        while len(self._tombstones) > self.settings.max_tombstones:
            self._tombstones.popitem(last=False)
