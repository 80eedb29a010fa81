"""Many elections on virtual time: requests with answers over links that lose, delay and break; pauses, crashes, restarts."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from dimnode.core.election import Action, Election, ElectionSettings, Lost, PersistTerm, SendBeat, Start, Won
from dimnode.domain.node import Beat, Seat

TICK = 0.25


@dataclass(slots=True)
class Disk:
    n: int = 0


@dataclass
class Swarm:
    """``names`` may all hold seats unless listed in ``ineligible``."""

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
    displaced: int = 0
    sent: int = 0
    won: list[tuple[float, Seat]] = field(default_factory=list[tuple[float, Seat]])

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.disks = {p: Disk() for p in self.names}
        self._boots = itertools.count(1)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._seen: dict[tuple[str, str], float] = {}
        self._in_flight: dict[tuple[str, str], float] = {}

    def start(self, name: str, how: Start = "join") -> None:
        self.up[name] = Election(
            self.settings,
            name,
            f"boot-{next(self._boots)}-{self.rng.random()}",
            n=self.disks[name].n,
            now=self.now,
            eligible=name not in self.ineligible,
            start=how,
        )
        self._at(self.now + self.rng.uniform(0, TICK), lambda node=self.up[name]: self._tick(name, node))

    def start_all(self) -> None:
        for i, name in enumerate(self.names):
            self.start(name, "alone" if i == 0 else "join")

    def crash(self, name: str) -> None:
        self.up.pop(name)
        self.paused.discard(name)
        if self.disconnects:
            for other in self.up:
                if frozenset((name, other)) not in self.cut:
                    self._at(self.now + 0.2, lambda p=other: p in self.up and self.up[p].on_disconnect(name, self.now))

    def isolate(self, name: str) -> None:
        self.cut |= {frozenset((name, p)) for p in self.names if p != name}

    def split(self, side: Iterable[str]) -> None:
        side = set(side)
        self.cut = {frozenset((a, b)) for a in self.names for b in self.names if (a in side) != (b in side)}

    def heal(self) -> None:
        self.cut = set()

    def run(self, seconds: float, each: Callable[[], None] | None = None) -> None:
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, act = heapq.heappop(self._events)
            act()
            if each is not None:
                each()
        self.now = end

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

    def _at(self, when: float, act: Callable[[], object]) -> None:
        heapq.heappush(self._events, (when, next(self._order), act))  # pyright: ignore[reportArgumentType]

    def _tick(self, name: str, node: Election) -> None:
        if self.up.get(name) is not node:
            return
        self._at(self.now + TICK, lambda: self._tick(name, node))
        if name in self.paused:
            return
        node.members(self._registry(name))
        self._do(name, node, node.tick(self.now))

    def _registry(self, name: str) -> list[str]:
        for other in self.names:
            if other in self.up and frozenset((name, other)) not in self.cut:
                self._seen[name, other] = self.now
        known = [p for p in self.names if p != name and self.now - self._seen.get((name, p), -1e9) < self.registry_lag]
        return [p for p in known if p not in self.ineligible]

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
                case Lost(_, reason):
                    self.displaced += reason == "displaced"

    def _persist(self, name: str, node: Election, n: int) -> None:
        if self.up.get(name) is node:
            self.disks[name].n = n
            self._do(name, node, node.persisted(n, self.now))

    def _open(self, a: str, b: str) -> bool:
        return frozenset((a, b)) not in self.cut and self.rng.random() >= self.loss

    def _send(self, name: str, node: Election, peer: str, beat: Beat) -> None:
        """One request in flight for each pair; an answer or a timeout of 1 s ends it."""
        if self._in_flight.get((name, peer), -1.0) > self.now:
            return
        self.sent += 1
        self._in_flight[name, peer] = self.now + 1.0
        if self._open(name, peer):
            self._at(self.now + self.rng.uniform(*self.delay), lambda: self._deliver(name, node, peer, beat))

    def _deliver(self, name: str, node: Election, peer: str, beat: Beat) -> None:
        there = self.up.get(peer)
        if there is None or peer in self.paused or frozenset((name, peer)) in self.cut:
            return
        there.on_beat(beat, self.now)
        answer = there.beat(self.now, name)
        if self._open(name, peer):
            self._at(self.now + self.rng.uniform(*self.delay), lambda: self._answer(name, node, peer, answer))

    def _answer(self, name: str, node: Election, peer: str, answer: Beat) -> None:
        if self.up.get(name) is node and name not in self.paused:
            self._in_flight.pop((name, peer), None)
            node.on_beat(answer, self.now)


def torment(swarm: Swarm, seconds: float) -> None:
    """Random partitions, broken links, pauses, crashes and restarts; then all is healed and up."""
    rng, end = swarm.rng, swarm.now + seconds
    while swarm.now < end:
        swarm.run(rng.uniform(1.5, 8))
        match rng.randrange(6):
            case 0:
                swarm.split(p for p in swarm.names if rng.random() < 0.5)
            case 1:
                swarm.cut |= {frozenset(rng.sample(swarm.names, 2)) for _ in range(3)} if len(swarm.names) > 1 else set()
            case 2:
                swarm.heal()
            case 3:
                swarm.paused = {p for p in swarm.up if rng.random() < 0.3}
            case 4:
                swarm.paused = set()
                if swarm.up:
                    swarm.crash(rng.choice(sorted(swarm.up)))
            case _:
                for name in swarm.names:
                    if name not in swarm.up and rng.random() < 0.7:
                        swarm.start(name)
    swarm.heal()
    swarm.paused = set()
    for name in swarm.names:
        if name not in swarm.up:
            swarm.start(name)
