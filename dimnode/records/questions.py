"""Answers what other nodes ask about jobs that somebody takes over: OFFER, ATTEMPTS, RESULTS. Registered once per node."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import structlog
import trio

from dimnode.core.ballots import leaps
from dimnode.core.job_record import EntryRefused, Record, check_room
from dimnode.core.job_view import view
from dimnode.core.record_gate import EntryRules
from dimnode.domain import codec
from dimnode.domain.record import Attempt, Ballot, Claim, OutcomeEntry, SignedEntry
from dimnode.domain.task import TaskReport
from dimnode.errors import Code, DimError, Fenced
from dimnode.records.messages import (
    ATTEMPTS,
    OFFER,
    RESULTS,
    AttemptsAnswer,
    AttemptsRequest,
    JobEntries,
    OfferAnswer,
    OfferRequest,
    ResultsAnswer,
    ResultsRequest,
)
from dimnode.records.offers import Driver
from dimnode.records.table import RecordTable
from p2p.api import Network, RemoteFault

log = structlog.get_logger(__name__)
T = TypeVar("T")


class Reporter(Protocol):
    """The part of `dimnode.ports.TaskService` that tells what became of tasks."""

    async def attempts_of(self, job: str, ballot: Ballot) -> TaskReport: ...


@dataclass(frozen=True, slots=True)
class QuestionsSettings:
    most: int = 1024
    """Jobs, or entries, in one request; more are refused."""
    answer_bytes: int = 4 * 1024 * 1024
    """Entries in one answer; what does not fit is left out and asked for again."""
    offers_at_once: int = 8
    reports_at_once: int = 32
    results_at_once: int = 16


class Questions:
    def __init__(
        self,
        network: Network,
        table: RecordTable,
        daemon: Reporter,
        driver: Callable[[], Driver | None],
        settings: QuestionsSettings | None = None,
        *,
        rules: EntryRules,
    ) -> None:
        """``driver``: the orchestrator while one is alive here."""
        self._me = network.peer_id
        self._table = table
        self._daemon = daemon
        self._driver = driver
        self._settings = s = settings or QuestionsSettings()
        self._rules = rules
        network.serve(OFFER, self._answering(OfferRequest, self._offer), s.offers_at_once)
        network.serve(ATTEMPTS, self._answering(AttemptsRequest, self._attempts), s.reports_at_once)
        network.serve(RESULTS, self._answering(ResultsRequest, self._results), s.results_at_once)

    def _answering(self, kind: type[T], answer: Callable[[str, T], Awaitable[Any]]) -> Callable[[str, bytes], Awaitable[bytes]]:
        async def handle(peer: str, data: bytes) -> bytes:
            try:
                return codec.encode(await answer(peer, codec.decode(data, kind)))
            except codec.CodecError as e:
                raise RemoteFault(Code.INVALID_ARGUMENT.value, "not a question of this kind") from e
            except DimError as e:
                raise RemoteFault(e.code.value, e.message) from e

        return handle

    def _bounded(self, count: int) -> None:
        if count > self._settings.most:
            raise RemoteFault(Code.INVALID_ARGUMENT.value, f"at most {self._settings.most} at once")

    def _seated(self) -> Driver:
        driver = self._driver()
        if driver is None:
            raise RemoteFault(Code.UNAVAILABLE.value, "no seat is held here")
        return driver

    # --- OFFER

    async def _offer(self, peer: str, request: OfferRequest) -> OfferAnswer:
        driver = self._seated()
        self._bounded(len(request.jobs))
        offered: dict[str, list[SignedEntry]] = {}
        for item in request.jobs:
            offered.setdefault(item.job, []).extend(item.entries)
        fit = {job: found for job, entries in offered.items() if (found := await self._fit(job, entries)) is not None}
        await self._table.merge_many(list(fit.items()))
        here = [job for job in fit if self._table.holds(job) and not self._table.view(job).terminal]
        # Whoever offers somebody else's job may have claimed it himself since: that is no reason to claim it over him.
        taken = await driver.take_over(here, peer if request.give_away else "")
        known: list[JobEntries] = []
        size = 0
        for job in fit:
            news = self._news(job, {e.id for e in offered[job]})
            size += sum(len(e.payload) for e in news)
            if news and size <= self._settings.answer_bytes:
                known.append(JobEntries(job=job, entries=tuple(news)))
        return OfferAnswer(taken=tuple(taken), known=tuple(known))

    async def _fit(self, job: str, entries: Iterable[SignedEntry]) -> list[SignedEntry] | None:
        """The new ones, checked; None if any may not enter the record."""
        await trio.lowlevel.checkpoint()
        record = self._table.record(job) if self._table.holds(job) else None
        new = [e for e in entries if record is None or e.id not in record]
        try:
            bodies = [self._rules.check(e) for e in new]
            if any(b.job != job for b in bodies):
                raise EntryRefused("an entry is another job's")
            highest = view(record).epoch if record is not None else 0
            if any(isinstance(b, Claim) and leaps(b.ballot, highest) for b in bodies):
                raise EntryRefused("a claim is out of reach")
            check_room(record, new)
        except EntryRefused as e:
            log.warning("offer.refused", job=job, reason=str(e))
            return None
        return new

    def _news(self, job: str, told: Iterable[str]) -> Sequence[SignedEntry]:
        """Claims and ends that whoever offered the job does not know: with them he sees who drives it, and offers it no more."""
        if not self._table.holds(job):
            return ()
        record: Record = self._table.record(job)
        told = set(told)
        seen = view(record)
        return [
            entry
            for key, body in record.items()
            if key not in told
            and (isinstance(body, OutcomeEntry) or (isinstance(body, Claim) and body.ballot == seen.owner))
            and (entry := record.get(key)) is not None
        ]

    # --- ATTEMPTS

    async def _attempts(self, peer: str, request: AttemptsRequest) -> AttemptsAnswer:
        """To ask under a ballot is to fence all lower ones here."""
        self._bounded(len(request.jobs))
        if not self._rules.may_decide(peer):
            raise RemoteFault(Code.PERMISSION_DENIED.value, "this node may not take jobs over here")
        reports: list[TaskReport | None] = []
        size = 0
        for job, ballot in request.jobs:
            if ballot.peer != peer:
                raise RemoteFault(Code.PERMISSION_DENIED.value, "only the owner of a ballot asks under it")
            try:
                report = await self._daemon.attempts_of(job, ballot)
            except Fenced:
                report = None
            size += sum(len(e.payload) for e in report.finished) if report is not None else 0
            if reports and size > self._settings.answer_bytes:
                break
            reports.append(report)
        return AttemptsAnswer(reports=tuple(reports))

    # --- RESULTS

    async def _results(self, peer: str, request: ResultsRequest) -> ResultsAnswer:
        """Attempts for jobs that this node drives, durable, so that whoever waits for them sees them; those of jobs that have
        ended are of no use to anybody."""
        driver = self._seated()
        self._bounded(len(request.entries))
        owned = set(driver.owned())
        received: list[str] = []
        wanted: dict[str, list[SignedEntry]] = {}
        for entry in request.entries:
            job = _attempt_of(entry, peer)
            if job is None:
                continue
            if await self._ended(job):
                received.append(entry.id)
            elif job in owned:
                wanted.setdefault(job, []).append(entry)
        fit: Mapping[str, list[SignedEntry]] = {
            job: found for job, entries in wanted.items() if (found := await self._fit(job, entries)) is not None
        }
        await self._table.merge_many(list(fit.items()))
        received += [e.id for job in fit for e in wanted[job]]
        return ResultsAnswer(received=tuple(received))

    async def _ended(self, job: str) -> bool:
        return await self._table.exists(job) and (await self._table.load(job)).terminal


def _attempt_of(entry: SignedEntry, peer: str) -> str | None:
    """The job of an attempt by this peer; others' are not its to bring."""
    try:
        body = entry.body()
    except codec.CodecError:
        return None
    return body.job if isinstance(body, Attempt) and body.node == peer == entry.author else None
