"""Lets records go when their time is over, a bounded number at a time. The rules are in `dimnode.core.retention`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
import trio

from dimnode.core.job_record import Record
from dimnode.core.job_view import JobView, view
from dimnode.core.retention import RetentionRule
from dimnode.domain.record import Ballot, ErrorInfo, OutcomeEntry
from dimnode.errors import Code, DimError
from dimnode.ports import Clock, Journal, Registry, Signer
from dimnode.records.holder import PIN
from dimnode.records.table import RecordTable
from dimnode.security.signing import sign_entries
from p2p.ipfs.api import ContentError, ContentStore

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RetentionSettings:
    interval: float = 60.0
    """Seconds between rounds."""
    records: int = 500
    """That are looked at, and at most let go, in one round."""
    rule: RetentionRule = field(default_factory=RetentionRule)


class Retention:
    """``boot``: this node's boot id, part of the ballot under which an orphan expires; ``may_decide``: whether others would take that from it."""

    def __init__(
        self,
        table: RecordTable,
        journal: Journal,
        store: ContentStore,
        registry: Registry,
        signer: Signer,
        clock: Clock,
        settings: RetentionSettings | None = None,
        *,
        boot: str,
        may_decide: bool = True,
    ) -> None:
        self._table = table
        self._journal = journal
        self._store = store
        self._registry = registry
        self._signer = signer
        self._clock = clock
        self._settings = settings or RetentionSettings()
        self._boot = boot
        self._may_decide = may_decide
        self._cursors = {True: "", False: ""}
        """Where the walk through whole records, and through parts, goes on."""
        self._unknown: set[str] = set()
        """Jobs with pins and without a record, as of the last walk."""
        self._counts: Counter[str] = Counter()

    def statistics(self) -> Mapping[str, int]:
        """Records ``forgotten``, jobs ``orphaned``, pins ``released``."""
        return dict(self._counts)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. A round that fails (a full disk) is tried again with the next."""
        task_status.started()
        while True:
            await trio.sleep(self._settings.interval)
            try:
                await self.expire_orphans()
                await self.forget_old()
            except (DimError, ContentError) as e:
                log.warning("retention.failed", reason=str(e))

    async def expire_orphans(self) -> int:
        """Unfinished records that are too old and nobody's end, in the record itself: it is told like any other end, and
        nobody drives the job again. Returns how many. For a node that was away: before it resumes anything. Who may not decide
        leaves it to those that may, which do not drive it either."""
        if not self._may_decide:
            return 0
        now = self._clock.wall()
        orphans = [v for v in self._table.active_views() if self._settings.rule.orphaned(v, now) and not self._owned(v)]
        part = orphans[: self._settings.records]
        entries = sign_entries([self._end(v, now) for v in part], self._signer)
        if part:
            await self._table.merge_many([(v.job, [e]) for v, e in zip(part, entries, strict=True)])
            self._counts["orphaned"] += len(part)
            log.warning("retention.orphaned", jobs=len(part))
        return len(part)

    async def forget_old(self) -> int:
        """One step of the walk through the journal; returns how many records were forgotten."""
        old = [*await self._old_records(), *await self._old_parts(), *self._left_orphans()]
        if old:
            await self._store.forget_audiences(old)
            await self._table.forget(old)
            self._counts["forgotten"] += len(old)
            log.info("retention.forgotten", records=len(old))
        await self._release(old)
        return len(old)

    def _owned(self, seen: JobView) -> bool:
        owner = seen.owner
        found = self._registry.find(owner.peer) if owner is not None else ()
        return any(v.state in ("alive", "suspect") and owner is not None and v.heartbeat.boot == owner.boot for v in found)

    def _end(self, seen: JobView, now: float) -> OutcomeEntry:
        return OutcomeEntry(
            job=seen.job,
            ballot=Ballot(seen.epoch + 1, self._signer.peer_id, self._boot),
            status="expired",
            at=now,
            error=ErrorInfo(
                code=Code.DEADLINE_EXCEEDED.value,
                message="the job was orphaned: nobody drove it for longer than unfinished jobs are kept",
                hint="Submit it again.",
            ),
        )

    async def _old_records(self) -> list[str]:
        """Only what has not grown here for the retention time is read at all."""
        now = self._clock.wall()
        found = await self._walk(parts=False)
        candidates = [job for job, finished, at in found if finished and at + self._settings.rule.retention < now]
        old: list[str] = []
        for start in range(0, len(candidates), 50):
            for job, entries in (await self._journal.load_many(candidates[start : start + 50])).items():
                if self._settings.rule.forgettable(view(Record(job, entries)), now):
                    old.append(job)
            await trio.lowlevel.checkpoint()
        return old

    def _left_orphans(self) -> list[str]:
        """Those that this node may not end: once whoever may has long done so."""
        late = self._clock.wall() - self._settings.rule.clock_skew
        left = [] if self._may_decide else self._table.active_views()
        return [v.job for v in left if self._settings.rule.orphaned(v, late) and not self._owned(v)][: self._settings.records]

    async def _old_parts(self) -> list[str]:
        """What this node signed for jobs of others, of which it has no record: as long as such a record would be kept."""
        rule = self._settings.rule
        now = self._clock.wall()
        return [job for job, _, at in await self._walk(parts=True) if at + rule.retention + rule.clock_skew < now]

    async def _walk(self, *, parts: bool) -> list[tuple[str, bool, float]]:
        limit = self._settings.records
        page = await self._journal.digests(self._cursors[parts], limit, parts=parts)
        self._cursors[parts] = page[-1].job if len(page) == limit else ""
        return [(d.job, d.finished, d.at) for d in page]

    async def _release(self, gone: Sequence[str]) -> None:
        """Pins that were made for these jobs, and for jobs that never became known here in the time of a whole walk."""
        pins = {cid: reason for cid, reason in (await self._store.pins()).items() if " " in reason}
        stray: set[str] = set()
        if not self._cursors[False]:
            unknown = await self._without_record({r.removeprefix(PIN) for r in pins.values() if r.startswith(PIN)})
            stray, self._unknown = unknown & self._unknown, unknown
        free = set(gone) | stray
        for cid in [cid for cid, reason in pins.items() if reason.rpartition(" ")[2] in free]:
            await self._store.unpin(cid)
            self._counts["released"] += 1

    async def _without_record(self, jobs: Collection[str]) -> set[str]:
        left = sorted(jobs)
        limit = self._settings.records
        known = [await self._journal.digests_of(left[start : start + limit]) for start in range(0, len(left), limit)]
        return set(left).difference(*known)
