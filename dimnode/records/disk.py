"""Entries on their way to the journal, and whether it has room for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from dimnode.domain.record import Ballot, SignedEntry
from dimnode.errors import ResourceExhausted
from dimnode.ports import Journal

TRIAL = "room"
TRIAL_BYTES = 64 * 1024
"""As much as a few jobs take: a disk that has only a page left is full."""


class EntryDisk:
    """The journal, as far as entries are added to it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._full = False
        """Whether it refused the last entries for want of room."""

    async def append(
        self, entries: Sequence[SignedEntry], *, under: Mapping[str, Ballot] | None = None, fresh: Collection[str] = ()
    ) -> dict[str, Ballot]:
        """`dimnode.ports.Journal.append`."""
        try:
            fenced = await self._journal.append(entries, under=under, fresh=fresh)
        except ResourceExhausted:
            self._full = True
            raise
        self._full = False
        return fenced

    async def has_room(self) -> bool:
        """Tried, if the last entries were refused."""
        if self._full:
            try:
                await self._journal.put(TRIAL, bytes(TRIAL_BYTES))
            except ResourceExhausted:
                return False
            self._full = False
        return True


class PendingWrite:
    """Of one job: what was noted before, and what is decided now."""

    __slots__ = ("all", "durable", "entries", "job", "noted")

    def __init__(self, job: str, entries: list[SignedEntry], noted: list[SignedEntry]) -> None:
        self.job = job
        self.entries = entries
        self.noted = noted
        self.all = [*noted, *entries]
        self.durable = False
        """On this node's disk."""
