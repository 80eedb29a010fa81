"""Which jobs this node drives in its term: taken with a claim, held with their age, let go when another one claims them.

A claim is the authority, and it is durable on the copies before here: whoever finds a higher one there writes nothing. No job
is left between two owners: one that this node owns by its claim and does not drive is claimed again.
"""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable, Collection, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
import trio

from dimnode.core.job_view import JobView
from dimnode.domain.record import Ballot, Claim, StatusEntry
from dimnode.errors import DimError, Fenced, Unavailable
from dimnode.orchestrator.settings import OrchestratorSettings
from dimnode.orchestrator.takeover import NOTHING, Findings, Inquiry
from dimnode.ports import Clock
from dimnode.records.table import RecordTable

log = structlog.get_logger(__name__)

Sync = Callable[[Sequence[str]], Awaitable[None]]
"""Learns what the live seats and other holders know of these jobs. Raises `DimError` if it cannot be stored here."""
Seats = Callable[[], Collection[tuple[str, str]]]
"""(peer, boot) of the live seats, this node's included."""


async def no_sync(jobs: Sequence[str]) -> None:
    del jobs
    await trio.lowlevel.checkpoint()


def no_seats() -> Collection[tuple[str, str]]:
    return ()


@dataclass(slots=True)
class Held:
    """A job of this owner."""

    job: str
    ballot: Ballot
    since: float
    """When it was taken (`Clock.monotonic`)."""
    before: float = 0.0
    """Seconds that it had lived until then."""
    findings: Findings = NOTHING
    checkpoint: float = 0.0
    """When its age is to be written down next."""

    def elapsed(self, now: float) -> float:
        return self.before + now - self.since


