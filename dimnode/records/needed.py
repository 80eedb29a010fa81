"""Which blocks the records of this node need, so that a garbage collection leaves them alone."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence

import structlog
import trio

from dimnode.core.record_blocks import latest_checkpoints, needed_by, result_blocks, results_in, tensors_of
from dimnode.domain.codec import CodecError
from dimnode.domain.record import Body, SignedEntry, Unknown
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
        for job in self._table.active:
            if self._table.holds(job):
                async for cid in self._of(self._table.record(job).entries()):
                    yield cid
        for parts in (False, True):
            async for entries in self._pages(parts=parts):
                async for cid in self._of(entries):
                    yield cid

    async def _pages(self, *, parts: bool) -> AsyncGenerator[Sequence[SignedEntry], None]:
        after = ""
        while page := await self._journal.digests(after, PAGE, parts=parts):
            for entries in (await self._journal.load_many([d.job for d in page])).values():
                yield entries
            after = page[-1].job
            await trio.lowlevel.checkpoint()

    async def _of(self, entries: Sequence[SignedEntry]) -> AsyncGenerator[str, None]:
        bodies = list(bodies_of(entries))
        for cid in (*needed_by(bodies), *latest_checkpoints(bodies), *receipt_cids(entries)):
            yield cid
        for document in results_in(bodies):
            for cid in receipt_cids((), document):
                yield cid
        for cid in result_blocks(bodies):
            for named in await self._named_by(cid):
                yield named

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


def bodies_of(entries: Iterable[SignedEntry]) -> Iterator[Body | Unknown]:
    """Those that can be read."""
    for entry in entries:
        try:
            yield entry.body()
        except CodecError:
            continue
