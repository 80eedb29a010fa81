"""Reads what seats have published: roots, states of jobs, whole records, members. Nothing is believed that was not checked."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from dataclasses import dataclass

from dimnode.domain.record import SignedEntry
from dimnode.snapshots import documents, records_file, tree
from dimnode.snapshots.documents import JobSummary, Member, Root
from dimnode.snapshots.name_book import Named
from p2p.ipfs import cid as cids
from p2p.ipfs.api import BlockCorrupt, ContentStore
from p2p.ipfs.cid import Cid


@dataclass(frozen=True, slots=True)
class Published:
    """One seat's snapshot. All reading raises `ContentError`."""

    named: Named
    root: Root
    reading: tree.Reading

    @property
    def peer(self) -> str:
        return self.named.peer

    async def leaves(self, after: str = "") -> AsyncGenerator[tree.Child, None]:
        """Of jobs, in order."""
        if self.root.jobs:
            async with aclosing(tree.leaves(self.reading, cids.parse(self.root.jobs), after)) as found:
                async for child in found:
                    yield child

    async def summaries(self, leaf: tree.Child) -> tuple[list[JobSummary], Cid | None]:
        """The states of jobs that a leaf has, and the file of their records."""
        items, records = documents.decode_leaf(await self.reading.block(leaf.cid), JobSummary)
        if [s.job for s in items] != sorted({s.job for s in items}):
            raise BlockCorrupt("a leaf whose jobs are not in order")
        return [s for s in items if leaf.first <= s.job <= leaf.last], records

    async def job(self, job: str) -> tuple[JobSummary, Cid | None] | None:
        """The state of one job, and the file that has its record."""
        if not self.root.jobs:
            return None
        leaf = await tree.find(self.reading, cids.parse(self.root.jobs), job)
        if leaf is None:
            return None
        items, records = await self.summaries(leaf)
        return next(((s, records) for s in items if s.job == job), None)

    async def records(self, file: Cid, wanted: Collection[str]) -> AsyncGenerator[tuple[str, list[SignedEntry]], None]:
        """Of the wanted jobs all entries that are in the file. They are not checked."""
        r = self.reading
        pieces = r.store.iterate(file.text, providers=r.providers, timeout=r.timeout)
        async with aclosing(pieces), aclosing(records_file.records(pieces, wanted)) as found:
            async for job, entries in found:
                yield job, entries

    async def members(self) -> AsyncGenerator[Member, None]:
        """Their heartbeats are not checked."""
        if not self.root.registry:
            return
        async with aclosing(tree.leaves(self.reading, cids.parse(self.root.registry))) as found:
            async for child in found:
                items, _ = documents.decode_leaf(await self.reading.block(child.cid), Member)
                for member in items:
                    yield member


async def open_published(store: ContentStore, named: Named, swarm: str, timeout: float) -> Published:
    """Raises `ContentError`."""
    reading = tree.Reading(store, (named.peer,), timeout)
    root = documents.decode_root(await reading.block(cids.parse(named.cid)), swarm, named.card)
    return Published(named, root, reading)
