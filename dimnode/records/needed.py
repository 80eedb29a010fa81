"""Which blocks the records of this node need, so that a garbage collection leaves them alone."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing

import structlog
import trio

from dimnode.core.record_blocks import latest_checkpoints, needed_by, result_blocks, results_in, tensors_of
from dimnode.domain.codec import CodecError
from dimnode.domain.record import Body, Checkpoint, SignedEntry, Unknown
from dimnode.ports import Journal
from dimnode.records.made_blocks import receipt_cids
from dimnode.records.table import RecordTable
from p2p.ipfs.api import ContentError, ContentStore

log = structlog.get_logger(__name__)
PAGE = 256
"""Records that are read in one go."""


class RecordNeeds:
    """One walk through all records: those in memory, and the whole journal."""

    def __init__(self, table: RecordTable, journal: Journal, store: ContentStore) -> None:
        self._table = table
        self._journal = journal
        self._store = store
        self.complete = True
        """Of every result document that is here it is known what it refers to. False, once the walk met one that cannot be read."""

    async def walk(self) -> AsyncGenerator[str, None]:
        """CIDs, some more than once."""
        async with aclosing(self._pages()) as pages:
            async for page in pages:
                # To read what records say takes a fraction of a millisecond each, and there may be a hundred thousand.
                named, results = await trio.to_thread.run_sync(_needs_of, page)
                for cid in named:
                    yield cid
                for result in results:
                    for cid in await self._named_by(result):
                        yield cid

    async def _pages(self) -> AsyncGenerator[list[Sequence[SignedEntry]], None]:
        active = list(self._table.active)
        for start in range(0, len(active), PAGE):
            yield [self._table.record(job).entries() for job in active[start : start + PAGE] if self._table.holds(job)]
        for parts in (False, True):
            after = ""
            while page := await self._journal.digests(after, PAGE, parts=parts):
                yield list((await self._journal.load_many([d.job for d in page])).values())
                after = page[-1].job

    async def _named_by(self, result: str) -> list[str]:
        """Only of a document that is here: this is no reason to fetch anything."""
        try:
            if not await self._store.has(result):
                return []
            document = await self._store.get_dag(result, timeout=0.0)
            return [*tensors_of(document, "outputs"), *receipt_cids((), document)]
        except ContentError as e:
            self.complete = False
            log.warning("records.result_unreadable", cid=result, reason=str(e))
            return []


def _needs_of(records: Iterable[Sequence[SignedEntry]]) -> tuple[list[str], list[str]]:
    """CIDs that records name or make, and those of result documents that are blocks of their own. Runs in a thread."""
    named: list[str] = []
    results: list[str] = []
    for entries in records:
        bodies = list(bodies_of(entries))
        named += [*needed_by(bodies), *_checkpoints(entries, bodies), *receipt_cids(entries)]
        for document in results_in(bodies):
            named += receipt_cids((), document)
        results += result_blocks(bodies)
    return named, results


def _checkpoints(entries: Iterable[SignedEntry], bodies: Iterable[Body | Unknown]) -> Iterator[str]:
    """Few records have any: only of those the entries' ids are made."""
    if any(isinstance(b, Checkpoint) for b in bodies):
        yield from latest_checkpoints((e.id, body) for e in entries for body in bodies_of([e]))


def bodies_of(entries: Iterable[SignedEntry]) -> Iterator[Body | Unknown]:
    """Those that can be read."""
    for entry in entries:
        try:
            yield entry.body()
        except CodecError:
            continue
