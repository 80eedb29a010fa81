"""The orchestrator: accepts jobs, has them driven, answers for them. Lives while a seat is held."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import structlog
import trio

from dimnode.core.job_record import EntryRefused
from dimnode.core.job_view import JobView
from dimnode.domain import codec
from dimnode.domain.job_form import PRIORITIES, JobForm
from dimnode.domain.record import Ballot, Claim, OutcomeEntry
from dimnode.errors import Code, DataLoss, DimError, FailedPrecondition, NotFound, NotReady, ResourceExhausted, Unavailable
from dimnode.orchestrator.admission import Admission, Prepared
from dimnode.orchestrator.coordinator import Coordinator
from dimnode.orchestrator.documents import job_document, result_document
from dimnode.orchestrator.places import Place, Places
from dimnode.orchestrator.selection import Selector
from dimnode.orchestrator.settings import OrchestratorSettings
from dimnode.ports import Accepted, Clock, JobDocument, Journal, ResultDocument
from dimnode.records.table import RecordTable
from p2p.ipfs.api import ContentError, ContentStore

log = structlog.get_logger(__name__)


class Orchestrator:
    """`dimnode.ports.OrchestratorApi`. ``me`` and ``boot`` make this node's ballots."""

    def __init__(
        self,
        me: str,
        boot: str,
        table: RecordTable,
        journal: Journal,
        admission: Admission,
        coordinator: Coordinator,
        selector: Selector,
        store: ContentStore,
        clock: Clock,
        settings: OrchestratorSettings,
    ) -> None:
        self._me = me
        self._boot = boot
        self._table = table
        self._journal = journal
        self._admission = admission
        self._coordinator = coordinator
        self._selector = selector
        self._store = store
        self._clock = clock
        self._settings = settings
        self._waiting: list[tuple[int, int, str, Ballot, float]] = []
        """Accepted jobs that are not driven yet: a heap by (priority, order of arrival); last, since when."""
        self._arriving: dict[str, trio.Event] = {}
        """Jobs that are being made durable."""
        self._order = itertools.count()
        self._wake = trio.Event()
        self._scopes: dict[str, trio.CancelScope] = {}
        self._own: set[str] = set()
        """Unfinished jobs that this orchestrator drives or will drive."""
        self._accepting = False
        self._counters = {"accepted": 0, "refused": 0, "finished": 0}

    # --- life ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Takes up this node's unfinished jobs, then accepts and drives jobs until cancelled."""
        late = await self._take_up(await self._journal.unfinished())
        self._accepting = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._take_up_later, late)
                task_status.started()
                await self._drive_jobs(nursery)
        finally:
            self._accepting = False
            self._scopes.clear()
            self._waiting.clear()
            self._own.clear()

    def stop_accepting(self) -> None:
        self._accepting = False

    async def _take_up(self, jobs: Sequence[str]) -> list[str]:
        """Claims unfinished jobs of the journal with higher ballots; returns those whose claim could not be
        written (a full disk)."""
        late: list[str] = []
        most = self._settings.claims_at_once
        for start in range(0, len(jobs), most):
            claims = [c for job in jobs[start : start + most] if (c := await self._claim_of(job)) is not None]
            try:
                await self._table.extend([(c.job, [c]) for c in claims])
            except DimError as e:
                log.error("jobs.not_taken_up", jobs=len(claims), code=e.code.value, reason=e.message)
                late += [c.job for c in claims]
                continue
            for c in claims:
                log.info("job.taken_up", job=c.job, epoch=c.ballot.n)
                core = self._table.view(c.job).core
                self._enqueue(c.job, core.priority if core else "", c.ballot)
        return late

    async def _claim_of(self, job: str) -> Claim | None:
        """None for a job that is not to be driven. One that cannot be read must not keep the others waiting."""
        try:
            seen = await self._table.load(job)
        except (NotFound, EntryRefused, codec.CodecError) as e:
            log.error("job.unreadable", job=job, reason=str(e))
            return None
        if seen.terminal or seen.core is None:
            return None
        return Claim(job=job, ballot=Ballot(seen.epoch + 1, self._me, self._boot), elapsed=seen.elapsed, at=self._clock.wall())

    async def _take_up_later(self, late: Sequence[str]) -> None:
        while late:
            await trio.sleep(self._settings.claim_retry)
            late = await self._take_up(late)

    def _enqueue(self, job: str, priority: str, ballot: Ballot) -> None:
        self._own.add(job)
        rank = -PRIORITIES.index(priority) if priority in PRIORITIES else 0
        heapq.heappush(self._waiting, (rank, next(self._order), job, ballot, self._clock.monotonic()))
        self._wake.set()

    async def _drive_jobs(self, nursery: trio.Nursery) -> None:
        places = Places(self._settings.max_running_jobs)
        while True:
            while not self._waiting:
                self._wake = trio.Event()
                await self._wake.wait()
            place = await places.take()
            if not self._waiting:  # cancelled while we waited for a place
                place.close()
                continue
            _, _, job, ballot, since = heapq.heappop(self._waiting)
            nursery.start_soon(self._drive, job, ballot, since, place)

    async def _drive(self, job: str, ballot: Ballot, since: float, place: Place) -> None:
        try:
            if self._ended(job):
                return
            with trio.CancelScope() as scope:
                self._scopes[job] = scope
                await self._coordinator.drive(job, ballot, since, place)
        finally:
            self._scopes.pop(job, None)
            self._own.discard(job)
            self._counters["finished"] += 1
            place.close()

    def _ended(self, job: str) -> bool:
        """An unfinished job is always in memory."""
        return not self._table.holds(job) or self._table.view(job).terminal

    def _forget_cancelled(self) -> None:
        """Cancelled jobs leave the queue once they are the greater part of it."""
        if len(self._waiting) > 2 * len(self._own) + self._settings.max_running_jobs:
            self._waiting = [w for w in self._waiting if not self._ended(w[2])]
            heapq.heapify(self._waiting)

    # --- the API ---

    async def submit(self, form: JobForm, principal: str) -> Accepted:
        answer = (await self.submit_many([form], principal))[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def submit_many(self, forms: Sequence[JobForm | Exception], principal: str) -> list[Accepted | Exception]:
        prepared = [form if isinstance(form, Exception) else await self._prepare(form, principal) for form in forms]
        answers = await self._accept({p.job: p for p in reversed(prepared) if isinstance(p, Prepared)})
        return [answers[p.job] if isinstance(p, Prepared) else p for p in prepared]

    async def _accept(self, wanted: Mapping[str, Prepared]) -> dict[str, Accepted | Exception]:
        """Returns when all of them are durable, whoever brought them. What another call is just making durable is
        waited for, and looked at again, for that call may fail."""
        self._admit(0)
        answers: dict[str, Accepted | Exception] = {}
        while wanted:
            for job in [j for j, p in wanted.items() if p.repeatable and await self._accepted(j)]:
                answers[job] = Accepted(job, 1 + self._table.copies.others(job))
            missing = {j: p for j, p in wanted.items() if j not in answers}
            theirs = {j: self._arriving[j] for j in missing if j in self._arriving}
            if mine := [p for j, p in missing.items() if j not in theirs]:
                answers.update(await self._create(mine))
            for arrived in theirs.values():
                await arrived.wait()
            wanted = {j: missing[j] for j in theirs}
        return answers

    async def _accepted(self, job: str) -> bool:
        """A core without a claim is a job that never had the copies it asked for."""
        return await self._table.exists(job) and (await self._table.load(job)).owner is not None

    async def _create(self, new: Sequence[Prepared]) -> dict[str, Accepted | Exception]:
        """Not interrupted once begun: a job that is durable is also driven, though its client may be gone."""
        self._admit(len(new))
        arrived = trio.Event()
        self._arriving.update((p.job, arrived) for p in new)
        answers: dict[str, Accepted | Exception] = {}
        try:
            with trio.CancelScope(shield=True):
                demanding = [p for p in new if p.min_copies > 1]
                short = await self._copy_first(demanding)
                answers.update(short)
                ready = [p for p in new if p.job not in short]
                counts = await self._table.create(
                    [(p.job, p.entries(Ballot(1, self._me, self._boot), self._clock.wall())) for p in ready],
                    blocks={p.job: p.blocks for p in ready},
                )
                for p, count in zip(ready, counts, strict=True):
                    answers[p.job] = Accepted(p.job, count or 1 + self._table.copies.others(p.job))
                    if count is not None:  # else another seat has it, and drives it
                        self._counters["accepted"] += 1
                        self._enqueue(p.job, p.core.priority, Ballot(1, self._me, self._boot))
        finally:
            for p in new:
                del self._arriving[p.job]
            arrived.set()
        return answers

    async def _copy_first(self, demanding: Sequence[Prepared]) -> dict[str, Accepted | Exception]:
        """Jobs that insist on copies are claimed, which is to say accepted, only when they have them: the refusals of those
        that have not. Their cores stay where they are and are never driven; the same job sent again tries again."""
        short: dict[str, Accepted | Exception] = {}
        for p in demanding:
            (count,) = await self._table.create([(p.job, [p.core])], wanted=p.min_copies - 1, blocks={p.job: p.blocks})
            if count is not None and count < p.min_copies:
                self._counters["refused"] += 1
                short[p.job] = Unavailable(
                    f"the job has {count} of the {p.min_copies} durable copies that it asks for",
                    hint="Try again when more nodes are there, or ask for fewer (`min_copies`).",
                    retry_after=1.0,
                )
        return short

    async def _prepare(self, form: JobForm, principal: str) -> Prepared | Exception:
        try:
            return await self._admission.prepare(form, principal)
        except DimError as e:
            self._counters["refused"] += 1
            return e

    def _admit(self, count: int) -> None:
        if not self._accepting:
            raise Unavailable("this orchestrator is stopping", hint="Try another orchestrator.", retry_after=1.0)
        if len(self._own) + count > self._settings.max_active_jobs:
            self._counters["refused"] += count
            raise ResourceExhausted(
                f"this orchestrator already has {len(self._own)} unfinished jobs",
                hint="Wait for some to finish, or use another orchestrator.",
                retry_after=1.0,
            )

    async def get(self, job_id: str) -> JobDocument:
        await self._visible(job_id)
        return job_document(self._table.record(job_id), self._selector.name)

    async def list_jobs(self, active: bool, limit: int) -> list[JobDocument]:
        if active:
            views = [self._table.view(j) for j in self._table.active[-limit:]]
        else:
            views = [v for v in await self._table.recent(limit) if v.status != "deleted"]
        return [await self.get(v.job) for v in views]

    async def watch(self, job_id: str) -> AsyncGenerator[JobDocument, None]:
        seen, version = await self._visible(job_id), 0
        last: JobDocument | None = None
        while True:
            document = await self.get(job_id)
            if document != last:
                last = document
                yield document
            seen = await self._table.load(job_id)
            if seen.terminal and document["status"] == seen.status:
                return
            version = await self._table.wait_changed(job_id, version)

    async def cancel(self, job_id: str) -> JobDocument:
        """Durable before it is acknowledged. A job that is terminal already stays as it is."""
        seen = await self._visible(job_id)
        if not seen.terminal:
            ballot = seen.owner or Ballot(0, self._me, self._boot)
            if ballot.peer != self._me:
                ballot = Ballot(seen.epoch + 1, self._me, self._boot)
            outcome = OutcomeEntry(job=job_id, ballot=ballot, status="cancelled", at=self._clock.wall())
            seen = await self._table.conclude(job_id, outcome)
            if scope := self._scopes.get(job_id):
                scope.cancel()
            self._own.discard(job_id)
            self._forget_cancelled()
        if seen.status != "cancelled":
            raise FailedPrecondition(f"job {job_id} is {seen.status} already", hint="Only unfinished jobs can be cancelled.")
        return await self.get(job_id)

    async def result(self, job_id: str, wait: float = 0.0) -> ResultDocument:
        seen = await self._visible(job_id)
        if wait > 0 and not seen.terminal:
            with trio.move_on_after(min(wait, self._settings.result_wait)):
                await self._table.wait_ended(job_id)
            seen = await self._visible(job_id)
        if not seen.terminal:
            raise NotReady(f"job {job_id} is {seen.status}", hint="`dimnode watch` follows it.", retry_after=1.0)
        outcome = seen.outcome
        assert outcome is not None
        if outcome.status != "completed":
            raise _no_result(seen)
        if outcome.result is not None:
            return result_document(codec.decode_plain(outcome.result), outcome.result_cid)
        try:
            plain: Mapping[str, Any] = await self._store.get_dag(outcome.result_cid or "", timeout=self._settings.fetch_timeout)
        except ContentError as e:
            raise DataLoss(f"the result of {job_id} cannot be read: {e}", hint="The node that stored it may be down.") from e
        return result_document(plain, outcome.result_cid)

    async def dry_run(self, form: JobForm, principal: str) -> Mapping[str, Any]:
        del principal
        manifests = await self._admission.check(form, dry_run=True)
        plan = self._admission.plan_now(form, manifests, dry_run=True)
        return self._selector.explain(plan, form, manifests)

    def load(self) -> int:
        """Unfinished jobs that this orchestrator drives or will drive."""
        return len(self._own)

    def statistics(self) -> dict[str, Any]:
        return {**self._counters, "active": len(self._own), "waiting": len(self._waiting), "driven": len(self._scopes)}

    async def _visible(self, job_id: str) -> JobView:
        seen = await self._table.load(job_id)
        if seen.status == "deleted":
            raise NotFound(f"job {job_id} is not known here", hint="`dimnode jobs` lists the jobs.")
        return seen


def _no_result(seen: JobView) -> DimError:
    """A job that ended without a result answers with its own reason."""
    error = seen.error
    if error is None:
        return FailedPrecondition(f"job {seen.job} was {seen.status} and has no result")
    code = Code(error.code) if error.code in Code.__members__ else Code.FAILED_PRECONDITION
    return DimError(f"job {seen.job} {seen.status}: {error.message}", code=code, hint=error.hint)
