"""The blocks that a record has in itself: the job's form, a small result, the receipts. Whoever holds the record can make them.

They are for those who ask by CID. The record is the durable source, so nothing is lost when one cannot be written: it is tried again,
later each time, and after a start all records are looked at. Of the time a share goes into it, so that jobs come first.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import structlog
import trio

from dimnode.core.job_record import Record
from dimnode.core.job_view import view
from dimnode.core.record_blocks import is_cid, receipts_of
from dimnode.domain import codec
from dimnode.domain.record import Attempt, SignedEntry
from dimnode.errors import DimError
from dimnode.ports import Journal
from dimnode.records.table import RecordTable
from p2p.groups import collapse
from p2p.ipfs.api import BadCid, BlockCorrupt, ContentError, ContentStore, TooLarge
from p2p.ipfs.cid import DAG_CBOR, compute

log = structlog.get_logger(__name__)


def cid_of(data: bytes) -> str:
    """Of canonical DAG-CBOR."""
    return compute(DAG_CBOR, data).text


def receipt_blocks(entries: Iterable[SignedEntry], document: Any = None) -> Iterator[bytes]:
    """The receipts of a job: its signed attempts, and after its end those that its result document has."""
    for entry in entries:
        try:
            body = entry.body()
        except codec.CodecError:
            continue
        if isinstance(body, Attempt) and body.receipt is not None:
            yield codec.encode(entry)
    yield from receipts_of(document)


def receipt_cids(entries: Iterable[SignedEntry], document: Any = None) -> Iterator[str]:
    for data in receipt_blocks(entries, document):
        yield cid_of(data)


@dataclass(frozen=True, slots=True)
class MakingSettings:
    most: int = 65_536
    """Jobs that wait; with more of them all records are looked at again, later."""
    remembered: int = 16_384
    """Unfinished jobs whose forms are known to be here."""
    share: float = 0.15
    """Of the time, for what has just changed."""
    quiet: float = 0.25
    """Seconds without a change after which it begins: a burst of jobs goes first, and a short job has ended by then and is done at once."""
    delay_most: float = 2.0
    """Seconds for which it waits for that, from the first change on; then it works until nothing is left."""
    at_once: int = 8
    """Jobs whose records are in memory; their blocks go to the disk together."""
    piece_blocks: int = 64
    """Blocks of a job that go to the disk in one go at the most."""
    piece_bytes: int = 1024 * 1024
    """And bytes, if it is not one block."""
    walk_share: float = 0.05
    """And for the look at all records."""
    page: int = 64
    """Records that are read at once in that."""
    retry_first: float = 1.0
    """Seconds until it is tried again after a failure, doubled each time."""
    retry_most: float = 60.0
    tries: int = 3
    """Of a job that is itself what is wrong; then it is left."""


class BlockMaker:
    """Makes them for every record that this node has: forms at once, the rest when the job has ended."""

    def __init__(self, table: RecordTable, journal: Journal, store: ContentStore, settings: MakingSettings | None = None) -> None:
        self._table = table
        self._journal = journal
        self._store = store
        self._settings = settings or MakingSettings()
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._changed_at = self._busy_since = -math.inf
        self._spoilt: dict[str, int] = {}
        """How often those of them failed that are themselves what is wrong."""
        self._wake = trio.Event()
        self._formed: OrderedDict[str, None] = OrderedDict()
        self._walk_due = True
        self._cursor = ""
        self._made = self._failures = 0
        self._problem = ""
        table.on_change(self._changed)

    def status(self) -> Mapping[str, Any]:
        """``backlog``: jobs whose blocks are to be made; ``failures`` in a row, and why."""
        return {"backlog": len(self._waiting), "failures": self._failures, "problem": self._problem}

    def statistics(self) -> Mapping[str, int]:
        """Blocks ``made``, jobs ``waiting``, ``failures`` in a row; ``looked``: all records were looked at."""
        return {"made": self._made, "waiting": len(self._waiting), "failures": self._failures, "looked": int(not self._walk_due)}

    def _changed(self, job: str) -> None:
        if job in self._formed and self._table.unfinished(job):
            return
        if len(self._waiting) >= self._settings.most and job not in self._waiting:
            self._walk_due, self._cursor = True, ""
            return
        now = trio.current_time()
        if not self._waiting and now > self._changed_at + self._settings.quiet:
            self._busy_since = now
        self._changed_at = now
        self._waiting[job] = None
        self._wake.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        task_status.started()
        s = self._settings
        while True:
            self._wake = trio.Event()
            began = trio.current_time()
            if self._waiting and (pause := self._until_quiet(began)) > 0:
                await trio.sleep(pause)
                continue
            if self._waiting:
                worked, share = await self._patiently(self._next), s.share
            elif self._walk_due:
                worked, share = await self._patiently(self._walk), s.walk_share
            else:
                await self._wake.wait()
                continue
            if worked:
                await trio.sleep((trio.current_time() - began) * (1 / share - 1))
            else:
                await trio.sleep(min(s.retry_first * 2 ** min(self._failures - 1, 16), s.retry_most))

    def _until_quiet(self, now: float) -> float:
        return min(self._changed_at + self._settings.quiet, self._busy_since + self._settings.delay_most) - now

    async def _patiently(self, act: Any) -> bool:
        try:
            await act()
        except (ContentError, DimError, OSError) as e:
            self._failures += 1
            self._problem = str(e)
            log.warning("blocks.not_made", failures=self._failures, waiting=len(self._waiting), reason=str(e))
            return False
        self._failures, self._problem = 0, ""
        return True

    async def _next(self) -> None:
        """Of some jobs together. Those that failed, or were not come to, stay the first in line."""
        batch = self._take()
        left = dict.fromkeys(batch)
        failed: list[Exception] = []
        try:
            with collapse():
                async with trio.open_nursery() as nursery:
                    for job in batch:
                        nursery.start_soon(self._make_one, job, left, failed)
        finally:
            for job in reversed(left):
                self._waiting[job] = None
                self._waiting.move_to_end(job, last=False)
        if failed:
            raise failed[0]

    def _take(self) -> list[str]:
        """Off the line, before anything is done: what changes meanwhile comes again. A record that is not in memory goes alone: it may be large."""
        batch: list[str] = []
        while self._waiting and len(batch) < self._settings.at_once:
            job = next(iter(self._waiting))
            if batch and not self._table.holds(job):
                break
            del self._waiting[job]
            batch.append(job)
            if not self._table.holds(job):
                break
        return batch

    async def _make_one(self, job: str, left: dict[str, None], failed: list[Exception]) -> None:
        try:
            # Not through the table: old jobs would take the place of those that are asked about.
            await self._make(self._table.record(job) if self._table.holds(job) else Record(job, await self._journal.load(job)))
        except (BadCid, BlockCorrupt) as e:
            self._put_back(job, e)
        except (ContentError, DimError, OSError) as e:
            failed.append(e)
            return
        else:
            self._spoilt.pop(job, None)
        del left[job]

    def _put_back(self, job: str, why: ContentError) -> None:
        """It is this job's own fault: no other one waits for it."""
        tries = self._spoilt.pop(job, 0) + 1
        log.warning("blocks.not_made", job=job, tries=tries, reason=str(why))
        if tries < self._settings.tries:
            self._spoilt[job] = tries
            self._waiting[job] = None

    async def _walk(self) -> None:
        """One page of the journal."""
        page = await self._journal.digests(self._cursor, self._settings.page)
        for job, entries in (await self._journal.load_many([d.job for d in page])).items() if page else ():
            try:
                await self._make(Record(job, entries))
            except (BadCid, BlockCorrupt) as e:
                log.warning("blocks.not_made", job=job, reason=str(e))
            await trio.lowlevel.checkpoint()
        self._walk_due = bool(page)
        self._cursor = page[-1].job if page else ""

    async def _make(self, record: Record) -> None:
        s = self._settings
        piece: dict[str, bytes] = {}
        async with aclosing(self._blocks(record)) as blocks:
            async for cid, data in blocks:
                piece[cid] = data
                if len(piece) >= s.piece_blocks or sum(map(len, piece.values())) >= s.piece_bytes:
                    await self._put(record.job, list(piece.values()))
                    piece = {}
        if piece:
            await self._put(record.job, list(piece.values()))
        if not self._table.unfinished(record.job):
            self._formed.pop(record.job, None)
            return
        self._formed[record.job] = None
        self._formed.move_to_end(record.job)
        while len(self._formed) > self._settings.remembered:
            self._formed.popitem(last=False)

    async def _put(self, job: str, blocks: Sequence[bytes]) -> None:
        """In one go; one by one, if any of them never will be a block."""
        store = self._store.private_to(job)
        try:
            made = await store.put_lacking(blocks)
        except (TooLarge, ValueError) as e:
            if len(blocks) == 1:
                log.info("blocks.no_block", job=job, reason=str(e))
                return
            for data in blocks:
                await self._put(job, [data])
        else:
            self._made += made

    async def _blocks(self, record: Record) -> AsyncGenerator[tuple[str, bytes], None]:
        seen = view(record)
        if seen.core is not None and cid_of(seen.core.spec) == seen.core.spec_cid:
            yield seen.core.spec_cid, seen.core.spec
        if not seen.terminal:
            return
        document: Any = None
        result, cid = (seen.outcome.result, seen.outcome.result_cid) if seen.outcome is not None else (None, None)
        if result is not None:
            if cid is not None and cid_of(result) == cid:
                yield cid, result
            document = _plain(result)
        elif cid is not None and is_cid(cid) and await self._store.has(cid):
            document = await self._document(record.job, cid)
        for data in receipt_blocks(record.entries(), document):
            yield cid_of(data), data

    async def _document(self, job: str, cid: str) -> Any:
        try:
            return await self._store.get_dag(cid, timeout=0.0)
        except ContentError as e:  # damaged, or just gone: its receipts have to come from elsewhere
            log.warning("records.result_unreadable", job=job, reason=str(e))
            return None


def _plain(data: bytes) -> Any:
    try:
        return codec.decode_plain(data)
    except codec.CodecError:
        return None
