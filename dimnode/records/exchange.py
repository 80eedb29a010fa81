"""Parts of records between nodes that both hold them: fetched, let in, and sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog

from dimnode.core.job_record import Record
from dimnode.core.job_view import view
from dimnode.core.record_gate import EntryRules, RecordGate
from dimnode.core.records_sync import portions
from dimnode.core.retention import RetentionRule
from dimnode.domain import codec
from dimnode.domain.record import SignedEntry
from dimnode.ports import Clock
from dimnode.records.admission import Turns, admit
from dimnode.records.messages import FETCH, STORE, FetchAnswer, FetchRequest, JobEntries, StoreAnswer, StoreRequest
from dimnode.records.table import RecordTable
from p2p.api import Network

log = structlog.get_logger(__name__)
T = TypeVar("T")
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ExchangeSettings:
    max_bytes: int = 4 * MIB
    """Of entries in one request."""
    max_jobs: int = 512
    """In one request."""
    most_bytes: int = 32 * MIB
    """Of entries that are fetched, or sent, in one go; what is left comes another time."""
    request_timeout: float = 5.0
    """Seconds."""
    retention: RetentionRule = field(default_factory=RetentionRule)


class RecordExchange:
    """All methods raise `p2p.api.NetworkError` or `codec.CodecError` if the peer does not answer or not as it should, and
    what `RecordTable.merge_many` raises."""

    def __init__(
        self,
        network: Network,
        table: RecordTable,
        clock: Clock,
        settings: ExchangeSettings | None = None,
        *,
        rules: EntryRules,
    ) -> None:
        self._network = network
        self._table = table
        self._clock = clock
        self._settings = settings or ExchangeSettings()
        self._gate = RecordGate(rules)
        self.counts: Counter[str] = Counter()
        """Entries ``taken``, ``refused`` and ``sent``."""

    async def ask(self, peer: str, method: str, request: Any, kind: type[T]) -> T:
        return codec.decode(await self._network.request(peer, method, codec.encode(request), timeout=self._settings.request_timeout), kind)

    async def fetch(self, peer: str, jobs: Sequence[str]) -> dict[str, list[SignedEntry]]:
        """The entries that the peer has of these jobs, as many as are fetched in one go."""
        found: dict[str, list[SignedEntry]] = {}
        left = list(jobs)
        after = ""
        room = self._settings.most_bytes
        while left and room > 0:
            request = FetchRequest(jobs=tuple(left[: self._settings.max_jobs]), after=after)
            answer = await self.ask(peer, FETCH, request, FetchAnswer)
            for told in answer.jobs:
                found.setdefault(told.job, []).extend(told.entries)
                room -= sum(len(e.payload) for e in told.entries)
            asked, after = len(request.jobs), ""
            if answer.cut and answer.jobs and answer.jobs[-1].job in left and answer.jobs[-1].entries:
                asked = left.index(answer.jobs[-1].job)
                after = answer.jobs[-1].entries[-1].id
            left = left[asked:]
        return found

    async def take(self, peer: str, told: Sequence[JobEntries]) -> dict[str, bool]:
        """Lets in what is sound and makes it durable. Of each job: whether it told anything new."""
        return await self.merge(await self.sound(peer, told))

    async def sound(self, peer: str, told: Sequence[JobEntries]) -> list[tuple[str, Sequence[SignedEntry]]]:
        """What of it may be let in."""
        records = await self._table.find_many([t.job for t in told])
        good: list[tuple[str, Sequence[SignedEntry]]] = []
        turns = Turns()
        for t in told:
            record = records.get(t.job)
            admitted = await admit(self._gate, t.job, t.entries, record, turns, whole=False, unwritten=self._table.unwritten(t.job))
            if admitted.refused:
                self.counts["refused"] += admitted.refused
                log.warning("records.refused", peer=peer, job=t.job, entries=admitted.refused, reason=admitted.reason)
            if admitted.entries and not (record is None and self._outdated(t.job, admitted.entries)):
                good.append((t.job, admitted.entries))
        return good

    async def merge(self, sound: Sequence[tuple[str, Sequence[SignedEntry]]]) -> dict[str, bool]:
        """Makes durable what `sound` let in. Of each job: whether it told anything new."""
        merged = await self._table.merge_many(sound) if sound else []
        self.counts["taken"] += sum(len(entries) for _, entries in sound)
        return {m.job: m.grew for m in merged}

    async def send(self, peer: str, jobs: Sequence[tuple[str, Sequence[SignedEntry]]]) -> set[str]:
        """Jobs of which the peer now has durably what was sent."""
        stored: set[str] = set()
        failed: set[str] = set()
        room = self._settings.most_bytes
        for part in portions(jobs, self._settings.max_bytes, self._settings.max_jobs):
            if room <= 0:
                failed.update(job for job, _ in part)
                continue
            request = StoreRequest(jobs=tuple(JobEntries(job=job, entries=tuple(entries)) for job, entries in part), merge=True)
            for result in (await self.ask(peer, STORE, request, StoreAnswer)).results:
                (stored if result.status == "stored" else failed).add(result.job)
            sent = [e for _, entries in part for e in entries]
            self.counts["sent"] += len(sent)
            room -= sum(len(e.payload) for e in sent)
        return stored - failed

    def _outdated(self, job: str, entries: Sequence[SignedEntry]) -> bool:
        return self._settings.retention.forgettable(view(Record(job, entries)), self._clock.wall())