class Ownership:
    def __init__(
        self,
        me: str,
        boot: str,
        table: RecordTable,
        inquiry: Inquiry,
        clock: Clock,
        settings: OrchestratorSettings,
        *,
        sync: Sync = no_sync,
        seats: Seats = no_seats,
        drive: Callable[[Held], None],
    ) -> None:
        """``drive`` gets what was taken, once it is known how its tasks stand."""
        self._me = me
        self._boot = boot
        self._table = table
        self._inquiry = inquiry
        self._clock = clock
        self._settings = settings
        self._sync = sync
        self._seats = seats
        self._drive = drive
        self._held: dict[str, Held] = {}
        self._taking: set[str] = set()
        self._nursery: trio.Nursery | None = None
        """While the term lasts."""

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, job: str) -> bool:
        """Whether it is driven here, or about to be."""
        return job in self._held or job in self._taking

    # --- life ---

    async def run(self) -> None:
        """Takes up what this node has to when its term begins, and keeps the age of what it holds, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                nursery.start_soon(self._keep_ages)
                await self._take_up()
            finally:
                self._nursery = None  # before the nursery is closed: nobody starts anything in it any more

    async def _take_up(self) -> None:
        """Jobs of earlier starts and terms of this node. Those that no live seat drives come as offers. What cannot be
        claimed now (a full disk), or is fenced by a claim that nobody shows, is tried again."""
        while True:
            await self.take(self._orphans(), self._settings.sync_timeout)
            await trio.sleep(self._settings.claim_retry)

    def _orphans(self) -> list[str]:
        """Jobs of this node that it does not drive, and, if it is the only seat, everybody's."""
        live = self._seats()
        alone = not any(peer != self._me for peer, _ in live)
        return [v.job for v in self._table.active_views() if self._claimable(v) and v.job not in self and (alone or self._mine(v))]

    def _mine(self, view: JobView) -> bool:
        return view.owner is not None and view.owner.peer == self._me

    def _claimable(self, view: JobView, handed_by: str = "") -> bool:
        """A record without a claim is not accepted yet, and one that is an orphan never runs. ``handed_by``: an owner with a live seat
        that gives it away."""
        if view.terminal or view.core is None or view.owner is None:
            return False
        owner = (view.owner.peer, view.owner.boot)
        if owner == (self._me, self._boot) or view.owner.peer == handed_by:
            return True
        return owner not in self._seats() and not self._settings.retention.orphaned(view, self._clock.wall())

    # --- taking ---

    @contextmanager
    def arriving(self, jobs: Collection[str]) -> Generator[None]:
        """New jobs of this node that are being made durable: they are not taken for anybody's."""
        mine = [j for j in jobs if j not in self._taking]
        self._taking.update(mine)
        try:
            yield
        finally:
            self._taking.difference_update(mine)

    def accepted(self, job: str, ballot: Ballot) -> Held:
        """A new job of this node, durable."""
        return self._hold(job, ballot, 0.0)

    async def take(self, jobs: Iterable[str], sync_timeout: float, handed_by: str = "") -> set[str]:
        """Claims what may be claimed, batch by batch. Returns those of ``jobs`` that are driven here now, their claims durable;
        how their tasks stand is asked for in the background of the term."""
        wanted = list(dict.fromkeys(jobs))
        for start in range(0, len(wanted), self._settings.claims_at_once):
            batch = [j for j in wanted[start : start + self._settings.claims_at_once] if j not in self]
            if batch and self._nursery is not None:
                self._taking.update(batch)
                try:
                    await self._take_batch(batch, sync_timeout, handed_by)
                finally:
                    self._taking.difference_update(batch)
        return {j for j in wanted if j in self._held}

    async def _take_batch(self, jobs: Sequence[str], sync_timeout: float, handed_by: str) -> None:
        try:
            with trio.move_on_after(sync_timeout):
                await self._sync(jobs)
        except DimError as e:
            log.error("jobs.not_taken_up", jobs=len(jobs), code=e.code.value, reason=e.message)
            return
        views = [self._table.view(j) for j in jobs if self._table.holds(j)]
        claims = {v.job: self._claim(v) for v in views if self._claimable(v, handed_by)}
        if not claims:
            return
        try:
            with trio.CancelScope(shield=True):  # what is durable is also known here
                await self._table.extend([(job, [claim]) for job, claim in claims.items()], copies_first=True)
        except (Fenced, Unavailable) as e:  # some of them; the table knows which
            log.info("jobs.not_all_taken", reason=e.message)
        except DimError as e:
            log.error("jobs.not_taken_up", jobs=len(claims), code=e.code.value, reason=e.message)
            return
        if self._nursery is None:  # the term ended meanwhile: nobody's again
            return
        taken = [c for job, c in claims.items() if self._owns(job, c.ballot)]
        for claim in taken:
            log.info("job.taken_up", job=claim.job, epoch=claim.ballot.n)
        self._nursery.start_soon(self._begin, [self._hold(c.job, c.ballot, c.elapsed) for c in taken])

    async def _begin(self, taken: Sequence[Held]) -> None:
        if self._table.copies.insists():
            # Most voters fence the former owner now. What they acknowledged to it before is found on one of them.
            with trio.move_on_after(self._settings.sync_timeout):
                await self._sync([h.job for h in taken])
        findings = await self._inquiry.run({h.job: h.ballot for h in taken})
        for held in taken:
            held.findings = findings.get(held.job, NOTHING)
            if self.still(held):
                self._drive(held)
            else:
                self.let_go(held.job)

    def _claim(self, view: JobView) -> Claim:
        ballot = Ballot(view.epoch + 1, self._me, self._boot)
        return Claim(job=view.job, ballot=ballot, elapsed=view.elapsed, at=self._clock.wall())

    def _hold(self, job: str, ballot: Ballot, before: float) -> Held:
        now = self._clock.monotonic()
        held = self._held[job] = Held(job, ballot, now, before)
        held.checkpoint = now + self._interval(before)
        return held

    def _owns(self, job: str, ballot: Ballot) -> bool:
        if not self._table.holds(job):
            return False
        view = self._table.view(job)
        return view.owner == ballot and not view.terminal

    # --- letting go ---

    def still(self, held: Held) -> bool:
        """Whether it is this owner's to drive: not ended, nobody else's."""
        return self._held.get(held.job) is held and self._owns(held.job, held.ballot)

    def let_go(self, job: str) -> None:
        """Driven no longer: it has ended, or is another's; or this node was fenced without being shown by whom, and claims
        it again after a while. Decisions that were not durable are forgotten."""
        held = self._held.pop(job, None)
        if held is None or not self._table.holds(job):
            return
        self._table.forsake(job)
        if not self._table.view(job).terminal and self._table.view(job).owner != held.ballot:
            log.info("job.let_go", job=job, epoch=self._table.view(job).epoch)
            self._table.copies.drop([job])

    def let_all_go(self) -> None:
        """The term is over."""
        for job in list(self._held):
            self.let_go(job)

    # --- age ---

    async def _keep_ages(self) -> None:
        """A job's timeout holds however often its owners die: its age is written down, more rarely as it grows."""
        while True:
            await trio.sleep(1.0)
            now = self._clock.monotonic()
            due = [h for h in self._held.values() if h.checkpoint <= now]
            due = heapq.nsmallest(self._settings.checkpoints_at_once, due, key=lambda h: h.checkpoint)
            for held in due:
                held.checkpoint = now + self._interval(held.elapsed(now))
            entries = [(h.job, [self._status(h, now)]) for h in due if self.still(h)]
            if not entries:
                continue
            try:
                await self._table.extend(entries)
            except DimError as e:  # fenced: its drive sees that; a full disk: next time
                log.debug("jobs.age_not_written", jobs=len(entries), code=e.code.value)

    def _interval(self, elapsed: float) -> float:
        return max(self._settings.elapsed_checkpoint, self._settings.elapsed_share * elapsed)

    def _status(self, held: Held, now: float) -> StatusEntry:
        """The status that it has already, as of when it had it: nothing changes but its age."""
        view = self._table.view(held.job)
        status = "scheduling" if view.status not in ("queued", "scheduling", "fetching", "running", "aggregating") else view.status
        at = view.times.get(status, view.updated)
        return StatusEntry(job=held.job, ballot=held.ballot, status=status, at=at, elapsed=held.elapsed(now))
