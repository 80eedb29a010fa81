"""What the swarm promises, checked while it runs and when all is over."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import trio

from dimnode.core.job_record import RANK, Record
from dimnode.core.job_view import JobView, view
from tests.support.simulated_machine import living_tasks

if TYPE_CHECKING:
    from tests.simulation.users import Job
    from tests.simulation.world import World

Event = tuple[float, str, str]
"""(when, who, what)"""
LAST = 60
MOST = 120
DEEDS = ("starts", "crashes", "is paused", "goes on", "is lost for good", "has a full disk", "has room", "info: seat ")
EVERY = 0.5
"""Seconds between looks."""
UNNOTICED = 5.0
"""Seconds for which nobody need know that a machine is gone."""
TASKS_PER_NODE = 60
"""Tasks that a node at rest may consist of; each other node costs it a few more."""


class Violation(AssertionError):
    """A promise that was broken, with what went before."""

    def __init__(self, what: str, trace: tuple[Event, ...]) -> None:
        super().__init__(what)
        self.what = what
        self.trace = trace

    def __reduce__(self) -> tuple[type[Violation], tuple[str, tuple[Event, ...]]]:
        return (Violation, (self.what, self.trace))


class Checks:
    def __init__(self, world: World) -> None:
        self._world = world
        self._seats: dict[tuple[int, int], tuple[str, str]] = {}
        """(seat, term) -> (peer, boot) that held it."""

    async def run(self) -> None:
        while True:
            await trio.sleep(EVERY)
            self.look()

    # --- at all times

    def look(self) -> None:
        self._one_holder_per_term()
        for job in self._world.users.jobs:
            if job.acknowledged is not None and not job.ended.is_set():
                self._durable(job)

    def acknowledged(self, job: Job) -> None:
        """The answer to a submission tells how many have it: it must be so. A copy that has just burnt counts: nobody can know of that yet, and
        the others have to bear it (`enough_copies`)."""
        w = self._world
        late = trio.current_time() - UNNOTICED
        disks = [n for n, c in w.computers.items() if job.id in c.disk.journal.cores and w.destroyed.get(n, late) >= late]
        if len(disks) < job.copies:
            self._world.fail(f"{job.key} ({job.id}) was acknowledged with {job.copies} copies and is on {disks}")
        self._by_majority(job, "was acknowledged")

    def shown(self, job: Job, status: str) -> None:
        """An end that a user was shown is on a disk. It does not change but to one that goes above it, once both sides of what
        was divided had time to tell each other."""
        if not any(self._view_of(n, job.id).outcome for n in self.disks_with(job.id)):
            self._world.fail(f"a user was shown that {job.key} ({job.id}) {status}, and no disk has that")
        self._by_majority(job, f"was shown as {status}", ended=True)
        if self._world.calm and job.cancelled is not None and status != "cancelled":
            self._world.fail(f"{job.key} ({job.id}) was cancelled, acknowledged, and is shown as {status}")
        if status == "cancelled" and not job.cancel_asked:
            self._world.fail(f"{job.key} ({job.id}) is cancelled, and nobody asked for that")
        before = job.shown[:-1]
        if self._world.calm and before and RANK[status] < RANK[before[-1]]:
            self._world.fail(f"{job.key} ({job.id}) was shown as {before[-1]}, then as {status}")

    def _durable(self, job: Job) -> None:
        if not self.disks_with(job.id):
            self._world.fail(f"no disk has {job.key} ({job.id}), acknowledged and unfinished, any more")

    def _one_holder_per_term(self) -> None:
        """Mode ``majority`` only. A paused node counts: it may wake at any moment and believe what its clock tells."""
        if not self._world.by_majority:
            return
        leases: dict[int, str] = {}
        for name, computer in self._world.computers.items():
            seat = computer.node.elector.mine() if computer.node is not None else None
            if seat is not None and leases.setdefault(seat.seat, name) != name:
                self._world.fail(f"seat {seat.seat} is leased to {leases[seat.seat]} and to {name} at once")
            if (
                seat is not None
                and computer.node is not None
                and (holder := self._seats.setdefault((seat.seat, seat.n), (name, computer.node.boot))) != (name, computer.node.boot)
            ):
                self._world.fail(f"seat {seat.seat} of term {seat.n} is held by {holder} and {(name, computer.node.boot)}")

    def _by_majority(self, job: Job, what: str, *, ended: bool = False) -> None:
        """Mode ``majority``: what users were told is on most of the voters' disks, burnt ones included."""
        w = self._world
        if not w.by_majority:
            return
        disks = {n: w.computers[n].disk.journal for n in w.site.voters}
        have = [n for n, d in disks.items() if job.id in d.cores and (not ended or view(d.records[job.id]).outcome)]
        if 2 * len(have) <= len(w.site.voters):
            w.fail(f"{job.key} ({job.id}) {what} and is on {have} of {len(w.site.voters)} voters")

    # --- when all is healed

    def all_ended(self) -> bool:
        return all(j.ended.is_set() for j in self._world.users.jobs)

    def missing(self) -> str:
        """The jobs whose users still wait."""
        waiting = [f"{j.key} ({j.id or 'not accepted'})" for j in self._world.users.jobs if not j.ended.is_set()]
        return f"; {', '.join(waiting)} did not end" if waiting else ""

    def unlike(self) -> str | None:
        """Of what two copies differ, or which has too few; None if all copies agree."""
        if (problem := self.enough_copies()) is not None:
            return problem
        for job in self._world.users.jobs:
            if (problem := self._unlike(job)) is not None:
                return problem
        return None

    def enough_copies(self) -> str | None:
        """Which job is on too few disks, if any is."""
        wanted = min(self._world.settings.replicas + 1, len(self._world.computers) - len(self._world.destroyed))
        for job in self._world.users.jobs:
            if job.acknowledged is not None and len(disks := self.disks_with(job.id)) < wanted:
                return f"{job.key} ({job.id}) is on {disks} and should be on {wanted} disks"
        return None

    def _unlike(self, job: Job) -> str | None:
        disks = self.disks_with(job.id)
        sets = {name: self._record(name, job.id).ids() for name in disks}
        first = sets[disks[0]]
        for name, ids in sets.items():
            if ids != first:
                return f"{job.key} ({job.id}) differs between {disks[0]} and {name}: {_difference(self._record(disks[0], job.id), self._record(name, job.id))}"
        tables = [n for n, node in self._world.nodes().items() if node.records.holds(job.id)]
        for name in tables:
            memory = self._world.nodes()[name].records.record(job.id)
            if not memory.ids() >= first or view(memory).outcome_id != self._view_of(disks[0], job.id).outcome_id:
                unlike = _difference(memory, self._record(disks[0], job.id))
                return f"{job.key} ({job.id}) differs between memory of {name} and the disk of {disks[0]}: {unlike}"
        return None

    def final(self) -> None:
        """All of it, once the swarm had its time."""
        for job in self._world.users.jobs:
            if not self.disks_with(job.id):
                self._world.fail(f"no disk has {job.key} ({job.id})")
                continue
            self._final(job)
        if (busy := self.busy()) is not None:
            self._world.fail(busy)

    def _final(self, job: Job) -> None:
        w = self._world
        views = {name: self._view_of(name, job.id) for name in self.disks_with(job.id)}
        ends = {v.outcome_id for v in views.values()}
        if None in ends:
            w.fail(f"{job.key} ({job.id}) never ended on {[n for n, v in views.items() if v.outcome_id is None]}")
        if len(ends) != 1:
            w.fail(f"{job.key} ({job.id}) has {len(ends)} ends: {[(n, v.status, v.owner) for n, v in views.items()]}")
        seen = next(iter(views.values()))
        if job.cancelled is not None and seen.status != "cancelled":
            w.fail(f"{job.key} ({job.id}) was cancelled, acknowledged, and ended as {seen.status}")
        if seen.status == "cancelled" and not job.cancel_asked:
            w.fail(f"{job.key} ({job.id}) was cancelled, and nobody asked for that")
        if seen.status in ("failed", "expired") and not w.users.may_fail(job):
            w.fail(f"{job.key} ({job.id}) {seen.status} without need: {seen.error}")
        for status in job.shown:
            if RANK[seen.status] < RANK[status]:
                w.fail(f"{job.key} ({job.id}) was shown as {status} and ended as {seen.status}")

    def at_rest(self) -> bool:
        return self.busy() is None

    def busy(self) -> str | None:
        nodes = self._world.nodes()
        for name, node in nodes.items():
            if node.records.active:
                return f"{name} has unfinished jobs in memory: {node.records.active}"
            if node.tasks.waiting() or node.tasks.running:
                return f"{name} runs tasks"
        living = living_tasks()
        most = len(nodes) * (TASKS_PER_NODE + 4 * len(nodes))
        return f"{living} tasks live in a swarm at rest, at most {most} should" if living > most else None

    # --- what may be lost

    def spared(self, name: str) -> bool:
        """Whether a machine may burn: all that users were told is on another disk, too."""
        for job in self._world.users.jobs:
            if job.acknowledged is None:
                continue
            others = [n for n in self.disks_with(job.id) if n != name]
            if not others or (job.shown and not any(self._view_of(n, job.id).outcome for n in others)):
                return False
        return True

    # --- disks

    def disks_with(self, job: str) -> list[str]:
        """Machines that are not lost whose disks have this record."""
        return [n for n, c in self._world.computers.items() if n not in self._world.destroyed and job in c.disk.journal.cores]

    def _record(self, name: str, job: str) -> Record:
        return self._world.computers[name].disk.journal.records[job]

    def _view_of(self, name: str, job: str) -> JobView:
        return view(self._record(name, job))


def _difference(one: Record, other: Record) -> str:
    only = [[b for i, b in a.items() if i not in c] for a, c in ((one, other), (other, one))]
    return f"only here: {only[0]}; only there: {only[1]}"


def describe(what: str, trace: Iterable[Event]) -> str:
    """What users and faults did, all about the jobs that ``what`` names, and the last that happened."""
    events = list(trace)
    jobs = set(re.findall(r"job-[a-z2-7]{24}", what))
    keys = set(re.findall(r"\bjob-\d+\b", what))
    told = [
        e
        for n, e in enumerate(events)
        if n >= len(events) - LAST
        or e[1] in ("NET", "WORLD")
        or e[2].startswith(DEEDS)
        or any(j in e[2] for j in jobs)
        or any(re.search(rf"{k}\b", e[2]) for k in keys)
    ]
    if len(told) > 2 * MOST:
        told[MOST:-MOST] = [(told[MOST][0], "...", f"{len(told) - 2 * MOST} more")]
    return listing(told)


def listing(events: Iterable[Event]) -> str:
    return "\n".join(f"{at:9.3f} {who:8} {text}" for at, who, text in events)
