"""When, and to whom, the records of nodes that are gone are brought: pure. docs/decisions/0029.

An owner that is there sees to the copies of its own records. Of one that is gone the heirs (`dimnode.core.records_sync.heirs`) shall have
them, and every other holder brings them: by one walk through its journal, some time after a node is seen to be gone. The walk of an owner that is
there also takes its own records: of those that ended long ago it does not know any more who has them, and it may have been that node. A node that is
back by then has its disk with it, and nothing was moved in vain.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice


@dataclass(frozen=True, slots=True)
class RestoringRule:
    after: float = 30.0
    """Seconds since a node was last seen alive, if it is gone then, and since the start."""
    tries: int = 8
    """For one record and one heir, before it is left to anti-entropy's ordinary rounds."""
    most: int = 2_048
    """Records that wait for one of their heirs; beyond that the walk does."""
    at_once: int = 32
    """That one heir is given before others have their turn: as many as it is given the blocks of at once."""


class Restoring:
    """Times are monotonic seconds."""

    def __init__(self, rule: RestoringRule, now: float) -> None:
        self._rule = rule
        self._last: dict[str, float] = {"": now}
        """When each member was last seen alive; the first is for whoever went before this node started."""
        self._there: frozenset[str] = frozenset()
        self._again = False
        self._owed: OrderedDict[str, dict[str, int]] = OrderedDict()
        """Heir -> job -> tries that are left."""
        self.cursor: str | None = None
        """Job id after which the walk's next page starts; None: there is none under way."""

    def observe(self, alive: Collection[str], there: Collection[str], now: float) -> None:
        """``there``: members that may be alive, suspected ones among them."""
        self._there = frozenset(there)
        self._last.update(dict.fromkeys(alive, now))
        due = [peer for peer, last in self._last.items() if peer not in self._there and now - last >= self._rule.after]
        for peer in due:
            del self._last[peer]
            self._owed.pop(peer, None)
        if due and self.cursor is None:
            self.cursor = ""
        elif due:
            self._again = True

    def gone(self, peer: str) -> bool:
        return peer not in self._there

    def turned(self, page: Sequence[str], asked: int, heirs: Mapping[str, Collection[str]]) -> None:
        """The page after `cursor`, in order; fewer than ``asked``: that was the end. ``heirs``: of those whose owners are gone, without
        this node."""
        for job, peers in heirs.items():
            for peer in peers:
                self._owed.setdefault(peer, {})[job] = self._rule.tries
        self.cursor = page[-1] if page and len(page) == asked else ("" if self._again else None)
        self._again = self._again and self.cursor != ""

    def room(self) -> bool:
        """Whether another page may be looked at."""
        return self.cursor is not None and sum(map(len, self._owed.values())) < self._rule.most

    def next(self, busy: Collection[str]) -> str | None:
        """An heir that is there, and not ``busy``, and is owed something."""
        return next((p for p in self._owed if p in self._there and p not in busy), None)

    def take(self, peer: str) -> Mapping[str, int]:
        """What to bring it now, taken off the list: job -> tries that are left."""
        jobs = self._owed.pop(peer, {}) if peer in self._there else dict[str, int]()
        now = dict(islice(jobs.items(), self._rule.at_once))
        if later := {job: left for job, left in jobs.items() if job not in now}:
            self._owed[peer] = later
        return now

    def failed(self, peer: str, jobs: Mapping[str, int]) -> None:
        """These did not get there: they have another turn, after all others of that heir."""
        again = {job: left - 1 for job, left in jobs.items() if left > 1}
        if again:
            self._owed[peer] = {**self._owed.get(peer, {}), **again}
            self._owed.move_to_end(peer)
