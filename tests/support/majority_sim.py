"""Many elections of mode ``majority`` on virtual time: clocks that drift, disks that forget what was not synced, links that lose,
delay, repeat and break one way or both; pauses, crashes, restarts, releases, changes of the electorate."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from dimnode.core.election_majority import MajorityElection
from dimnode.core.election_majority_types import ExchangeLists, MajorityAction, SendPoll, Settled
from dimnode.core.election_types import ElectionSettings, Lost, Won
from dimnode.core.election_voter import Voter
from dimnode.core.electorate import first, majority, replaces, with_voter, without_voter
from dimnode.domain.node import Seat
from dimnode.domain.voting import Electorate, Poll, Promises, Vote

TICK = 0.25
SETTINGS = ElectionSettings(mode="majority")


@dataclass(slots=True)
class Disk:
    promises: Promises | None = None
    listed: Electorate | None = None
    settled: bool = False


class Node:
    """One start of one node, until it crashes."""

    def __init__(self, swarm: MajoritySwarm, name: str, boot: str) -> None:
        self.name = name
        disk = swarm.disks[name]
        now = swarm.clock(name)
        rng = random.Random(swarm.rng.random())
        n = disk.promises.n if disk.promises else 0
        self.candidate = MajorityElection(swarm.settings, name, boot, n=n, now=now, rng=rng, eligible=name not in swarm.ineligible)
        self.voter = Voter(swarm.settings, name, disk.promises, now)
        self.saved = 0
        if disk.listed is not None:
            self.take(disk.listed, settled=disk.settled)

    def take(self, listed: Electorate, *, settled: bool) -> None:
        self.candidate.electorate(listed, settled=settled)
        self.voter.electorate(listed, settled=settled)


@dataclass
class MajoritySwarm:
    """``voters`` (default: all) are the electorate; everybody may hold a seat unless listed in ``ineligible``."""

    seed: int
    names: list[str]
    voters: list[str] = field(default_factory=list[str])
    settings: ElectionSettings = SETTINGS
    loss: float = 0.05
    delay: tuple[float, float] = (0.005, 0.3)
    ineligible: frozenset[str] = frozenset()
    rate: float = 0.02
    """Clocks run this much too fast or too slow."""
    now: float = 0.0
    up: dict[str, Node] = field(default_factory=dict[str, Node])
    paused: set[str] = field(default_factory=set[str])
    cut: set[frozenset[str]] = field(default_factory=set[frozenset[str]])
    one_way: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    won: list[tuple[float, Seat]] = field(default_factory=list[tuple[float, Seat]])
    lost: list[tuple[float, Seat, str]] = field(default_factory=list[tuple[float, Seat, str]])
    settled_at: float = 0.0
    """When the operator learned that the latest list acts."""

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.rates = {p: 1 + self.rng.uniform(-self.rate, self.rate) for p in self.names}
        self.offsets = {p: self.rng.uniform(0, 1e6) for p in self.names}
        self.listed = first("s", self.voters or self.names, "operator")
        self.disks = {p: Disk(listed=self.listed, settled=True) for p in self.names}
        self.terms: dict[tuple[int, int], tuple[str, str]] = {}
        self._boots = itertools.count(1)
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._kept: dict[str, list[Callable[[], None]]] = {}
        self._stored: set[str] = set()

    def clock(self, name: str) -> float:
        return self.offsets[name] + self.now * self.rates[name]

    # --- nodes

    def start(self, name: str) -> None:
        node = self.up[name] = Node(self, name, f"boot-{next(self._boots)}")
        self._at(self.now + self.rng.uniform(0, TICK), lambda: self._tick(node))

    def start_all(self) -> None:
        for name in self.names:
            self.start(name)

    def crash(self, name: str) -> None:
        del self.up[name]
        self.paused.discard(name)
        self._kept.pop(name, None)

    def release(self, name: str) -> None:
        node = self.up[name]
        self._do(node, node.candidate.release(self.clock(name)))

    def wake_all(self) -> None:
        for name in sorted(self.paused):
            self.paused.discard(name)
            for act in self._kept.pop(name, []):
                act()

    # --- links

    def split(self, side: Iterable[str]) -> None:
        side = set(side)
        self.cut = {frozenset((a, b)) for a in self.names for b in self.names if (a in side) != (b in side)}

    def heal(self) -> None:
        self.cut = set()
        self.one_way = set()

    def passes(self, source: str, target: str) -> bool:
        return source == target or (frozenset((source, target)) not in self.cut and (source, target) not in self.one_way)

    # --- the electorate

    def change(self, peer: str) -> bool:
        """The operator's step, if the rule allows it now: the one of before acts, for a lease already."""
        if not self._acts() or self.now - self.settled_at < self.settings.lease * (1 + self.settings.drift):
            return False
        voter = peer in self.listed.voters
        if voter and len(self.listed.voters) == 1:
            return False
        self.listed = (without_voter if voter else with_voter)(self.listed, peer)
        self._stored = set()
        self.settled_at = -1.0
        for name in self.names:
            self._hand(name, self.listed)
        return True

    def _acts(self) -> bool:
        if self.settled_at < 0 and majority(self.listed.previous, self._stored):
            self.settled_at = self.now
        return self.settled_at >= 0

    def _hand(self, name: str, listed: Electorate) -> None:
        if self.rng.random() > 0.3:
            self._at(self.now + self.rng.uniform(0.01, 2), lambda: self._take(name, listed))

    def _take(self, name: str, listed: Electorate) -> None:
        node = self.up.get(name)
        if node is None or name in self.paused or not replaces(self.disks[name].listed, listed):
            return
        disk = self.disks[name]
        disk.listed, disk.settled = listed, False
        if listed == self.listed:
            self._stored.add(name)
        node.take(listed, settled=False)

    # --- time

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, act = heapq.heappop(self._events)
            act()
            self.check()
        self.now = end

    def run_until(self, condition: Callable[[], bool], limit: float) -> float:
        start = self.now
        while not condition():
            assert self.now - start < limit, (self.seed, "took too long", self.holders())
            self.run(0.05)
        return self.now - start

    def check(self) -> None:
        """One holder of a (seat, term), one valid lease of a seat, now; a paused node counts: it may wake any moment."""
        held: dict[int, str] = {}
        for name, node in self.up.items():
            seat = node.candidate.mine(self.clock(name))
            if seat is not None:
                assert held.setdefault(seat.seat, name) == name, (self.seed, self.now, "two valid leases", seat, held)
                holder = self.terms.setdefault((seat.seat, seat.n), (seat.peer, seat.boot))
                assert holder == (seat.peer, seat.boot), (self.seed, self.now, "two holders of a term", seat, holder)

    def holders(self) -> dict[int, str]:
        found = ((n.candidate.mine(self.clock(name)), name) for name, n in self.up.items())
        return {seat.seat: name for seat, name in found if seat is not None}

    def settled(self) -> bool:
        """min(K, eligible) seats, held by as many nodes."""
        held = self.holders()
        want = min(self.settings.orchestrators, len([p for p in self.up if p not in self.ineligible]))
        return len(held) == want == len(set(held.values()))

    def agreed(self) -> bool:
        """Everybody sees the same holders, and they are the holders."""
        held = self.holders()
        return all({s.seat: s.peer for s in n.candidate.seats(self.clock(p))} == held for p, n in self.up.items())

    # --- inside

    def _at(self, when: float, act: Callable[[], object]) -> None:
        heapq.heappush(self._events, (when, next(self._order), act))  # pyright: ignore[reportArgumentType]

    def _tick(self, node: Node) -> None:
        if self.up.get(node.name) is node:
            self._at(self.now + TICK, lambda: self._tick(node))
            if node.name not in self.paused:
                self._tick_now(node)

    def _tick_now(self, node: Node) -> None:
        node.candidate.members(len(self.names))
        self._do(node, node.candidate.tick(self.clock(node.name)))

    def _do(self, node: Node, actions: list[MajorityAction]) -> None:
        for action in actions:
            match action:
                case SendPoll(to, poll):
                    for peer in to:
                        self._send(node, peer, poll)
                case Won(seat):
                    self.won.append((self.now, seat))
                case Lost(seat, reason):
                    self.lost.append((self.now, seat, reason))
                case Settled(version):
                    disk = self.disks[node.name]
                    if disk.listed is not None and disk.listed.version == version:
                        disk.settled = True
                        node.take(disk.listed, settled=True)
                case ExchangeLists(peer):
                    self._exchange(node.name, peer)

    def _exchange(self, one: str, other: str) -> None:
        if not (self.passes(one, other) and self.passes(other, one)):
            return
        a, b = self.disks[one].listed, self.disks[other].listed
        assert a is not None
        assert b is not None
        newer, behind = (a, other) if a.version > b.version else (b, one)
        self._at(self.now + self.rng.uniform(*self.delay), lambda: self._take(behind, newer))

    def _send(self, node: Node, peer: str, poll: Poll) -> None:
        if peer == node.name:
            self._arrive(node, peer, poll)
        elif self.passes(node.name, peer) and self.rng.random() >= self.loss:
            for _ in range(2 if self.rng.random() < 0.02 else 1):
                self._at(self.now + self._delay(), lambda: self._arrive(node, peer, poll))

    def _delay(self) -> float:
        return self.rng.uniform(*self.delay) if self.rng.random() > 0.02 else self.rng.uniform(0.5, 4)

    def _arrive(self, source: Node, name: str, poll: Poll) -> None:
        there = self.up.get(name)
        if there is None or not self.passes(source.name, name):
            return
        if name in self.paused:
            self._kept.setdefault(name, []).append(lambda: self._arrive(source, name, poll))
            return
        reply = there.voter.on_poll(poll, self.clock(name))
        if reply.revision > there.saved:
            revision, promises = there.voter.revision, there.voter.promises()
            self._at(self.now + self.rng.uniform(0.001, 0.05), lambda: self._synced(there, revision, promises, source, reply.vote))
        else:
            self._answer(there, source, reply.vote)

    def _synced(self, there: Node, revision: int, promises: Promises, source: Node, vote: Vote) -> None:
        """Unless it crashed before: then nobody was told."""
        if self.up.get(there.name) is not there:
            return
        if revision > there.saved:
            there.saved = revision
            self.disks[there.name].promises = promises
        if there.name in self.paused:
            self._kept.setdefault(there.name, []).append(lambda: self._answer(there, source, vote))
        else:
            self._answer(there, source, vote)

    def _answer(self, there: Node, to: Node, vote: Vote) -> None:
        if there is to:
            self._heard(to, vote)
        elif self.passes(there.name, to.name) and self.rng.random() >= self.loss:
            self._at(self.now + self._delay(), lambda: self._heard(to, vote))

    def _heard(self, to: Node, vote: Vote) -> None:
        if self.up.get(to.name) is not to:
            return
        if to.name in self.paused:
            self._kept.setdefault(to.name, []).append(lambda: self._heard(to, vote))
            return
        self._do(to, to.candidate.on_vote(vote, self.clock(to.name)))
        if to.candidate.urgent:
            self._tick_now(to)


