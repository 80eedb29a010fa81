"""Who takes part in a job, and so may have its blocks. docs/decisions/0016.

The holders of seats (each may take the job over, and answers clients about it), whoever claimed it, the nodes that its owner gave
tasks to, and the nodes that were asked to keep copies. An attempt proves nothing: a node may sign one unasked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from dimnode.domain.record import Assign, Attempt, Body, Claim, OutcomeEntry, Unknown

NO_JOB = "-"
"""What audiences begin with that are no jobs: their blocks are for the holders of seats only."""
READER = NO_JOB + "reader"
"""Of blocks that were fetched for somebody who reads them here, not for a job that this node has a part in."""


def named_in(bodies: Iterable[Body | Unknown]) -> frozenset[str]:
    """The nodes that a record makes participants. Assignments count if their ballot was claimed."""
    claimed = set[tuple[int, str, str]]()
    peers = set[str]()
    assigns: list[Assign] = []
    for body in bodies:
        match body:
            case Claim():
                claimed.add((body.ballot.n, body.ballot.peer, body.ballot.boot))
                peers.add(body.ballot.peer)
            case OutcomeEntry():
                peers.add(body.ballot.peer)
            case Assign():
                assigns.append(body)
            case _:
                continue
    return frozenset(peers | {a.node for a in assigns if (a.ballot.n, a.ballot.peer, a.ballot.boot) in claimed})


def masters_in(bodies: Iterable[Body | Unknown]) -> frozenset[str]:
    """Those for whom this node ran tasks of a job that it has no record of. They take part, and know who else does."""
    return frozenset(b.ballot.peer for b in bodies if isinstance(b, Attempt))


class Participants:
    """What was learnt about who takes part in what. Bounded: what was learnt longest ago and not used since is forgotten, and is then asked
    for again."""

    def __init__(self, most: int, pause: float) -> None:
        """``pause``: seconds for which a "no" counts."""
        self._most = most
        self._pause = pause
        self._in: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._out: OrderedDict[tuple[str, str], float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._in) + len(self._out)

    def let_in(self, peer: str, job: str) -> None:
        """This node itself wants the peer to have the blocks, or was told that it takes part."""
        self._out.pop((peer, job), None)
        self._in[peer, job] = None
        self._in.move_to_end((peer, job))
        if len(self._in) > self._most:
            self._in.popitem(last=False)

    def knows(self, peer: str, job: str) -> bool:
        known = (peer, job) in self._in
        if known:
            self._in.move_to_end((peer, job))
        return known

    def turned_away(self, peer: str, job: str, now: float) -> None:
        """Those who should know said that it takes no part."""
        self._out[peer, job] = now
        self._out.move_to_end((peer, job))
        if len(self._out) > self._most:
            self._out.popitem(last=False)

    def worth_asking(self, peer: str, job: str, now: float) -> bool:
        since = self._out.get((peer, job))
        return since is None or now - since >= self._pause
