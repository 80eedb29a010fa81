"""Keeps copies of records for their owners: what is said to be stored is on this disk.

Many jobs come in one request and go to the disk in one transaction, in which it is also seen whether a higher claim is
known. One bad job does not spoil the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog
import trio

from dimnode.core.job_record import Record
from dimnode.core.job_view import view
from dimnode.core.record_gate import EntryRules, RecordGate, begins, decided_under, end_of, proof_of
from dimnode.core.retention import RetentionRule
from dimnode.domain import codec
from dimnode.domain.record import SignedEntry
from dimnode.errors import DimError, ResourceExhausted
from dimnode.ports import Clock, Journal
from dimnode.records.admission import Admitted, Turns, admit
from dimnode.records.messages import (
    BLOCKS,
    COMPARE,
    FETCH,
    MAX_BLOCKS,
    STORE,
    BlocksAnswer,
    BlocksRequest,
    CompareAnswer,
    CompareRequest,
    FetchAnswer,
    FetchRequest,
    JobEntries,
    StoreAnswer,
    StoreRequest,
    StoreResult,
)
from dimnode.records.table import Merged, RecordTable
from p2p.api import Network, RemoteFault
from p2p.ipfs.api import ContentError, ContentStore, DiskFull

log = structlog.get_logger(__name__)
T = TypeVar("T")
MIB = 1024 * 1024
PIN = "job "
"""What pins of blocks kept for a job begin with; the job's id follows."""


@dataclass(frozen=True, slots=True)
class HolderSettings:
    max_bytes: int = 4 * MIB
    """Of entries in one request or answer; a single entry may have that many by itself."""
    max_jobs: int = 1_024
    """In one request to store."""
    max_items: int = 512
    """In one request to compare or fetch."""
    proof_bytes: int = 256 * 1024
    """Of entries told to whoever is fenced, for one job."""
    requests_at_once: int = 16
    """Of each kind."""
    max_blocks: int = MAX_BLOCKS
    """CIDs in one request."""
    blocks_at_once: int = 4
    """CIDs that are fetched at the same time."""
    block_timeout: float = 20.0
    """Seconds without progress."""
    keep_free: int = 256 * MIB
    """Bytes of the disk below which no blocks are kept for others."""
    retention: RetentionRule = field(default_factory=RetentionRule)


def anyone(peer: str) -> bool:
    del peer
    return True