def torment(swarm: MajoritySwarm, seconds: float, *, lists: bool = False) -> None:
    """Random partitions, links broken both ways or one way, pauses, crashes, releases, restarts and, with ``lists``, changes of
    the electorate; then all is healed and up."""
    rng, end = swarm.rng, swarm.now + seconds
    while swarm.now < end:
        swarm.run(rng.choice((rng.uniform(0.1, 1), rng.uniform(1, 5))))
        match rng.randrange(12 if lists else 10):
            case 8:
                _cut_off_and_restart(swarm)
            case 9:
                for name in [p for p in swarm.up if rng.random() < 0.5]:
                    swarm.crash(name)
                    swarm.start(name)
            case 0:
                swarm.split(p for p in swarm.names if rng.random() < 0.5)
            case 1:
                if len(swarm.names) > 1:
                    swarm.cut |= {frozenset(rng.sample(swarm.names, 2)) for _ in range(3)}
            case 2:
                swarm.heal()
            case 3:
                swarm.paused |= {p for p in swarm.up if rng.random() < 0.3}
            case 4:
                swarm.wake_all()
                if swarm.up:
                    swarm.crash(rng.choice(sorted(swarm.up)))
            case 5:
                deaf = rng.choice(swarm.names)
                swarm.one_way |= {(p, deaf) for p in swarm.names if p != deaf and rng.random() < 0.7}
            case 6:
                held = [p for p in swarm.holders().values() if p not in swarm.paused]
                if held:
                    swarm.release(rng.choice(held))
            case 7:
                for name in swarm.names:
                    if name not in swarm.up and rng.random() < 0.7:
                        swarm.start(name)
            case _:
                swarm.change(rng.choice(swarm.names))
    recover(swarm)


def _cut_off_and_restart(swarm: MajoritySwarm) -> None:
    """A holder hears nobody any more and still has its lease; the others forget all that is not on their disks."""
    held = sorted(swarm.holders().values())
    if held:
        alone = swarm.rng.choice(held)
        swarm.split({alone})
        for name in [p for p in swarm.up if p != alone]:
            swarm.crash(name)
            swarm.start(name)


def recover(swarm: MajoritySwarm) -> None:
    swarm.heal()
    swarm.wake_all()
    for name in swarm.names:
        if name not in swarm.up:
            swarm.start(name)
