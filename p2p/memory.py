"""The in-memory twin of `p2p.network`: many nodes in one program, with seeded loss, duplicates, delay, partition, pause.

It uses trio's clock only, so a simulation under ``autojump_clock`` takes no real time. Lost messages, their
delays and their order depend on the seed alone. Unlike in the real network every pair of connected nodes
is joined by one link, and a partition is noticed at once (after ``notice`` seconds).

What a node does for others (handlers of requests and tunnels) runs in the context in which its network was made, so
that whoever marks a node's tasks by a context variable finds those, too.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import trio

from p2p.api import GossipMessage
from p2p.memory_node import MemoryNetwork, address_of

__all__ = ["LinkFaults", "MemoryHub", "MemoryNetwork", "address_of"]
Pair = tuple[str, str]


@dataclass(slots=True)
class LinkFaults:
    """What may go wrong one way between two nodes. Shares are 0 to 1, times seconds."""

    loss: float = 0.0
    """Share of gossip deliveries that get lost."""
    duplicates: float = 0.0
    """Share of those that come twice."""
    delay: tuple[float, float] = (0.0, 0.0)
    """Least and most that anything takes one way: what was sent later may arrive earlier."""
    slow: float = 0.0
    """Share of what takes longer still, by ``slow_delay``."""
    slow_delay: tuple[float, float] = (0.0, 0.0)
    lost_requests: float = 0.0
    """Share of requests, and of answers to requests that were acted on, that never arrive."""


class MemoryHub:
    """The wire. An async context manager: what is under way ends with it.

    ``loss`` is the share of gossip deliveries that get lost; ``delay`` the least and most seconds that anything takes
    one way: both, and more, are in ``faults``, which hold for every link without faults of its own (`degrade`).
    ``health``: seconds after which a link that carries nothing, one way at least, or whose other end is paused, is closed;
    None: never. ``grain``: delays are multiples of this, so that a large simulation wakes up less often.
    """

    def __init__(
        self,
        seed: int = 0,
        loss: float = 0.0,
        delay: tuple[float, float] = (0.0, 0.0),
        notice: float = 0.0,
        health: float | None = None,
        grain: float = 0.0,
    ) -> None:
        self.rng = random.Random(seed)  # noqa: S311 - a simulation
        self.faults = LinkFaults(loss=loss, delay=delay)
        self.notice = notice
        self.health = health
        self.grain = grain
        self.networks: dict[str, MemoryNetwork] = {}
        self.hosts: dict[str, str] = {}
        """Peer id -> the address at which others reach it; 127.0.0.1 for those left out."""
        self._links: dict[frozenset[str], bool] = {}
        """Pairs that were connected and not disconnected on purpose; True while the link is up."""
        self._cut: set[Pair] = set()
        self._degraded: dict[Pair, LinkFaults] = {}
        self._groups: dict[str, int] = {}
        self._routes: dict[Pair, list[str]] = {}
        """(author, topic) -> whom its gossip reaches, until anything changes."""
        self._due: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        """What is under way: a heap by the time of its arrival."""
        self._order = itertools.count()
        self._next = trio.CancelScope()
        self._manager = trio.open_nursery()
        self.nursery: trio.Nursery | None = None

    async def __aenter__(self) -> MemoryHub:
        self.nursery = await self._manager.__aenter__()
        self.nursery.start_soon(self._run)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool | None:
        assert self.nursery is not None
        self.nursery.cancel_scope.cancel()
        return await self._manager.__aexit__(kind, error, trace)

    # --- nodes

    def network(self, peer_id: str) -> MemoryNetwork:
        """A node that joins the hub, unconnected; again under the same id after a `crash`."""
        if peer_id in self.networks:
            raise ValueError(f"{peer_id} is there already")
        network = self.networks[peer_id] = MemoryNetwork(self, peer_id)
        self.changed()
        return network

    def connect_all(self) -> None:
        for one, other in itertools.combinations(list(self.networks), 2):
            self.link(one, other)

    def crash(self, peer_id: str) -> None:
        """As kill -9: whoever was connected notices, nothing is said goodbye."""
        network = self.networks.pop(peer_id)
        self.changed()
        network.alive = False
        for pair in [pair for pair in self._links if peer_id in pair]:
            self._take_down(pair)
            del self._links[pair]
        network.end()

    # --- faults

    def partition(self, *groups: Iterable[str]) -> None:
        """Only nodes of one group reach each other; nodes that are not named form a group of their own."""
        self._groups = {peer: index for index, group in enumerate(groups, start=1) for peer in group}
        self._review()

    def cut(self, source: str, target: str) -> None:
        """Nothing from source arrives at target any more; the other way goes on, and nobody notices before ``health``."""
        self._cut.add((source, target))
        self._sicken(frozenset((source, target)))

    def degrade(self, source: str, target: str, faults: LinkFaults) -> None:
        """Faults of this direction alone."""
        self._degraded[source, target] = faults

    def pause(self, peer: str) -> None:
        """As SIGSTOP, as far as the network can: nothing leaves the node or is handled by it, gossip waits at its door,
        requests hang. What else runs in the node is for others to stop."""
        self.networks[peer].pause()
        for pair in [pair for pair in self._links if peer in pair]:
            self._sicken(pair)

    def resume(self, peer: str) -> None:
        self.networks[peer].resume()
        self._review()

    def heal(self) -> None:
        """Ends partition, cuts and the faults of single links; links that were up before come up again."""
        self._groups = {}
        self._cut = set()
        self._degraded = {}
        self._review()

    def _sicken(self, pair: frozenset[str]) -> None:
        self.changed()
        if self.health is not None and self._links.get(pair):
            self.later(self.health, self._close_unless_well, pair)

    def _close_unless_well(self, pair: frozenset[str]) -> None:
        if self._links.get(pair) and not self.well(*pair):
            self._take_down(pair)

    def _review(self) -> None:
        self.changed()
        for pair, up in list(self._links.items()):
            if up and not self._together(*pair):
                self._take_down(pair)
            elif not up and self._together(*pair) and (self.health is None or self.well(*pair)):
                self._bring_up(pair)

    def _together(self, one: str, other: str) -> bool:
        both = one in self.networks and other in self.networks
        return both and self._groups.get(one, 0) == self._groups.get(other, 0)

    def well(self, one: str, other: str) -> bool:
        """Whether bytes get through both ways and both nodes are awake."""
        awake = self._together(one, other) and not self.networks[one].paused and not self.networks[other].paused
        return awake and self.passes(one, other) and self.passes(other, one)

    def passes(self, source: str, target: str) -> bool:
        """Whether bytes get from source to target, connected or not."""
        return self._together(source, target) and (source, target) not in self._cut

    def changed(self) -> None:
        """Who reaches whom is another question than before."""
        self._routes.clear()

    # --- links

    def link(self, one: str, other: str) -> bool:
        """Connects two nodes; False if they cannot reach each other."""
        pair = frozenset((one, other))
        if one == other or not self.well(one, other):
            return False
        if not self._links.get(pair):
            self._bring_up(pair)
        return True

    def unlink(self, one: str, other: str) -> None:
        pair = frozenset((one, other))
        if self._links.get(pair):
            self._take_down(pair)
        self._links.pop(pair, None)

    def linked(self, one: str, other: str) -> bool:
        return self._links.get(frozenset((one, other)), False)

    def _bring_up(self, pair: frozenset[str]) -> None:
        self._links[pair] = True
        self.changed()
        self._tell(pair, connected=True)

    def _take_down(self, pair: frozenset[str]) -> None:
        self._links[pair] = False
        self.changed()
        if self.notice:
            self.later(self.notice, self._tell_if_down, pair)
        else:
            self._tell(pair, connected=False)

    def _tell_if_down(self, pair: frozenset[str]) -> None:
        if not self._links.get(pair):
            self._tell(pair, connected=False)

    def _tell(self, pair: frozenset[str], *, connected: bool) -> None:
        one, other = sorted(pair)
        for network, peer in ((self.networks.get(one), other), (self.networks.get(other), one)):
            if network is not None:
                network.note(peer, connected)

    # --- traffic

    def later(self, seconds: float, act: Callable[..., object], *args: Any) -> None:
        """Calls ``act`` then, in a task of the hub; in the order of the calls where times are equal."""
        when = trio.current_time() + seconds
        heapq.heappush(self._due, (when, next(self._order), act, args))
        if when < self._next.deadline:
            self._next.deadline = when

    async def _run(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._due[0][0] if self._due else math.inf) as self._next:
                await trio.sleep_forever()
            now = trio.current_time()
            while self._due and self._due[0][0] <= now:
                _, _, act, args = heapq.heappop(self._due)
                act(*args)

    def faults_of(self, source: str, target: str) -> LinkFaults:
        return self._degraded.get((source, target), self.faults)

    def delay(self, source: str, target: str) -> float:
        """Seconds that what is sent now takes."""
        return self._delay(self.faults_of(source, target))

    def _delay(self, faults: LinkFaults) -> float:
        seconds = self.rng.uniform(*faults.delay)
        if faults.slow and self.rng.random() < faults.slow:
            seconds += self.rng.uniform(*faults.slow_delay)
        return math.ceil(seconds / self.grain) * self.grain if self.grain else seconds

    def send(self, source: str, target: str, act: Callable[..., object], *args: Any) -> None:
        """One way of a request: calls ``act`` when it arrives. Never where bytes do not pass, and for those that get lost."""
        faults = self.faults_of(source, target)
        lost = faults.lost_requests and self.rng.random() < faults.lost_requests
        if not lost:
            self.later(self._delay(faults), self._arrive, source, target, act, args)

    def _arrive(self, source: str, target: str, act: Callable[..., object], args: tuple[Any, ...]) -> None:
        if self.passes(source, target):
            act(*args)

    async def travel(self, source: str, target: str) -> None:
        """Returns when what was sent has arrived; see `send`."""
        arrived = trio.Event()
        self.send(source, target, arrived.set)
        await arrived.wait()

    def spread(self, author: str, topic: str, data: bytes) -> None:
        """Gossip reaches whoever is connected to the author, directly or through others of the topic."""
        message = GossipMessage(topic, author, data)
        route = self._routes.get((author, topic))
        if route is None:
            route = self._routes[author, topic] = self._reachable(author, topic)
        for peer in route:
            faults = self.faults_of(author, peer)
            if self.rng.random() >= faults.loss:
                self.later(self._delay(faults), self._deliver, peer, message)
                if faults.duplicates and self.rng.random() < faults.duplicates:
                    self.later(self._delay(faults), self._deliver, peer, message)

    def _reachable(self, author: str, topic: str) -> list[str]:
        reached = {author: None}
        frontier = [author]
        while frontier:
            here = frontier.pop()
            for peer in sorted(self.networks[here].peers()):
                if peer not in reached and self.passes(here, peer) and self.networks[peer].listens(topic):
                    reached[peer] = None
                    frontier.append(peer)
        return [peer for peer in reached if peer != author]

    def _deliver(self, peer: str, message: GossipMessage) -> None:
        network = self.networks.get(peer)
        if network is not None:
            network.receive(message)
