"""The nodes that may hold copies, as the registry knows them and as the links to them stand."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from dimnode.core.copy_placement import Candidate, choose
from dimnode.core.electorate import others_needed
from dimnode.ports import NodeView, Registry
from dimnode.records.links import Link
from p2p.api import Network

_LOOPBACK = frozenset({"127.0.0.1", "::1"})


class Keepers:
    """``links`` are those made so far: a node without one may be tried."""

    def __init__(
        self,
        network: Network,
        registry: Registry,
        allowed: Collection[str],
        links: Mapping[str, Link],
        now: Callable[[], float],
        voters: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """``voters``: most of these are to have a copy; nobody if it does not matter."""
        self._network = network
        self._registry = registry
        self._allowed = frozenset(allowed)
        self._links = links
        self._now = now
        self._voters = voters
        self._candidates: tuple[Candidate, ...] = ()
        self._own_hosts: frozenset[str] = frozenset()
        self.members: frozenset[str] = frozenset()
        """Other nodes that are there, or may be (suspect), and that may hold copies."""

    def look(self) -> frozenset[str]:
        """The registry has changed. Returns the members that are gone."""
        before = self.members
        me = self._network.peer_id
        nodes = self._registry.nodes()
        self._candidates = tuple(self._candidate(v) for v in nodes)
        self._own_hosts = _LOOPBACK | {a.split("/")[2] for a in self._network.addresses() if a.count("/") > 2}
        there = (v.heartbeat.peer_id for v in nodes if v.state in ("alive", "suspect") and not v.heartbeat.leaving)
        self.members = frozenset(p for p in there if p != me and self._custody(p))
        return before - self.members

    def alone(self) -> bool:
        """No other node is known at all, however it is."""
        return all(c.peer == self._network.peer_id for c in self._candidates)

    def takes(self, peer: str) -> bool:
        """Entries sent to it now should be answered soon."""
        return peer in self.members and self._open(peer) and not self._slow(peer)

    def crowded(self) -> bool:
        """Some node would take entries if fewer waited for it."""
        return any(link.up and link.crowded for peer, link in self._links.items() if peer in self.members)

    def pick(
        self,
        job: str,
        wanted: int,
        keep: Collection[str],
        held_by: Collection[str],
        fit: Callable[[str], bool] = lambda _: True,
        *,
        down: bool = False,
    ) -> tuple[str, ...]:
        """Nodes for the copies of a job of this node. ``keep`` are to stay, then those that hold it; slow nodes come last. ``down``: also
        nodes that left a request without an answer lately."""
        open_ = [c for c in self._candidates if (down or self._open(c.peer)) and fit(c.peer)]
        fast = [c for c in open_ if not self._slow(c.peer)]
        me = self._network.peer_id
        chosen = self._choose(job, wanted, fast, me, self._own_hosts, keep or held_by)
        if len(fast) < len(open_) and (len(chosen) < wanted or self.too_few_voters(chosen)):
            chosen = self._choose(job, wanted, open_, me, self._own_hosts, {*chosen, *held_by})
        return chosen

    def responsible(self, job: str, wanted: int, owner: str) -> tuple[str, ...]:
        """Whom that owner would choose, as far as this node can tell."""
        hosts = self._own_hosts
        if owner != self._network.peer_id:
            host = self._network.remote_host(owner)
            hosts = frozenset() if host is None else frozenset({host})
        return self._choose(job, wanted, self._candidates, owner, hosts)

    def _choose(
        self, job: str, wanted: int, candidates: Collection[Candidate], owner: str, hosts: Collection[str], held_by: Collection[str] = ()
    ) -> tuple[str, ...]:
        """As many voters as a majority needs beside the owner, then others."""
        voters = self._voters()
        needed = others_needed(voters, owner)
        if not needed:
            return choose(job, wanted, candidates, owner, hosts, self._allowed, held_by)
        first = choose(job, needed, [c for c in candidates if c.peer in voters], owner, hosts, self._allowed, held_by)
        rest = [c for c in candidates if c.peer not in first]
        return (*first, *choose(job, max(0, wanted - len(first)), rest, owner, hosts, self._allowed, held_by))

    def too_few_voters(self, chosen: Collection[str]) -> bool:
        """To make a majority of the electorate with this node."""
        voters = self._voters()
        return len(frozenset(voters).intersection(chosen)) < others_needed(voters, self._network.peer_id)

    def _candidate(self, view: NodeView) -> Candidate:
        beat = view.heartbeat
        return Candidate(beat.peer_id, self._network.remote_host(beat.peer_id), view.state == "alive", beat.leaving)

    def _custody(self, peer: str) -> bool:
        return not self._allowed or peer in self._allowed

    def _open(self, peer: str) -> bool:
        link = self._links.get(peer)
        return link is None or link.usable

    def _slow(self, peer: str) -> bool:
        link = self._links.get(peer)
        return link is not None and link.slow
