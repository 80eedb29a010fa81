"""What became of the tasks of jobs that this node takes over: the nodes that were given them are asked, all at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
import trio

from dimnode.core.job_record import EntryRefused, Record
from dimnode.core.record_gate import EntryRules
from dimnode.domain import codec
from dimnode.domain.record import Assign, Attempt, Ballot, SignedEntry, Void
from dimnode.domain.task import TaskReport
from dimnode.orchestrator.settings import OrchestratorSettings
from dimnode.records.messages import ATTEMPTS, AttemptsAnswer, AttemptsRequest
from dimnode.records.table import RecordTable
from p2p.api import Network, NetworkError

log = structlog.get_logger(__name__)

Ask = Callable[[str, AttemptsRequest], Awaitable[AttemptsAnswer | None]]
"""(node, request) -> its answer, None if there was none."""


def unanswered(record: Record) -> list[tuple[str, Assign]]:
    """Assignments whose node has not said how they ended, with their entry ids, the latest last."""
    answered = {(b.task, b.attempt, b.node) for _, b in record.items() if isinstance(b, Attempt)}
    found = [(k, b) for k, b in record.items() if isinstance(b, Assign) and (b.task, b.attempt, b.node) not in answered]
    return sorted(found, key=lambda item: (item[1].attempt, item[1].ballot, item[0]))


@dataclass(frozen=True, slots=True)
class Findings:
    """Of one job: what its nodes said."""

    running: Mapping[str, tuple[Assign, ...]] = field(default_factory=dict[str, tuple[Assign, ...]])
    """Task key -> assignments that their nodes still work on."""
    silent: Mapping[str, tuple[Assign, ...]] = field(default_factory=dict[str, tuple[Assign, ...]])
    """Task key -> assignments whose nodes did not answer."""
    unbegun: Mapping[str, tuple[Assign, ...]] = field(default_factory=dict[str, tuple[Assign, ...]])
    """Task key -> assignments that never got to their nodes. Those that a node refused are not among them."""


NOTHING = Findings()


def ask_over(network: Network, timeout: float) -> Ask:
    """Asks over the network; this node itself, too."""

    async def ask(node: str, request: AttemptsRequest) -> AttemptsAnswer | None:
        try:
            return codec.decode(await network.request(node, ATTEMPTS, codec.encode(request), timeout=timeout), AttemptsAnswer)
        except (NetworkError, codec.CodecError) as e:
            log.info("takeover.no_answer", node=node, jobs=len(request.jobs), reason=str(e))
            return None

    return ask


class Inquiry:
    def __init__(self, table: RecordTable, ask: Ask, settings: OrchestratorSettings, rules: EntryRules) -> None:
        self._table = table
        self._ask = ask
        self._settings = settings
        self._rules = rules

    async def run(self, claimed: Mapping[str, Ballot]) -> dict[str, Findings]:
        """One round for all of these jobs, at most ``inquiry_timeout`` seconds. Attempts that come are in their records
        afterwards (durable with the next decision). The nodes fence lower ballots from now on."""
        given = {job: unanswered(self._table.record(job)) for job in claimed if self._table.holds(job)}
        wanted: dict[str, list[str]] = {}
        for job, assigns in given.items():
            for node in {a.node for _, a in assigns}:
                wanted.setdefault(node, []).append(job)
        reports: dict[tuple[str, str], TaskReport] = {}
        with trio.move_on_after(self._settings.inquiry_timeout):
            async with trio.open_nursery() as nursery:
                for node, jobs in wanted.items():
                    nursery.start_soon(self._question, node, [(j, claimed[j]) for j in jobs], reports)
        return {
            job: self._findings(job, assigns, {a.node: reports.get((job, a.node)) for _, a in assigns}) for job, assigns in given.items()
        }

    def _findings(self, job: str, assigns: Sequence[tuple[str, Assign]], reports: Mapping[str, TaskReport | None]) -> Findings:
        return _findings(assigns, reports, _open(self._table.record(job)) if self._table.holds(job) else frozenset())

    async def _question(self, node: str, jobs: Sequence[tuple[str, Ballot]], reports: dict[tuple[str, str], TaskReport]) -> None:
        """An answer may leave out the last jobs if it would be too large: they are asked for again."""
        while jobs:
            asked = jobs[: self._settings.claims_at_once]
            answer = await self._ask(node, AttemptsRequest(jobs=tuple(asked)))
            if answer is None or not answer.reports:
                return
            for (job, _), report in zip(asked, answer.reports, strict=False):
                reports[job, node] = report or TaskReport()
                self._take_in(job, node, report.finished if report else ())
                await trio.lowlevel.checkpoint()
            jobs = jobs[len(answer.reports) :]

    def _take_in(self, job: str, node: str, entries: Iterable[SignedEntry]) -> None:
        for entry in entries:
            if not self._table.holds(job) or entry.id in self._table.record(job):
                continue
            try:
                body = self._rules.check(entry)
            except EntryRefused as e:
                log.warning("takeover.attempt_refused", job=job, node=node, reason=str(e))
                continue
            if isinstance(body, Attempt) and (body.job, body.node) == (job, node):
                self._table.note_signed(job, entry)


def _open(record: Record) -> frozenset[str]:
    """The unanswered assignments that their nodes did not refuse either, by entry id."""
    refused = {b.attempt_id for _, b in record.items() if isinstance(b, Void)}
    return frozenset(i for i, _ in unanswered(record) if i not in refused)


def _findings(assigns: Sequence[tuple[str, Assign]], reports: Mapping[str, TaskReport | None], still_open: Collection[str]) -> Findings:
    running: dict[str, tuple[Assign, ...]] = {}
    silent: dict[str, tuple[Assign, ...]] = {}
    unbegun: dict[str, tuple[Assign, ...]] = {}
    for entry_id, a in assigns:
        report = reports[a.node]
        if report is None:
            silent[a.task] = (a, *silent.get(a.task, ()))
        elif (a.task, a.attempt) in report.running:
            running[a.task] = (a, *running.get(a.task, ()))
        elif entry_id in still_open:
            unbegun[a.task] = (a, *unbegun.get(a.task, ()))
    return Findings(running, silent, unbegun)
