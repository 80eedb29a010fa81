"""The orchestrator: accepts jobs, has them driven, answers for them. Lives while a seat is held."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
import trio

from dimnode.core.following import TERMINAL
from dimnode.core.job_view import JobView, view
from dimnode.core.pace import Pace
from dimnode.core.partial_text import Seen
from dimnode.domain import codec
from dimnode.domain.job_form import PRIORITIES, JobForm
from dimnode.domain.record import Assign, Ballot, OutcomeEntry
from dimnode.domain.task import PartialOutput
from dimnode.errors import DataLoss, DimError, FailedPrecondition, Fenced, NotFound, NotReady, ResourceExhausted, Unavailable
from dimnode.orchestrator.admission import Admission, Prepared
from dimnode.orchestrator.coordinator import Coordinator
from dimnode.orchestrator.documents import digest, job_document, result_document
from dimnode.orchestrator.job_errors import no_result, unacknowledged
from dimnode.orchestrator.ownership import Held, Ownership, Seats, Sync, no_seats, no_sync
from dimnode.orchestrator.places import Place, Places
from dimnode.orchestrator.selection import Selector
from dimnode.orchestrator.settings import OrchestratorSettings
from dimnode.orchestrator.takeover import Inquiry, unanswered
from dimnode.ports import Accepted, Clock, JobDocument, ResultDocument
from dimnode.records.table import RecordTable
from p2p.groups import collapse
from p2p.ipfs.api import ContentError, ContentStore

log = structlog.get_logger(__name__)
LOOKS_AT_ONCE = 16
"""Ended jobs of a list whose voters are asked at the same time."""


@dataclass(slots=True)
class _Driven:
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    over: trio.Event = field(default_factory=trio.Event)
    """Set once nothing is done for it any more, its nodes having been told."""


class Orchestrator:
    """`dimnode.ports.OrchestratorApi`. ``me`` and ``boot`` make this node's ballots."""

    def __init__(
        self,
        me: str,
        boot: str,
        table: RecordTable,
        admission: Admission,
        coordinator: Coordinator,
        selector: Selector,
        store: ContentStore,
        clock: Clock,
        settings: OrchestratorSettings,
        inquiry: Inquiry,
        sync: Sync = no_sync,
        seats: Seats = no_seats,
    ) -> None:
        self._me = me
        self._boot = boot
        self._table = table
        self._admission = admission
        self._coordinator = coordinator
        self._selector = selector
        self._store = store
        self._clock = clock
        self._settings = settings
        self._seats = seats
        self._held = Ownership(me, boot, table, inquiry, clock, settings, sync=sync, seats=seats, drive=self._enqueue)
        """Unfinished jobs that this orchestrator drives or will drive."""
        self._waiting: list[tuple[int, int, Held]] = []
        """Jobs that are not driven yet: a heap by (priority, order of arrival)."""
        self._arriving: dict[str, trio.Event] = {}
        """Jobs that are being made durable."""
        self._order = itertools.count()
        self._wake = trio.Event()
        self._driven: dict[str, _Driven] = {}
        self._accepting = False
        self._nursery: trio.Nursery | None = None
        """While the term lasts."""
        self._brought = 0
        """New jobs that calls are just bringing."""
        self._burst_until = float("-inf")
        self._pace = Pace(settings.pace)
        self._places = Places(settings.max_running_jobs)
        self._counters = {"accepted": 0, "refused": 0, "finished": 0}

    # --- life ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Takes up this node's unfinished jobs, accepts and drives jobs until cancelled. Then the nodes are left at their work:
        it belongs to the next owner. Raises `ResourceExhausted` when the disk is full for long and others hold seats."""
        self._accepting = True
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    nursery.start_soon(self._held.run)
                    nursery.start_soon(self._watch_loop)
                    nursery.start_soon(self._leave_when_full)
                    task_status.started()
                    await self._drive_jobs(nursery)
                finally:
                    self._accepting = False
                    self._nursery = None
        finally:
            self._held.let_all_go()
            self._driven.clear()
            self._waiting.clear()

    async def _leave_when_full(self) -> None:
        """An owner that cannot write ends no job. Others can take its jobs, unless it is the only seat."""
        s = self._settings
        room_at = self._clock.monotonic()
        while True:
            await trio.sleep(s.full_check)
            if await self._table.has_room() or not any(peer != self._me for peer, _ in self._seats()):
                room_at = self._clock.monotonic()
            elif self._clock.monotonic() - room_at >= s.full_patience:
                raise ResourceExhausted("the disk is full", hint="Free some space: until then other nodes orchestrate.")

    def stop_accepting(self) -> None:
        self._accepting = False

    def start_soon(self, work: Callable[..., Awaitable[None]], *args: Any) -> bool:
        """Starts a task that ends with the term; False if there is none."""
        if self._nursery is None:
            return False
        self._nursery.start_soon(work, *args)
        return True

    # --- jobs of others (`dimnode.records.offers.Driver`) ---

    async def take_over(self, jobs: Sequence[str], handed_by: str = "") -> set[str]:
        """Claims and drives those of these jobs that no live seat drives, or that the one which does, ``handed_by``, gives
        away. Returns those that are driven here now; their claims are durable."""
        if not self._accepting:
            return set()
        return await self._held.take(jobs, self._settings.sync_offered, handed_by)

    def owned(self) -> list[str]:
        """Unfinished jobs whose owner is this node, as the records have it."""
        return [v.job for v in self._table.active_views() if v.owner and (v.owner.peer, v.owner.boot) == (self._me, self._boot)]

    # --- driving ---

    def _enqueue(self, held: Held) -> None:
        core = self._table.view(held.job).core
        priority = core.priority if core else ""
        rank = -PRIORITIES.index(priority) if priority in PRIORITIES else 0
        heapq.heappush(self._waiting, (rank, next(self._order), held))
        self._wake.set()

    async def _drive_jobs(self, nursery: trio.Nursery) -> None:
        places = self._places
        while True:
            while not self._waiting:
                self._wake = trio.Event()
                await self._wake.wait()
            place = await places.take()
            if not self._waiting:  # cancelled while we waited for a place
                place.close()
                continue
            nursery.start_soon(self._drive, heapq.heappop(self._waiting)[2], place)
            await self._let_new_jobs_in()

    async def _let_new_jobs_in(self) -> None:
        """Driving a job takes much more time than accepting one. So while many come, few are begun, until there is a good
        stock of them: a burst is acknowledged fast, and a steady stream no faster than it is worked off. And none is begun while
        the node comes late with those that it has."""
        s = self._settings
        if self._clock.monotonic() < self._burst_until and len(self._waiting) < s.burst_stock:
            await trio.sleep(s.burst_pause)
        with trio.move_on_after(s.pace.patience):  # whatever makes the loop late, it may be none of these jobs
            while (pause := self._pace.pause(len(self._driven) - self._places.lent)) > 0:  # noqa: ASYNC110 - for time to pass
                await trio.sleep(pause)

    async def _watch_loop(self) -> None:
        look = self._pace.settings.look
        while True:
            due = self._clock.monotonic() + look
            await trio.sleep(look)
            self._pace.looked(self._clock.monotonic() - due)

    async def _drive(self, held: Held, place: Place) -> None:
        job, driven = held.job, _Driven()
        try:
            if not self._held.still(held):
                return
            with driven.scope:
                self._driven[job] = driven
                await self._coordinator.drive(held, place)
        finally:
            driven.over.set()
            self._driven.pop(job, None)
            self._held.let_go(job)
            self._counters["finished"] += 1
            place.close()

    def _forget_ended(self) -> None:
        """Jobs that ended, or are another's, leave the queue once they are the greater part of it."""
        if len(self._waiting) > 2 * len(self._held) + self._settings.max_running_jobs:
            self._waiting = [w for w in self._waiting if self._held.still(w[2])]
            heapq.heapify(self._waiting)

    # --- the API ---

    async def submit(self, form: JobForm, principal: str) -> Accepted:
        answer = (await self.submit_many([form], principal))[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def submit_many(self, forms: Sequence[JobForm | Exception], principal: str) -> list[Accepted | Exception]:
        self._brought += len(forms)
        if self._brought >= self._settings.burst_jobs:
            self._burst_until = self._clock.monotonic() + self._settings.burst_lasts
        try:
            prepared = [form if isinstance(form, Exception) else await self._prepare(form, principal) for form in forms]
            wanted: dict[str, Prepared] = {}
            for p in prepared:
                if isinstance(p, Prepared):
                    wanted.setdefault(p.job, p)
            answers = await self._accept(wanted)
        finally:
            self._brought -= len(forms)
        return [answers[p.job] if isinstance(p, Prepared) else p for p in prepared]

    async def _accept(self, wanted: Mapping[str, Prepared]) -> dict[str, Accepted | Exception]:
        """Returns when all of them are durable, whoever brought them. What another call is just making durable is
        waited for, and looked at again, for that call may fail."""
        self._refuse_if_stopping()
        answers: dict[str, Accepted | Exception] = {}
        while wanted:
            for job in await self._accepted([j for j, p in wanted.items() if p.repeatable]):
                owned_and_short = job in self._held and not self._table.copies.enough(job)
                answers[job] = unacknowledged() if owned_and_short else Accepted(job, 1 + self._table.copies.others(job))
            missing = {j: p for j, p in wanted.items() if j not in answers}
            theirs = {j: self._arriving[j] for j in missing if j in self._arriving}
            if mine := [p for j, p in missing.items() if j not in theirs]:
                answers.update(await self._create(mine))
            for arrived in theirs.values():
                await arrived.wait()
            wanted = {j: missing[j] for j in theirs}
        return answers

    async def _accepted(self, jobs: Sequence[str]) -> list[str]:
        """Those that were before. A core without a claim is a job that never had the copies it asked for."""
        return [job for job, record in (await self._table.find_many(jobs)).items() if view(record).owner is not None]

    async def _create(self, new: Sequence[Prepared]) -> dict[str, Accepted | Exception]:
        """Not interrupted once begun: a job that is durable is also driven, though its client may be gone. What there is no room for is
        refused, the first ones are not."""
        self._refuse_if_stopping()
        room = max(0, self._settings.max_active_jobs - len(self._held))
        answers: dict[str, Accepted | Exception] = {p.job: self._full() for p in new[room:]}
        self._counters["refused"] += len(answers)
        new = new[:room]
        arrived = trio.Event()
        self._arriving.update((p.job, arrived) for p in new)
        try:
            with trio.CancelScope(shield=True), self._held.arriving([p.job for p in new]):
                demanding = [p for p in new if p.min_copies > 1 or self._table.copies.insists()]
                short = await self._copy_first(demanding)
                answers.update(short)
                ready = [p for p in new if p.job not in short]
                counts = await self._table.create(
                    [(p.job, p.entries(Ballot(1, self._me, self._boot), self._clock.wall())) for p in ready],
                    blocks={p.job: p.blocks for p in ready},
                )
                for p, count in zip(ready, counts, strict=True):
                    answers[p.job] = Accepted(p.job, count or 1 + self._table.copies.others(p.job))
                    if count is not None and not self._table.copies.enough(p.job):
                        answers[p.job] = unacknowledged()  # it may become so: the same job sent again is told
                    if count is not None:  # else another seat has it, and drives it
                        self._counters["accepted"] += 1
                        self._enqueue(self._held.accepted(p.job, Ballot(1, self._me, self._boot)))
        finally:
            for p in new:
                del self._arriving[p.job]
            arrived.set()
        return answers

    async def _copy_first(self, demanding: Sequence[Prepared]) -> dict[str, Accepted | Exception]:
        """Jobs that insist on copies are claimed, which is to say accepted, only when they have them: the refusals of those
        that have not. Their cores stay where they are and are never driven; the same job sent again tries again."""
        short: dict[str, Accepted | Exception] = {}
        for least in sorted({p.min_copies for p in demanding}):
            alike = [p for p in demanding if p.min_copies == least]
            wanted = least - 1 if least > 1 else None
            counts = await self._table.create([(p.job, [p.core]) for p in alike], wanted=wanted, blocks={p.job: p.blocks for p in alike})
            for p, count in zip(alike, counts, strict=True):
                self._judge(p, count, short)
        return short

    def _judge(self, p: Prepared, count: int | None, short: dict[str, Accepted | Exception]) -> None:
        if count is None:
            return
        if not self._table.copies.enough(p.job):
            short[p.job] = unacknowledged()
        elif count < p.min_copies:
            short[p.job] = Unavailable(
                f"the job has {count} of the {p.min_copies} durable copies that it asks for",
                hint="Try again when more nodes are there, or ask for fewer (`min_copies`).",
                retry_after=1.0,
            )
        self._counters["refused"] += p.job in short

    async def _prepare(self, form: JobForm, principal: str) -> Prepared | Exception:
        try:
            return await self._admission.prepare(form, principal)
        except DimError as e:
            self._counters["refused"] += 1
            return e

    def _refuse_if_stopping(self) -> None:
        if not self._accepting:
            raise Unavailable("this orchestrator is stopping", hint="Try another orchestrator.", retry_after=1.0)

    def _full(self) -> ResourceExhausted:
        return ResourceExhausted(
            f"this orchestrator already has {len(self._held)} unfinished jobs",
            hint="Wait for some to finish, or use another orchestrator.",
            retry_after=1.0,
        )

    async def know_models(self, form: JobForm) -> None:
        """Returns when what can be had of the manifests that the form needs is here."""
        await self._admission.know_models(form)

    async def get(self, job_id: str) -> JobDocument:
        await self._visible(job_id)
        return job_document(self._table.record(job_id), self._selector.name)

    async def list_jobs(self, active: bool, limit: int) -> list[JobDocument]:
        if active:
            views = [self._table.view(j) for j in self._table.active[-limit:]]
        else:
            views = [v for v in await self._table.recent(limit) if v.status != "deleted"]
        if not self._table.copies.insists():
            return [await self.get(v.job) for v in views]
        found: dict[str, JobDocument] = {}
        limit_at_once = trio.CapacityLimiter(LOOKS_AT_ONCE)

        async def look(job: str) -> None:
            async with limit_at_once:
                with suppress(NotFound, Unavailable):
                    found[job] = await self.get(job)

        async with trio.open_nursery() as nursery:
            for v in views:
                nursery.start_soon(look, v.job)
        return [found[v.job] for v in views if v.job in found]

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

    async def follow(self, job_id: str) -> AsyncGenerator[JobDocument | PartialOutput, None]:
        """As `watch`, with the text of tasks while it grows."""
        known, seen = "", Seen()
        while True:
            document, pieces = await self.news(job_id, known, seen)
            for piece in pieces:
                if (new := seen.news(piece)) is not None:
                    yield new
            if digest(document) != known:
                known = digest(document)
                yield document
            if (await self._table.load(job_id)).terminal and document["status"] in TERMINAL:
                return

    async def news(self, job_id: str, known: str, seen: Seen) -> tuple[JobDocument, list[PartialOutput]]:
        """The document as soon as it has another digest than ``known``, and text beyond what was ``seen``: one of both at least."""
        seen_view, version = await self._visible(job_id), 0
        while True:
            document = await self.get(job_id)
            pieces = self._coordinator.partials.after(job_id, seen)
            if pieces or digest(document) != known or seen_view.terminal:
                return document, pieces
            with collapse():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._heard, job_id, seen, nursery.cancel_scope)
                    version = await self._table.wait_changed(job_id, version)
                    nursery.cancel_scope.cancel()
            seen_view = await self._table.load(job_id)

    async def _heard(self, job_id: str, seen: Seen, scope: trio.CancelScope) -> None:
        await self._coordinator.partials.wait(job_id, seen)
        scope.cancel()

    async def cancel(self, job_id: str) -> JobDocument:
        """Durable before it is acknowledged. A job that is terminal already stays as it is."""
        seen = await self._visible(job_id)
        if not seen.terminal:
            ballot = seen.owner or Ballot(0, self._me, self._boot)
            if ballot.peer != self._me:
                ballot = Ballot(seen.epoch + 1, self._me, self._boot)
            outcome = OutcomeEntry(job=job_id, ballot=ballot, status="cancelled", at=self._clock.wall())
            given = [assign for _, assign in unanswered(self._table.record(job_id))]
            try:
                seen = await self._table.conclude(job_id, outcome)
            except Fenced as e:
                raise Unavailable(f"job {job_id} has just been taken over", hint="Try again.", retry_after=0.5) from e
            with trio.move_on_after(self._settings.cancel_wait):
                if driven := self._driven.get(job_id):
                    driven.scope.cancel()
                    await driven.over.wait()
                else:
                    self._held.let_go(job_id)
                    if given and seen.status == "cancelled" and self._nursery is not None:
                        called_off = trio.Event()
                        self._nursery.start_soon(self._call_off, given, ballot, called_off)
                        await called_off.wait()
            self._forget_ended()
        if seen.status != "cancelled":
            raise FailedPrecondition(f"job {job_id} is {seen.status} already", hint="Only unfinished jobs can be cancelled.")
        return await self.get(job_id)

    async def _call_off(self, given: Sequence[Assign], ballot: Ballot, called_off: trio.Event) -> None:
        """Also if nobody waits for it any more."""
        try:
            await self._coordinator.call_off(given, ballot)
        finally:
            called_off.set()

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
            raise no_result(seen)
        if outcome.result is not None:
            return result_document(codec.decode_plain(outcome.result), outcome.result_cid)
        try:
            store = self._store.private_to(job_id)
            plain: Mapping[str, Any] = await store.get_dag(outcome.result_cid or "", timeout=self._settings.fetch_timeout)
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
        return len(self._held)

    def statistics(self) -> dict[str, Any]:
        return {
            **self._counters,
            "active": len(self._held),
            "waiting": len(self._waiting),
            "driven": len(self._driven),
            "late_ms": round(1000 * self._pace.late),
        }

    async def _visible(self, job_id: str) -> JobView:
        seen = await self._table.load(job_id)
        if seen.status == "deleted":
            raise NotFound(f"job {job_id} is not known here", hint="`dimnode jobs` lists the jobs.")
        if seen.terminal and not await self._table.copies.counts(job_id):
            raise Unavailable(
                f"the end of job {job_id} is not acknowledged by a majority of the voters", hint="Try again.", retry_after=1.0
            )
        return seen
