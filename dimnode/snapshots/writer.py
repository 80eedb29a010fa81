"""Writes the swarm's state as this node has it into the content store: what changed since the snapshot before, and links to the rest.

Of the journal the digests are read page by page; whole records only for leaves that changed, a few at a time.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import structlog
import trio

from dimnode.core.job_record import Record
from dimnode.core.snapshot_chunks import Chunk
from dimnode.ports import Clock, JobDigest, Journal
from dimnode.snapshots import documents, tree
from dimnode.snapshots.documents import Card, JobSummary, Member, Root
from dimnode.snapshots.records_file import frames
from p2p.ipfs import cid as cids
from p2p.ipfs.api import CHUNK, BlockCorrupt, BlockMissing, ContentStore
from p2p.ipfs.cid import Cid

log = structlog.get_logger(__name__)
PIN = "snapshot"
"""Reason of the pin of the snapshot that is published."""


@dataclass(frozen=True, slots=True)
class WriterSettings:
    page: int = 512
    """Digests that are read in one go."""
    records: int = 8
    """Whole records in memory at once."""
    with_records: bool = True
    """Whole records go into the snapshot, not only the states of jobs."""


@dataclass(frozen=True, slots=True)
class Made:
    """A snapshot that is in the store, whole and pinned."""

    cid: str
    root: Root
    leaves: int
    """Of jobs."""
    reused: int


class SnapshotWriter:
    """One snapshot at a time. `write` raises `ContentError`, and `DimError` if the journal cannot be read."""

    def __init__(self, store: ContentStore, journal: Journal, clock: Clock, settings: WriterSettings | None = None) -> None:
        self._store = store
        self._journal = journal
        self._clock = clock
        self._settings = settings or WriterSettings()
        self._last: str | None = None

    @property
    def last(self) -> str | None:
        """CID of the snapshot that is kept."""
        return self._last

    async def open(self) -> None:
        """Takes up the snapshot that was kept when the node stopped; lets go of others, which a crash may have left."""
        pinned = {cid: pin.at for cid, pin in (await self._store.list_pins()).items() if pin.reason == PIN}
        self._last = max(pinned, key=lambda cid: pinned[cid], default=None)
        for cid in pinned.keys() - {self._last}:
            await self._store.unpin(cid)

    async def let_go(self) -> None:
        if self._last is not None:
            await self._store.unpin(self._last)
            self._last = None

    async def write(self, card: Card, members: Mapping[str, Member]) -> Made:
        """Returns when the snapshot is durable and pinned in place of the one before; that one, if nothing has changed."""
        try:
            made = await self._write(card, members, self._last)
            if made.cid == self._last:
                return made
            await self._store.pin(made.cid, reason=PIN)
        except (BlockMissing, BlockCorrupt) as error:
            if self._last is None:
                raise
            log.warning("snapshot.made_anew", reason=str(error))  # blocks of the one before are damaged or gone
            made = await self._write(card, members, None)
            await self._store.pin(made.cid, reason=PIN)
        before, self._last = self._last, made.cid
        if before is not None and before != made.cid:
            await self._store.unpin(before)
        return made

    async def _write(self, card: Card, members: Mapping[str, Member], before: str | None) -> Made:
        old = await self._before(before)
        async with aclosing(self._leaves(old.jobs)) as jobs_before, aclosing(self._leaves(old.registry)) as members_before:
            jobs = tree.TreeWriter(self._store, self._jobs_leaf, jobs_before)
            after = ""
            while page := await self._journal.digests(after, self._settings.page):
                for digest in page:
                    await jobs.add(digest.job, token(digest, self._settings.with_records))
                after = page[-1].job
                await trio.lowlevel.checkpoint()
            registry = tree.TreeWriter(self._store, lambda chunk: self._members_leaf(chunk, members), members_before)
            for peer in sorted(members):
                await registry.add(peer, _token(members[peer]))
            job_tree, member_tree = await jobs.finish(), await registry.finish()
        trees = (job_tree.root.text if job_tree else "", member_tree.root.text if member_tree else "")
        if before is not None and (old.card, old.jobs, old.registry) == (card, *trees):
            return Made(before, old, jobs.leaves, jobs.reused)
        root = Root(
            swarm=card.swarm,
            card=card,
            at=self._clock.wall(),
            jobs=trees[0],
            registry=trees[1],
            job_count=job_tree.count if job_tree else 0,
            member_count=member_tree.count if member_tree else 0,
        )
        data = documents.encode_root(root, job_tree.root if job_tree else None, member_tree.root if member_tree else None)
        return Made(await self._store.put_dag_bytes(data, durable=False), root, jobs.leaves, jobs.reused)

    async def _before(self, cid: str | None) -> Root:
        plain = await self._store.get_dag(cid, timeout=0.0) if cid is not None else None
        return documents.reread_root(plain) if plain is not None else documents.NOTHING

    async def _leaves(self, root: str) -> AsyncGenerator[tree.Child, None]:
        if root:
            async with aclosing(tree.leaves(tree.Reading(self._store, timeout=0.0), cids.parse(root))) as found:
                async for child in found:
                    yield child

    async def _jobs_leaf(self, chunk: Chunk) -> Cid:
        summaries: list[JobSummary] = []
        file: Cid | None = None
        async with aclosing(self._entries(chunk.keys, summaries)) as pieces:
            if self._settings.with_records:
                file = await self._file(pieces)
            else:
                async for _ in pieces:
                    pass
        return cids.parse(await self._store.put_dag_bytes(documents.encode_leaf(summaries, file), durable=False))

    async def _file(self, pieces: AsyncGenerator[bytes, None]) -> Cid:
        """A small one is not synced by itself: the pin sees to all of them together."""
        head = bytearray()
        async for piece in pieces:
            head += piece
            if len(head) > CHUNK:
                break
        else:
            return cids.parse(await self._store.add_bytes(bytes(head), durable=False))
        return cids.parse((await self._store.add_stream(_chain(bytes(head), pieces)))[0])

    async def _entries(self, jobs: Sequence[str], summaries: list[JobSummary]) -> AsyncGenerator[bytes, None]:
        """The file of records; the summaries come along."""
        for start in range(0, len(jobs), self._settings.records):
            part = jobs[start : start + self._settings.records]
            found = await self._journal.load_many(part)
            for job in part:
                if job in found:  # else it was forgotten meanwhile
                    record = Record(job, found[job])
                    summaries.append(documents.summary(record))
                    yield frames(job, record.entries())
                    await trio.lowlevel.checkpoint()

    async def _members_leaf(self, chunk: Chunk, members: Mapping[str, Member]) -> Cid:
        data = documents.encode_leaf([members[peer] for peer in chunk.keys])
        return cids.parse(await self._store.put_dag_bytes(data, durable=False))


def token(digest: JobDigest, with_records: bool) -> bytes:
    """What a job adds to the fingerprint of its leaf."""
    return digest.digest + bytes((with_records,))


async def _chain(head: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    yield head
    async for piece in rest:
        yield piece


def _token(member: Member) -> bytes:
    return documents.encode_leaf([member])
