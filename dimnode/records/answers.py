"""What other nodes answer when they are sent entries: claims that fence and ends of jobs, checked, on their way into the record."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from dimnode.core.ballots import leaps
from dimnode.core.job_record import EntryRefused, Record
from dimnode.core.record_gate import EntryRules, highest_n
from dimnode.domain.record import Ballot, Claim, SignedEntry
from dimnode.errors import DimError
from dimnode.records.messages import StoreResult
from dimnode.records.table import RecordTable

log = structlog.get_logger(__name__)


def checked(job: str, entries: Sequence[SignedEntry], rules: EntryRules) -> list[SignedEntry]:
    """Those that are sound and about this job."""
    out: list[SignedEntry] = []
    for entry in entries:
        try:
            if rules.check(entry).job == job:
                out.append(entry)
        except EntryRefused as e:
            log.warning("copies.bad_entry", job=job, reason=str(e))
    return out


def fence_of(job: str, result: StoreResult, record: Record | None, rules: EntryRules) -> tuple[Ballot, list[SignedEntry]] | None:
    """The highest ballot that an answer tells to be above this node's, and what is sound of its entries; None if it tells none that there
    can be. Claims are signed; a ballot that comes without one is believed only of who may decide. ``record``: as it is here."""
    proof = checked(job, result.entries, rules)
    found = [b.ballot for e in proof if isinstance(b := e.body(), Claim)]
    told = result.ballot
    if told is not None and rules.may_decide(told.peer) and not leaps(told, highest_n(record)):
        found.append(told)
    return (max(found), proof) if found else None


class Learned:
    """Answers that no writer waited for. The latest of each job; one that is lost on the way comes again with the next write."""

    def __init__(self, table: RecordTable) -> None:
        self._table = table
        self._waiting: dict[str, Sequence[SignedEntry]] = {}

    def add(self, job: str, entries: Sequence[SignedEntry]) -> None:
        self._waiting[job] = entries

    async def take_in(self) -> None:
        while self._waiting:
            job, entries = self._waiting.popitem()
            try:
                await self._table.merge(job, entries)
            except DimError as e:
                log.warning("copies.answer_not_kept", job=job, reason=e.message)
