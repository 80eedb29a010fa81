"""When, and to whom, the records of nodes that are gone are brought: pure. docs/decisions/0029.

An owner that is there sees to the copies of its own records. Of one that is gone the heirs (`dimnode.core.records_sync.heirs`) shall have
them, and every other holder brings them: by one walk through its journal, some time after a node is seen to be gone. A node that is
back by then has its disk with it, and nothing was moved in vain.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestoringRule:
    after: float = 30.0
    """Seconds for which a node has to be gone, and after a start."""
    tries: int = 8
    """For one record and one heir, before it is left to anti-entropy's ordinary rounds."""
    most: int = 2_048
    """Records that wait for one of their heirs; beyond that the walk does."""


class Restoring:
    """Times are monotonic seconds."""

    def __init__(self, rule: RestoringRule, now: float) -> None:
        self._rule = rule
        self._there: frozenset[str] = frozenset()
        self._gone: dict[str, float] = {"": now}
        """Since when; the first is for whoever went before this node started."""
        self._again = False
        self._owed: OrderedDict[str, dict[str, int]] = OrderedDict()
        """Heir -> job -> tries that are left."""
        self.cursor: str | None = None
        """Job id after which the walk's next page starts; None: there is none under way."""

    def observe(self, there: Collection[str], now: float) -> None:
        """The members that are there, suspected ones too."""
        for peer in self._there.difference(there):
            self._gone.setdefault(peer, now)
        for peer in there:
            self._gone.pop(peer, None)
        self._there = frozenset(there)
        for peer in self._owed.keys() - self._there:
            del self._owed[peer]  # it is gone now: that begins a walk, too
        due = [peer for peer, since in self._gone.items() if now - since >= self._rule.after]
        for peer in due:
            del self._gone[peer]
        if due and self.cursor is None:
            self.cursor = ""
        elif due:
            self._again = True

    def turned(self, owners: dict[str, str], asked: int, heirs: Callable[[str], Collection[str]], me: str) -> None:
        """The page after `cursor`: job -> peer id of its owner, in order of the jobs; fewer than ``asked``: that was the end."""
        for job, owner in owners.items():
            if owner and owner not in self._there:
                for peer in heirs(job):
                    if peer != me:
                        self._owed.setdefault(peer, {})[job] = self._rule.tries
        self.cursor = next(reversed(owners)) if len(owners) == asked else ("" if self._again else None)
        self._again = self._again and self.cursor != ""

    def room(self) -> bool:
        """Whether another page may be looked at."""
        return self.cursor is not None and sum(map(len, self._owed.values())) < self._rule.most

    def next(self) -> tuple[str, Mapping[str, int]] | None:
        """An heir and what to bring it, taken off the list: job -> tries that are left."""
        return self._owed.popitem(last=False) if self._owed else None

    def failed(self, peer: str, jobs: Mapping[str, int]) -> None:
        """These did not get there: they have another turn, after the others."""
        again = {job: left - 1 for job, left in jobs.items() if left > 1}
        if again:
            self._owed[peer] = {**again, **self._owed.get(peer, {})}
            self._owed.move_to_end(peer)