class RecordHolder:
    """Serves from its making on. ``accepts``: whose records this node keeps (custody); ``free``: bytes left on the disk of
    the blocks."""

    def __init__(
        self,
        network: Network,
        table: RecordTable,
        journal: Journal,
        store: ContentStore,
        clock: Clock,
        settings: HolderSettings | None = None,
        *,
        rules: EntryRules,
        accepts: Callable[[str], bool] = anyone,
        free: Callable[[], int] | None = None,
    ) -> None:
        self._table = table
        self._journal = journal
        self._store = store
        self._clock = clock
        self._settings = s = settings or HolderSettings()
        self._gate = RecordGate(rules)
        self._accepts = accepts
        self._free = free
        self._fetching = trio.CapacityLimiter(s.blocks_at_once)
        self._counts: Counter[str] = Counter()
        for method, serve in ((STORE, self._serve_store), (COMPARE, self._serve_compare), (FETCH, self._serve_fetch)):
            network.serve(method, serve, s.requests_at_once)
        network.serve(BLOCKS, self._serve_blocks, s.requests_at_once)

    def statistics(self) -> Mapping[str, int]:
        """Jobs of requests to store, by what became of them: ``stored``, ``fenced``, ``incomplete``, ``refused``, ``full``; and
        ``blocks_kept``, ``blocks_not_kept``."""
        return dict(self._counts)

    # --- storing

    async def _serve_store(self, peer: str, data: bytes) -> bytes:
        request = _decode(data, StoreRequest)
        jobs = [j.job for j in request.jobs]
        entries = [e for j in request.jobs for e in j.entries]
        if len(jobs) > self._settings.max_jobs or len(set(jobs)) < len(jobs):
            raise RemoteFault("INVALID_ARGUMENT", f"a request names at most {self._settings.max_jobs} jobs, each once")
        if len(entries) > 1 and sum(len(e.payload) for e in entries) > self._settings.max_bytes:
            raise RemoteFault("INVALID_ARGUMENT", f"a request has at most {self._settings.max_bytes} bytes of entries")
        results = await self._store_all(peer, request) if request.jobs else []
        self._counts.update(r.status for r in results)
        return codec.encode(StoreAnswer(results=tuple(results)))

    async def _store_all(self, peer: str, request: StoreRequest) -> list[StoreResult]:
        if not self._accepts(peer):
            return [StoreResult(job=j.job, status="refused", reason="this node keeps no copies for that one") for j in request.jobs]
        try:
            records = await self._table.find_many([j.job for j in request.jobs])
            turns = Turns()
            found: dict[str, StoreResult | Admitted] = {
                j.job: await self._judge(peer, j, records.get(j.job), turns, merge=request.merge) for j in request.jobs
            }
            good = [j for j in request.jobs if isinstance(found[j.job], Admitted)]
            merged = await self._write(peer, good, found, merge=request.merge)
        except ResourceExhausted:
            return [StoreResult(job=j.job, status="full") for j in request.jobs]
        except DimError as e:
            raise RemoteFault("UNAVAILABLE", e.message) from e
        return self._results(request, found, merged, records)

    async def _judge(self, peer: str, sent: JobEntries, record: Record | None, turns: Turns, *, merge: bool) -> StoreResult | Admitted:
        """What may be stored of it, or why nothing."""
        if record is None and not begins(sent.entries):
            return StoreResult(job=sent.job, status="incomplete")
        if not merge and not self._gate.may_decide(peer):
            return StoreResult(job=sent.job, status="refused", reason="this node is not among those that may decide here")
        admitted = await admit(
            self._gate, sent.job, sent.entries, record, turns, whole=not merge, unwritten=self._table.unwritten(sent.job)
        )
        if admitted.reason:
            log.warning("records.refused", peer=peer, job=sent.job, entries=admitted.refused, reason=admitted.reason)
            if not admitted.entries:
                return StoreResult(job=sent.job, status="refused", reason=admitted.reason)
        if merge and record is None and self._outdated(sent.job, admitted.entries):
            return StoreResult(job=sent.job, status="refused", reason="the job ended longer ago than records are kept")
        return admitted

    def _outdated(self, job: str, entries: Sequence[SignedEntry]) -> bool:
        return self._settings.retention.forgettable(view(Record(job, entries)), self._clock.wall())

    async def _write(self, peer: str, good: Sequence[JobEntries], found: Mapping[str, Any], *, merge: bool) -> dict[str, Merged]:
        under = {} if merge else {j.job: b for j in good if (b := decided_under(j.entries, peer)) is not None}
        merged = await self._table.merge_many(
            [(j.job, found[j.job].entries) for j in good], under=under, fresh=frozenset(j.job for j in good if j.new and j.job in under)
        )
        return {m.job: m for m in merged}

    def _results(
        self,
        request: StoreRequest,
        found: Mapping[str, StoreResult | Admitted],
        merged: Mapping[str, Merged],
        before: Mapping[str, Record],
    ) -> list[StoreResult]:
        """``before``: the records as they were. Whoever goes on with a job that was cancelled, or completed by another owner, is told."""
        results: list[StoreResult] = []
        room = self._settings.max_bytes
        for sent in request.jobs:
            job, judged = sent.job, found[sent.job]
            most = min(room, self._settings.proof_bytes)
            if isinstance(judged, StoreResult):
                results.append(judged)
                continue
            if (fence := merged[job].fenced) is not None:
                known = self._table.record(job) if self._table.holds(job) else Record(job)
                told = proof_of(known, most)
                results.append(StoreResult(job=job, status="fenced", ballot=fence, entries=told))
            else:
                told = () if request.merge or job not in before else end_of(before[job], {e.id for e in sent.entries}, most)
                results.append(StoreResult(job=job, status="stored", entries=told))
            room -= sum(len(e.payload) for e in told)
        return results

    # --- comparing and fetching

    async def _serve_compare(self, peer: str, data: bytes) -> bytes:
        request = _decode(data, CompareRequest)
        self._bounded(len(request.items))
        here = await self._unless_closed(self._journal.digests_of, [i.job for i in request.items])
        differ = [i.job for i in request.items if i.job in here and here[i.job].digest != i.digest]
        want = [i.job for i in request.items if i.keep and i.job not in here] if self._accepts(peer) else []
        told, more = await self._whole(differ)
        return codec.encode(CompareAnswer(want=tuple(want), differ=told, more=more))

    async def _whole(self, jobs: Sequence[str]) -> tuple[tuple[JobEntries, ...], tuple[str, ...]]:
        """All entries of as many jobs as fit, and the jobs that do not."""
        told: list[JobEntries] = []
        room = self._settings.max_bytes
        for start in range(0, len(jobs), 16):
            part = jobs[start : start + 16]
            for job, entries in (await self._unless_closed(self._journal.load_many, part)).items():
                size = sum(len(e.payload) for e in entries)
                if size <= room:
                    told.append(JobEntries(job=job, entries=entries))
                    room -= size
            if room < self._settings.max_bytes // 8:
                break
        done = {t.job for t in told}
        return tuple(told), tuple(j for j in jobs if j not in done)

    async def _serve_fetch(self, peer: str, data: bytes) -> bytes:
        del peer
        request = _decode(data, FetchRequest)
        self._bounded(len(request.jobs))
        told: list[JobEntries] = []
        room = self._settings.max_bytes
        cut = False
        for n, job in enumerate(request.jobs):
            entries = sorted(await self._unless_closed(self._journal.load, job), key=lambda e: e.id)
            if n == 0:
                entries = [e for e in entries if e.id > request.after]
            fitting: list[SignedEntry] = []
            for entry in entries:
                if len(entry.payload) > room and (told or fitting):
                    break
                fitting.append(entry)
                room -= len(entry.payload)
            cut = len(fitting) < len(entries)
            if fitting:
                told.append(JobEntries(job=job, entries=tuple(fitting)))
            if cut:
                break
        return codec.encode(FetchAnswer(jobs=tuple(told), cut=cut))

    def _bounded(self, items: int) -> None:
        if items > self._settings.max_items:
            raise RemoteFault("INVALID_ARGUMENT", f"a request names at most {self._settings.max_items} jobs")

    async def _unless_closed(self, read: Callable[..., Any], *args: Any) -> Any:
        try:
            return await read(*args)
        except DimError as e:
            raise RemoteFault("UNAVAILABLE", e.message) from e

    # --- blocks

    async def _serve_blocks(self, peer: str, data: bytes) -> bytes:
        request = _decode(data, BlocksRequest)
        if len(request.cids) > self._settings.max_blocks:
            raise RemoteFault("INVALID_ARGUMENT", f"a request names at most {self._settings.max_blocks} blocks")
        kept = await self.keep_blocks(request) if self._accepts(peer) else set[str]()
        self._counts["blocks_kept"] += len(kept)
        self._counts["blocks_not_kept"] += len(set(request.cids)) - len(kept)
        return codec.encode(BlocksAnswer(kept=tuple(c for c in request.cids if c in kept)))

    async def keep_blocks(self, request: BlocksRequest) -> set[str]:
        """Those that are durable and pinned here now."""
        kept: set[str] = set()
        async with trio.open_nursery() as nursery:
            for cid in dict.fromkeys(request.cids):
                nursery.start_soon(self._keep_block, request, cid, kept)
        return kept

    async def _keep_block(self, request: BlocksRequest, cid: str, kept: set[str]) -> None:
        """Fetched whole and pinned. A pin for something else stays what it is; of several jobs the last one has the pin."""
        async with self._fetching:
            try:
                if self._free is not None and self._free() < self._settings.keep_free:
                    raise DiskFull("the disk is nearly full")
                await self._store.private_to(request.job).fetch(cid, providers=request.providers, timeout=self._settings.block_timeout)
                pinned = await self._store.pinned_for(cid)
                if pinned is None or pinned.startswith(PIN):
                    await self._store.pin(cid, reason=PIN + request.job)
            except ContentError as e:
                log.warning("records.block_not_kept", job=request.job, cid=cid, reason=str(e))
                return
        kept.add(cid)


def _decode(data: bytes, kind: type[T]) -> T:
    try:
        return codec.decode(data, kind)
    except codec.CodecError as e:
        raise RemoteFault("INVALID_ARGUMENT", "the request cannot be read") from e
