"""The pool: the few nodes that may claim a vacant seat, and that beat to each other and to the holders."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import chain

from dimnode.core.election_peers import Peers
from dimnode.core.election_types import ElectionSettings, pool_order


class Pool:
    """The K + spare lowest, by hash of their peer id, of those that are not known to be silent or resting; those with few
    links come last. Reachability is what beats show: a peer that was asked and did not answer in time is passed over until
    it is heard."""

    def __init__(self, settings: ElectionSettings, me: str, peers: Peers, *, eligible: bool) -> None:
        self.size = settings.orchestrators + settings.spare
        self.others: tuple[str, ...] = ()
        """Eligible peers that the registry knows, by hash."""
        self.now: tuple[str, ...] = (me,) if eligible else ()
        """As of the last `update`."""
        self._me = me
        self._eligible = eligible
        self._peers = peers
        self._known: frozenset[str] = frozenset()
        self._asked: dict[str, float] = {}
        """When a peer that was never heard was first asked; earlier after a disconnect."""

    def __contains__(self, peer: str) -> bool:
        return peer in self.now

    def core(self) -> set[str]:
        """The pool, and those that would be in it if they answered."""
        return {*self.now, *self.others[: self.size]}

    def set_others(self, peers: frozenset[str]) -> None:
        if peers != self._known:
            self._known = peers
            self.others = tuple(sorted(peers, key=pool_order))
            for peer in self._asked.keys() - peers:
                del self._asked[peer]

    def asked(self, peer: str, now: float) -> None:
        if peer not in self._peers:
            self._asked.setdefault(peer, now)

    def heard(self, peer: str) -> None:
        self._asked.pop(peer, None)

    def disconnected(self, peer: str, at: float) -> None:
        """A peer that was never heard counts as asked no later than ``at``."""
        if peer in self._known:
            self._asked[peer] = min(self._asked.get(peer, at), at)

    def clear_asked(self) -> None:
        self._asked.clear()

    def silent(self, peer: str, now: float, window: float) -> bool:
        known = self._peers.get(peer)
        at = known.at if known is not None else self._asked.get(peer)
        return at is not None and now - at >= window

    def update(self, now: float, window: float, *, resting: bool, reach: int, best: int) -> None:
        """``reach`` is mine, ``best`` the highest of the others'."""
        pool: list[str] = []
        poor: list[str] = []
        best = max(best, reach)
        for peer in self._ranked(resting):
            if len(pool) == self.size:
                break
            known = self._peers.get(peer)
            if peer == self._me:
                (poor if far_below(reach, best) else pool).append(peer)
            elif not self.silent(peer, now, window) and (known is None or known.beat.stance != "resting"):
                (poor if known is not None and far_below(known.beat.reach, best) else pool).append(peer)
        self.now = tuple([*pool, *poor][: self.size])

    def _ranked(self, resting: bool) -> Iterator[str]:
        if not self._eligible or resting:
            return iter(self.others)
        mine = bisect_left(self.others, pool_order(self._me), key=pool_order)
        return chain(self.others[:mine], (self._me,), self.others[mine:])


def far_below(reach: int, best: int) -> bool:
    """Half as many links, and not for want of a single one."""
    return 2 * reach + 1 <= best
