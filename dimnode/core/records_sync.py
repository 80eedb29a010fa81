"""Which records are compared with a peer, and who shall hold which: the decisions of anti-entropy."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence

from dimnode.core.recent_changes import Changes, RecentChanges
from dimnode.core.rendezvous import rendezvous
from dimnode.domain.record import Core, SignedEntry


class Agenda:
    """What is compared next with a peer, at most ``limit`` at once: first what changed here since the last comparison with it, then
    what is unfinished, taking turns; the rest of a comparison goes through the whole journal, page by page, for ever.

    Of two copies that differ one changed last, and its node compares it with the other: so they are equal after the next
    meeting, however many records there are. The walk finds what was forgotten: changes before a start, and too many at once.
    """

    def __init__(self, limit: int, quiet: float = 0.0, tries: int = 8) -> None:
        """``quiet``: seconds after its last change in which a record is left to those who drive it and keep it: what is on its way
        anyway would only be sent twice. ``tries``: comparisons of one record alone that may fail before it is left to the walk."""
        self._limit = limit
        self._quiet = quiet
        self._tries = tries
        self._turn = 0
        self._since: dict[str, int] = {}
        self._part: dict[str, int] = {}
        """How many changes at once: fewer after a failure."""
        self._failed: dict[str, int] = {}
        """How often one alone failed."""
        self.cursor = ""
        """Job id after which the next page of the journal starts."""

    def changed(self, peer: str, changes: RecentChanges, now: float) -> Changes:
        """Half of the limit at most. ``peer`` includes its boot: after a restart it may know less than before."""
        return changes.after(self._since.get(peer, 0), now - self._quiet, self._part.get(peer, self._limit // 2))

    def compared(self, peer: str, changes: Changes) -> None:
        self._since[peer] = changes.until
        self._failed.pop(peer, None)
        if (part := self._part.pop(peer, None)) is not None and 2 * part < self._limit // 2:
            self._part[peer] = 2 * part

    def failed(self, peer: str, changes: Changes) -> None:
        """The peer was reached, and this was too much, too slow, or refused. Fewer are tried next, so that one that never works
        is alone in the end, and then left out."""
        part = self._part.get(peer, self._limit // 2)
        if part > 1:
            self._part[peer] = part // 2
            return
        self._failed[peer] = self._failed.get(peer, 0) + 1
        if self._failed[peer] >= self._tries:
            self.compared(peer, changes)

    def only(self, peers: Collection[str]) -> None:
        """All others are gone."""
        for kept in (self._since, self._part, self._failed):
            for gone in kept.keys() - peers:
                del kept[gone]

    def unfinished(self, jobs: Sequence[str]) -> tuple[str, ...]:
        """A quarter of the limit at most, so that the walk through the journal never stops."""
        if not jobs:
            return ()
        start = self._turn % len(jobs)
        part = (*jobs[start:], *jobs[:start])[: self._limit // 4]
        self._turn = start + len(part)
        return part

    def page(self, chosen: int) -> int:
        """Jobs of the journal to look at now."""
        return max(1, self._limit - chosen)

    def turned(self, page: Sequence[str], asked: int) -> None:
        """These came after the cursor; fewer than asked for: that was the end."""
        self.cursor = page[-1] if len(page) == asked else ""


class Rounds:
    """Whom to meet next: everybody once in a round, in a random order, so that no two nodes that live miss each other for long.
    (A peer drawn anew each time stays away for ever so long: of 5, for 34 meetings in one of 2,000 cases.)"""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._met: set[str] = set()
        """In this round."""

    def next(self, peers: Collection[str]) -> str | None:
        """One of ``peers``, those that are there now."""
        if not peers:
            return None
        left = [p for p in sorted(peers) if p not in self._met]
        if not left:
            self._met.clear()
            left = sorted(peers)
        self._met.intersection_update(peers)
        chosen = self._rng.choice(left)
        self._met.add(chosen)
        return chosen


class Quarrels:
    """Copies that stayed different although they were exchanged (one side refuses an entry, or its disk is full): they are left
    alone for a while, longer each time. Bounded: the oldest are forgotten."""

    def __init__(self, first: float, longest: float, most: int = 10_000) -> None:
        """``first``: seconds after the first time; doubled up to ``longest`` while it goes on."""
        self._first = first
        self._longest = longest
        self._most = most
        self._pauses: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()
        """(until when, how long) they are left alone."""

    def add(self, peer: str, job: str, now: float) -> None:
        until, pause = self._pauses.get((peer, job), (float("-inf"), 0.0))
        pause = min(2 * pause, self._longest) if now < until + max(2 * pause, self._longest) else self._first
        self._pauses[peer, job] = (now + pause, pause)
        self._pauses.move_to_end((peer, job))
        while len(self._pauses) > self._most:
            self._pauses.popitem(last=False)

    def holds(self, peer: str, job: str, now: float) -> bool:
        return self._pauses.get((peer, job), (now, 0.0))[0] > now


class OwedBlocks:
    """Which nodes were given a record whose blocks they may still lack: nothing else tells, for the records are equal. Bounded: of more
    than ``most`` the oldest are forgotten, and what does not come after ``tries`` is given up."""

    def __init__(self, most: int = 4_096, tries: int = 32, at_once: int = 32) -> None:
        self._most = most
        self._tries = tries
        self._at_once = at_once
        self._left: OrderedDict[tuple[str, str], int] = OrderedDict()
        """(peer, job) -> how often it may still be tried."""

    def add(self, peer: str, job: str) -> None:
        self._left[peer, job] = self._tries
        self._left.move_to_end((peer, job))
        while len(self._left) > self._most:
            self._left.popitem(last=False)

    def of(self, peer: str) -> tuple[str, ...]:
        """Jobs that may be tried now, those that were not for the longest time first."""
        return tuple([job for p, job in self._left if p == peer][: self._at_once])

    def tried(self, peer: str, job: str) -> None:
        """Whatever comes of it."""
        if (left := self._left.pop((peer, job), 0) - 1) > 0:
            self._left[peer, job] = left

    def given(self, peer: str, job: str) -> None:
        self._left.pop((peer, job), None)


def heirs(job: str, members: Iterable[str], replicas: int) -> list[str]:
    """Who holds the record of a job whose owner is not there: ``replicas`` + 1 of the members that may."""
    return rendezvous(job, members)[: replicas + 1]


def missing(mine: Iterable[SignedEntry], theirs: Collection[str]) -> tuple[SignedEntry, ...]:
    """What a peer that has these ids lacks, the core first."""
    return tuple(sorted((e for e in mine if e.id not in theirs), key=lambda e: not isinstance(e.body(), Core)))


def portions(
    jobs: Iterable[tuple[str, Sequence[SignedEntry]]], max_bytes: int, max_jobs: int
) -> Iterator[list[tuple[str, list[SignedEntry]]]]:
    """Cuts records into requests: in order, each job at most once in one, and no more bytes than that unless one entry has."""
    batch: dict[str, list[SignedEntry]] = {}
    size = 0
    for job, entries in jobs:
        for entry in entries:
            more = len(entry.payload)
            if batch and (size + more > max_bytes or (job not in batch and len(batch) >= max_jobs)):
                yield list(batch.items())
                batch, size = {}, 0
            batch.setdefault(job, []).append(entry)
            size += more
    if batch:
        yield list(batch.items())
