"""How much of one job's record which node has, as far as its owner knows.

The owner's writes are counted. A node is *up to date* with write n when it durably has everything up to it. It gets
only what is new as long as nothing went wrong on the way to it; otherwise the whole record, which is never wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal

Lacking = Literal["nothing", "last", "all"]


class JobCopies:
    __slots__ = ("_asked", "_blocks", "_handed", "_kept", "_passing", "_stored", "_unfit", "_whole", "length", "targets", "wanted")

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        """Copies on other nodes that the job shall have."""
        self.length = 0
        """Writes so far."""
        self.targets: tuple[str, ...] = ()
        """The nodes that hold the copies, or shall."""
        self._unfit: dict[str, float] = {}
        """Peers that refused this record -> until when they are not asked again."""
        self._handed: dict[str, int] = {}
        """Peer -> the write up to which everything was handed over for it, and not lost."""
        self._stored: dict[str, int] = {}
        """Peer -> the write up to which it has everything durably."""
        self._whole: set[str] = set()
        """Peers that were sent the whole record and have not answered."""
        self._blocks: set[str] = set()
        self._passing: frozenset[str] = frozenset()
        """Those of the blocks that others will take the place of."""
        self._kept: dict[str, set[str]] = {}
        self._asked: dict[str, set[str]] = {}
        """Peer -> blocks that it was asked to keep and has not answered for."""

    # --- what happens

    def grow(self, blocks: Iterable[str] = ()) -> int:
        """One more write; returns its number."""
        self.length += 1
        return self.need(blocks)

    def need(self, blocks: Iterable[str]) -> int:
        """These are to be kept, too; returns the number of the latest write."""
        lasting = set(blocks)
        self._blocks |= lasting
        self._passing -= lasting
        return self.length

    def pass_on(self, blocks: Iterable[str]) -> None:
        """These are kept from now on in place of those that were passed on before."""
        new = frozenset(blocks)
        self._blocks -= self._passing - new
        self._passing = new - self._blocks | self._passing & new
        self._blocks |= self._passing

    def handed(self, peer: str) -> None:
        """What the peer lacked is on its way."""
        if self.lacks(peer) == "all":
            self._whole.add(peer)
        self._handed[peer] = self.length

    def stored(self, peer: str, length: int) -> None:
        self._whole.discard(peer)
        if self._handed.get(peer, 0) >= length:
            self._stored[peer] = max(length, self._stored.get(peer, 0))

    def lost(self, peer: str) -> None:
        """Nobody knows what became of what was on its way. What the peer had before it still has."""
        self._handed.pop(peer, None)
        self._whole.discard(peer)

    def incomplete(self, peer: str, pause_until: float) -> None:
        """The peer has not what it had once. If it says so of a whole record it is of no use for a while."""
        if peer in self._whole:
            self._unfit[peer] = pause_until
        self.lost(peer)
        self._stored.pop(peer, None)
        self._kept.pop(peer, None)

    def refused(self, peer: str, pause_until: float) -> None:
        self.lost(peer)
        self._stored.pop(peer, None)
        self._unfit[peer] = pause_until

    def blocks_asked(self, peer: str, cids: Iterable[str]) -> None:
        self._asked.setdefault(peer, set()).update(cids)

    def blocks_answered(self, peer: str, cids: Iterable[str], kept: Iterable[str] | None, pause_until: float) -> None:
        """``cids`` were asked for. A peer that could not get them all is not asked again for a while; None: it may have
        got them or not."""
        asked = set(cids)
        if waiting := self._asked.get(peer):
            waiting -= asked
        if kept is None:
            return
        got = asked.intersection(kept)
        self._kept.setdefault(peer, set()).update(got)
        if asked & self._blocks - got:
            self._unfit[peer] = pause_until

    # --- what follows

    def lacks(self, peer: str) -> Lacking:
        """What is to be sent to a peer that shall have everything."""
        handed = self._handed.get(peer, 0)
        if handed == self.length:
            return "nothing"
        return "last" if handed and handed == self.length - 1 else "all"

    def blocks_for(self, peer: str) -> set[str]:
        """Blocks that the peer has not, and was not asked to keep."""
        return self._blocks - self._kept.get(peer, set()) - self._asked.get(peer, set())

    def fit(self, peer: str, now: float) -> bool:
        return now >= self._unfit.get(peer, now)

    def up_to(self, length: int, blocks: Collection[str] = ()) -> int:
        """Nodes that have everything up to this write, and these blocks."""
        return sum(1 for p, n in self._stored.items() if n >= length and self._kept.get(p, set()).issuperset(blocks))

    def voters_up_to(self, length: int, voters: Collection[str]) -> int:
        """Of these nodes those that have everything up to this write; blocks do not matter."""
        return sum(1 for p, n in self._stored.items() if n >= length and p in voters)

    def full(self, peer: str) -> bool:
        """The peer has all that there is."""
        return self._stored.get(peer) == self.length and self._kept.get(peer, set()) >= self._blocks

    def holders(self) -> frozenset[str]:
        """Peers that have some of it, or soon will."""
        return frozenset(self._stored) | frozenset(self._handed)

    def under_way(self, length: int) -> bool:
        """Entries up to this write, or blocks, are on their way to a node that has them not."""
        coming = any(n >= length > self._stored.get(p, 0) for p, n in self._handed.items())
        return coming or any(self._asked.values())
