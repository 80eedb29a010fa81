"""Many elections on virtual time: requests with answers over links that lose, delay and break one way or both; pauses, crashes,
restarts, releases, copied disks."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from dimnode.core.election import Election
from dimnode.core.election_types import (
    Action,
    Duplicate,
    ElectionSettings,
    Lost,
    PersistTerm,
    Quarantined,
    SendBeat,
    Start,
    Won,
)
from dimnode.domain.node import Beat, Seat

TICK = 0.25


@dataclass(slots=True)
class Disk:
    n: int = 0
    boots: list[str] = field(default_factory=list[str])


@dataclass
class Swarm:
    """``names`` may all hold seats unless listed in ``ineligible``. A node that runs on a copy of another's disk is called
    ``name#2``: it has the peer id ``name``."""

    seed: int
    names: list[str]
    settings: ElectionSettings
    loss: float = 0.05
    delay: tuple[float, float] = (0.005, 0.3)
    ineligible: frozenset[str] = frozenset()
    registry_lag: float = 4.0
    """Seconds until a registry notices that a peer is gone."""
    disconnects: bool = True
    """Crashes break connections at once."""
    now: float = 0.0
    up: dict[str, Election] = field(default_factory=dict[str, Election])
    paused: set[str] = field(default_factory=set[str])
    cut: set[frozenset[str]] = field(default_factory=set[frozenset[str]])
    one_way: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    """(from, to) that lose everything, while the other direction works."""
    displaced: int = 0
    sent: int = 0
    won: list[tuple[float, Seat]] = field(default_factory=list[tuple[float, Seat]])
    lost: list[tuple[float, Seat, str]] = field(default_factory=list[tuple[float, Seat, str]])
    quarantines: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])
    ended: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])
    """Nodes that ended because another had their identity."""

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.disks = {p: Disk() for p in self.names}
        self._boots = itertools.count(1)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._seen: dict[tuple[str, str], float] = {}
        self._in_flight: dict[tuple[str, str], float] = {}
        self._kept: dict[str, list[Callable[[], None]]] = {}
        """What arrived at a paused node: its sockets' buffers."""
        self._gossip_at = -1.0

    def start(self, name: str, how: Start = "join") -> None:
        disk = self.disks.setdefault(name, Disk())
        boot = f"boot-{next(self._boots)}-{self.rng.random()}"
        node = Election(self.settings, peer_of(name), boot, n=0, now=self.now, eligible=peer_of(name) not in self.ineligible, start=how)
        node.resume(disk.n, self.now, disk.boots)
        disk.boots.append(boot)
        self.up[name] = node
        self._at(self.now + self.rng.uniform(0, TICK), lambda: self._tick(name, node))

    def copy(self, name: str) -> str:
        """A second node on a copy of the disk."""
        twin = f"{name}#2"
        self.disks[twin] = Disk(self.disks[name].n, list(self.disks[name].boots))
        self.start(twin)
        return twin

    def start_all(self) -> None:
        for i, name in enumerate(self.names):
            self.start(name, "alone" if i == 0 else "join")

    def crash(self, name: str) -> None:
        self.up.pop(name)
        self.wake(name)
        if self.disconnects:
            for other in self.up:
                if self.passes(name, other) and self.passes(other, name):
                    self._at(self.now + 0.2, lambda p=other: p in self.up and self.up[p].on_disconnect(peer_of(name), self.now))

    def release(self, name: str) -> None:
        """Told to everybody at once, whatever else is under way."""
        for key in [k for k in self._in_flight if k[0] == name]:
            del self._in_flight[key]
        self._do(name, self.up[name], self.up[name].release(self.now))

    def pause(self, *names: str) -> None:
        self.paused |= set(names)

    def wake(self, *names: str) -> None:
        """The node goes on; what had arrived meanwhile comes first, in any order among the peers."""
        for name in names:
            self.paused.discard(name)
            for act in self._kept.pop(name, []):
                act()

    def wake_all(self) -> None:
        self.wake(*sorted(self.paused))

    def isolate(self, name: str) -> None:
        self.cut |= {frozenset((name, p)) for p in self.names if p != name}

    def split(self, side: Iterable[str]) -> None:
        side = set(side)
        self.cut = {frozenset((a, b)) for a in self.names for b in self.names if (a in side) != (b in side)}

    def heal(self) -> None:
        self.cut = set()
        self.one_way = set()

    def passes(self, source: str, target: str) -> bool:
        a, b = peer_of(source), peer_of(target)
        return frozenset((a, b)) not in self.cut and (a, b) not in self.one_way

    def run(self, seconds: float, each: Callable[[], None] | None = None) -> None:
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, act = heapq.heappop(self._events)
            act()
            if each is not None:
                each()
        self.now = end

    def run_until(self, condition: Callable[[], bool], limit: float) -> float:
        """Seconds until it holds."""
        start = self.now
        while not condition():
            assert self.now - start < limit, (self.seed, "took too long", self.holders())
            self.run(0.05)
        return self.now - start

    def holders(self) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for name, node in self.up.items():
            seat = node.mine()
            if seat is not None:
                found.setdefault(seat.seat, []).append(name)
        return found

    def settled(self) -> bool:
        """min(K, eligible) seats, each held by one node, no node twice."""
        want = min(self.settings.orchestrators, len([p for p in self.up if p not in self.ineligible]))
        held = self.holders()
        return len(held) == want and all(len(who) == 1 for who in held.values())

    def agreed(self) -> bool:
        """Everybody sees the same holders, and they are the holders."""
        held = {s: who[0] for s, who in self.holders().items()}
        return all({s.seat: s.peer for s in node.seats(self.now)} == held for node in self.up.values())

    def _at(self, when: float, act: Callable[[], object]) -> None:
        heapq.heappush(self._events, (when, next(self._order), act))  # pyright: ignore[reportArgumentType]

    def _tick(self, name: str, node: Election) -> None:
        if self.up.get(name) is not node:
            return
        self._at(self.now + TICK, lambda: self._tick(name, node))
        if name not in self.paused:
            self._tick_now(name, node)

    def _tick_now(self, name: str, node: Election) -> None:
        node.members(self._registry(name))
        self._do(name, node, node.tick(self.now))

    # --- the registry: heartbeats are gossiped, so they arrive also where there is no direct link

    def _registry(self, name: str) -> list[str]:
        if self.now - self._gossip_at >= 0.5:
            self._gossip_at = self.now
            self._spread_heartbeats()
        me = peer_of(name)
        known = [p for p in self.names if p != me and self.now - self._seen.get((name, p), -1e9) < self.registry_lag]
        return [p for p in known if p not in self.ineligible]

    def _spread_heartbeats(self) -> None:
        awake = [p for p in self.up if p not in self.paused]
        whole = not self.cut and not self.one_way
        for source in awake:
            reached, todo = {source}, [source]
            while todo and not whole:
                at = todo.pop()
                fresh = [p for p in awake if p not in reached and self.passes(at, p)]
                reached.update(fresh)
                todo += fresh
            for other in awake if whole else reached:
                self._seen[other, peer_of(source)] = self.now

    # --- actions

    def _do(self, name: str, node: Election, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case PersistTerm(n):
                    self._at(self.now + self.rng.uniform(0.001, 0.05), lambda n=n: self._persist(name, node, n))
                case SendBeat(to, beat):
                    for peer in to:
                        self._send(name, node, peer, beat)
                case Won(seat):
                    self.won.append((self.now, seat))
                case Lost(seat, reason):
                    self.lost.append((self.now, seat, reason))
                    self.displaced += reason == "displaced"
                case Quarantined():
                    self.quarantines.append((self.now, name))
                case Duplicate():
                    self.ended.append((self.now, name))
                    self._at(self.now, lambda: name in self.up and self.crash(name))

    def _persist(self, name: str, node: Election, n: int) -> None:
        if self.up.get(name) is node:
            self.disks[name].n = n
            self._do(name, node, node.persisted(n, self.now))

    def _open(self, a: str, b: str) -> bool:
        return self.passes(a, b) and self.rng.random() >= self.loss

    def _send(self, name: str, node: Election, peer: str, beat: Beat) -> None:
        """One request in flight for each pair; an answer or a timeout of 1 s ends it."""
        if self._in_flight.get((name, peer), -1.0) > self.now:
            return
        self.sent += 1
        self._in_flight[name, peer] = self.now + 1.0
        if self._open(name, peer):
            self._at(self.now + self.rng.uniform(*self.delay), lambda: self._deliver(name, node, peer, beat))

    def _deliver(self, name: str, node: Election, peer: str, beat: Beat) -> None:
        twins = [p for p in self.up if peer_of(p) == peer]
        if not twins or not self.passes(name, peer):
            return
        to = twins[0] if len(twins) == 1 else self.rng.choice(twins)
        if to in self.paused:
            self._kept.setdefault(to, []).append(lambda: self._arrive(name, node, to, beat))
        else:
            self._arrive(name, node, to, beat)

    def _arrive(self, name: str, node: Election, to: str, beat: Beat) -> None:
        there = self.up.get(to)
        if there is None:
            return
        there.on_beat(beat, self.now)
        answer = there.answer(beat, self.now)
        if self._open(to, name):
            self._at(self.now + self.rng.uniform(*self.delay), lambda: self._answer(name, node, peer_of(to), answer))
        self._hurry(to, there)

    def _answer(self, name: str, node: Election, peer: str, answer: Beat) -> None:
        if self.up.get(name) is not node:
            return
        if name in self.paused:
            self._kept.setdefault(name, []).append(lambda: self._answer(name, node, peer, answer))
            return
        if self._in_flight.get((name, peer), 0.0) > self.now:
            # After the timeout nobody waits for the answer any more.
            self._in_flight.pop((name, peer))
            node.on_beat(answer, self.now)
            self._hurry(name, node)

    def _hurry(self, name: str, node: Election) -> None:
        if node.urgent:
            self._tick_now(name, node)


def peer_of(name: str) -> str:
    return name.partition("#")[0]


def torment(swarm: Swarm, seconds: float) -> None:
    """Random partitions, links broken both ways or one way, pauses, crashes, releases and restarts; then all is healed and up."""
    rng, end = swarm.rng, swarm.now + seconds
    while swarm.now < end:
        swarm.run(rng.uniform(1.5, 8))
        match rng.randrange(8):
            case 0:
                swarm.split(p for p in swarm.names if rng.random() < 0.5)
            case 1:
                swarm.cut |= {frozenset(rng.sample(swarm.names, 2)) for _ in range(3)} if len(swarm.names) > 1 else set()
            case 2:
                swarm.heal()
            case 3:
                swarm.pause(*(p for p in swarm.up if rng.random() < 0.3))
            case 4:
                swarm.wake_all()
                if swarm.up:
                    swarm.crash(rng.choice(sorted(swarm.up)))
            case 5:
                deaf = rng.choice(swarm.names)
                swarm.one_way |= {(p, deaf) for p in swarm.names if p != deaf and rng.random() < 0.7}
            case 6:
                held = [p for who in swarm.holders().values() for p in who if p not in swarm.paused]
                if held:
                    leaver = rng.choice(held)
                    swarm.release(leaver)
                    swarm.run(1)
                    swarm.crash(leaver)
            case _:
                for name in swarm.names:
                    if name not in swarm.up and rng.random() < 0.7:
                        swarm.start(name)
    swarm.heal()
    swarm.wake_all()
    for name in swarm.names:
        if name not in swarm.up:
            swarm.start(name)
