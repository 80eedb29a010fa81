"""The records this node has, its own and others': in memory while unfinished, entries in the journal, watchers told.

The journal and its copies are the truth: decisions change a record only after they are durable there, so nothing
is ever done that a crash could take back. Facts that can be had again (what another node signed, how far a job got)
are noted at once and become durable together with the next decision.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import islice

import trio

from dimnode.core.job_record import DIGEST_BYTES, Record, id_bits
from dimnode.core.job_view import JobView, view
from dimnode.core.recent_changes import RecentChanges
from dimnode.domain.record import Attempt, Ballot, Body, Claim, OutcomeEntry, SignedEntry
from dimnode.errors import DimError, Fenced, NotFound, Unavailable
from dimnode.ports import Copied, Copies, Journal, Signer, Written
from dimnode.records.disk import EntryDisk, PendingWrite
from dimnode.records.memory import KeptRecord, RecordMemory
from dimnode.records.no_copies import NoCopies
from dimnode.security.signing import sign_entries, sign_entry
from p2p.groups import collapse


@dataclass(frozen=True, slots=True)
class TableSettings:
    keep_finished: int = 1_000
    """Finished jobs kept in memory; older ones are read from the journal."""
    keep_finished_bytes: int = 64 * 1024 * 1024
    """Of their entries: specs and results."""
    load_at_once: int = 500
    """Records that are read in one go when the node starts."""
    remember_changed: int = 4096
    """Jobs that `RecordTable.changes` tells of."""


@dataclass(frozen=True, slots=True)
class Merged:
    """What became of another copy's entries for one job."""

    job: str
    grew: bool
    """They told something new."""
    fenced: Ballot | None = None
    """A higher ballot is known: nothing was stored."""


class RecordTable:
    """Records by job id. Unfinished jobs stay in memory; finished ones in an LRU (the latest stays in any case)."""

    def __init__(self, journal: Journal, signer: Signer, copies: Copies | None = None, settings: TableSettings | None = None) -> None:
        self._journal = journal
        self._signer = signer
        self.copies: Copies = copies or NoCopies()
        self._settings = settings or TableSettings()
        self._memory = RecordMemory(self._settings.keep_finished, self._settings.keep_finished_bytes)
        self._version = 0
        self._changed = trio.Event()
        self._dirty: set[str] = set()
        self.changes = RecentChanges(self._settings.remember_changed)
        self._told: list[Callable[[str], None]] = []
        self._disk = EntryDisk(journal)

    async def open(self) -> None:
        """Reads the unfinished records of the journal."""
        jobs = await self._journal.unfinished()
        for start in range(0, len(jobs), self._settings.load_at_once):
            for job, entries in (await self._journal.load_many(jobs[start : start + self._settings.load_at_once])).items():
                self._take_in(job, entries)

    # --- reading

    @property
    def active(self) -> tuple[str, ...]:
        """Unfinished jobs, oldest first, whoever owns them."""
        return tuple(self._memory.active)

    def active_views(self) -> Iterable[JobView]:
        return [view(j.record) for j in self._memory.active.values()]

    async def load(self, job: str) -> JobView:
        """Raises `NotFound`."""
        return view((await self._find(job)).record)

    def view(self, job: str) -> JobView:
        """Of a job that is in memory (an active one always is)."""
        return view(self._known(job).record)

    def record(self, job: str) -> Record:
        """The record itself, to be read only."""
        return self._known(job).record

    async def find(self, job: str) -> Record:
        """The record, from the journal if it is not in memory; to be read only. Raises `NotFound`."""
        return (await self._find(job)).record

    async def find_many(self, jobs: Sequence[str]) -> dict[str, Record]:
        """As `find`, for many in one go; unknown jobs are left out."""
        away = await self._journal.load_many(missing) if (missing := [job for job in jobs if not self.holds(job)]) else {}
        found: dict[str, Record] = {}
        for job in jobs:
            state = self._memory.get(job)
            if state is None and job in away:
                state = self._take_in(job, away[job])
            if state is not None:
                found[job] = state.record
        return found

    def digest(self, job: str) -> bytes:
        """Of what is durable of a job that is in memory."""
        state = self._known(job)
        noted = reduce(lambda bits, i: bits ^ id_bits(i), {e.id for e in state.noted if e.id in state.record}, 0)
        return (int.from_bytes(state.record.digest, "big") ^ noted).to_bytes(DIGEST_BYTES, "big")

    def unwritten(self, job: str) -> frozenset[str]:
        """Ids of the entries that are in memory and not in the journal, as far as is known."""
        state = self._memory.get(job)
        return frozenset(e.id for e in state.noted) if state is not None else frozenset()

    def unfinished(self, job: str) -> bool:
        return job in self._memory.active

    def holds(self, job: str) -> bool:
        """Whether it is in memory."""
        return job in self._memory

    async def exists(self, job: str) -> bool:
        try:
            await self._find(job)
        except NotFound:
            return False
        return True

    async def recent(self, limit: int) -> list[JobView]:
        """Views of the newest jobs, newest first."""
        return [await self.load(job) for job in await self._journal.recent(limit)]

    # --- what this node decides

    async def append(self, job: str, *bodies: Body, blocks: Sequence[str] = ()) -> int:
        """Sign, make durable here and on the copies together with all that was noted, add, tell watchers. Returns
        the number of copies, this node's included. Without ``bodies`` only ``blocks`` are waited for, and what was noted.
        Raises `Fenced` if another owns the job: then its claim is in the record, and what was to be decided is not."""
        return (await self.extend([(job, bodies)], blocks={job: blocks}))[0]

    async def conclude(self, job: str, outcome: OutcomeEntry) -> JobView:
        """The end of a job: of several that come at once the first stays. Once begun it is not interrupted, so
        that what is durable is also what clients are told: blocks, which may take long, are for an `append` before it.
        The copies have it first: a terminal state is not shown before, and one of a former owner is not written anywhere.
        Raises `Fenced`."""
        state = self._known(job)
        async with state.ending:
            if (seen := view(state.record)).terminal:
                return seen
            with trio.CancelScope(shield=True):
                await self.extend([(job, [outcome])], copies_first=True)
            return view(state.record)

    async def create(
        self,
        jobs: Sequence[tuple[str, Sequence[Body]]],
        *,
        wanted: int | None = None,
        blocks: dict[str, Sequence[str]] | None = None,
    ) -> list[int | None]:
        """Newly accepted jobs, all in one transaction. Returns the number of copies of each, this node's included; None
        for a job that another seat accepted before: then its record is here, and nothing of this one."""
        pending = [PendingWrite(job, entries, []) for (job, _), entries in zip(jobs, self._signed(jobs), strict=True)]
        written = [Written(p.job, p.all, new=True, blocks=(blocks or {}).get(p.job, ())) for p in pending]
        copied = await self._write(pending, written, wanted)
        counts: list[int | None] = []
        for p, c in zip(pending, copied, strict=True):
            if c.fenced is None:
                self._settle(p.job, p.entries)
                counts.append(1 + c.others)
            else:
                await self.merge(p.job, c.entries)
                theirs = {e.id for e in c.entries}
                await self._discard(p.job, [e.id for e in p.entries if e.id not in theirs])
                counts.append(None)
        return counts

    async def _discard(self, job: str, ids: Collection[str]) -> None:
        """In the journal, and in memory, where they may have come from there. Others that have got them give them back."""
        await self._journal.discard(job, list(ids))
        state = self._memory.get(job)
        if state is None or not any(i in state.record for i in ids):
            return
        state.record = Record(job, [e for e in state.record.entries() if e.id not in ids])
        if (seen := view(state.record)).core is None:
            self._memory.pop(job)
        else:
            self._memory.file(job, state, finished=seen.terminal)
        self._tell(state, job)

    def _signed(self, jobs: Sequence[tuple[str, Sequence[Body]]]) -> list[list[SignedEntry]]:
        entries = iter(sign_entries([body for _, bodies in jobs for body in bodies], self._signer))
        return [list(islice(entries, len(bodies))) for _, bodies in jobs]

    def note(self, job: str, body: Body) -> None:
        """Sign and add now; durable with the next `append`. For what may be lost in a crash, and for what has
        no effect before that `append`."""
        self.note_signed(job, sign_entry(body, self._signer))

    def pass_on(self, job: str, blocks: Sequence[str]) -> None:
        """Blocks that the copies keep with what is decided next, in place of those before, and that nobody waits for."""
        self._known(job).passing = blocks

    def _passing(self, pending: PendingWrite) -> Sequence[str]:
        """None any more with the end of a job."""
        state = self._memory.get(pending.job)
        ending = any(isinstance(e.body(), OutcomeEntry) for e in pending.entries)
        return () if state is None or ending else state.passing

    def note_signed(self, job: str, entry: SignedEntry) -> None:
        """The same for an entry of another node."""
        self._known(job).noted.append(entry)
        self._apply(job, [entry])

    def forsake(self, job: str) -> None:
        """This node does not drive the job any more: what it decided and did not make durable is forgotten. Facts that others
        signed stay; what is with a copy comes back from there."""
        state = self._memory.get(job)
        if state is None:
            return
        mine = {e.id for e in state.noted if e.author == self._signer.peer_id and not isinstance(e.body(), Attempt)}
        if mine:
            state.noted = [e for e in state.noted if e.id not in mine]
            state.record = Record(job, [e for e in state.record.entries() if e.id not in mine])
            self._tell(state, job)

    async def extend(
        self,
        jobs: Sequence[tuple[str, Sequence[Body]]],
        *,
        wanted: int | None = None,
        blocks: dict[str, Sequence[str]] | None = None,
        copies_first: bool = False,
    ) -> list[int]:
        """`append` for several jobs, here in one transaction. ``copies_first``: durable
        on the copies before here, for what may not be written at all if somebody else owns a job by now (claims, ends).
        Returns the number of copies of each, this node's included. Raises `Fenced` if that is so for any; with
        ``copies_first`` the others are written all the same, and `Unavailable` if too few copies acknowledged any
        (`dimnode.ports.Copied.enough`): that one is not written here and does not count."""
        pending = [PendingWrite(job, entries, self._take_noted(job)) for (job, _), entries in zip(jobs, self._signed(jobs), strict=True)]
        written = [Written(p.job, p.all, blocks=(blocks or {}).get(p.job, ()), passing=self._passing(p)) for p in pending]
        try:
            if copies_first:
                copied = await self.copies.write(written, wanted=wanted)
                # What was noted before a decision that does not count is with the copies all the same, so it is kept here, too.
                kept = ((p.all if c.enough else p.noted) for p, c in zip(pending, copied, strict=True) if c.fenced is None)
                await self._disk.append([e for entries in kept for e in entries])
            else:
                copied = await self._write(pending, written, wanted)
        except BaseException:
            for p in pending:
                if not p.durable:
                    self._give_back(p)
                elif self.holds(p.job):  # whoever waited was cancelled: memory says what the disk says
                    self._settle(p.job, p.entries)
            raise
        return await self._written(pending, copied, copies_first=copies_first)

    async def _write(self, pending: Sequence[PendingWrite], written: Sequence[Written], wanted: int | None) -> list[Copied]:
        """Here and on the copies at the same time. What is being written here is not interrupted: what is durable is also in
        memory."""
        copied: list[Copied] = []

        async def copy() -> None:
            copied.extend(await self.copies.write(written, wanted=wanted))

        with collapse():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(copy)
                await self._make_durable(pending)
        return copied

    async def _make_durable(self, pending: Sequence[PendingWrite]) -> None:
        """Not interrupted, or nobody would know whether it is on the disk. Whoever was cancelled meanwhile hears of that, not of
        a disk that failed."""
        failed: DimError | None = None
        with trio.CancelScope(shield=True):
            try:
                await self._disk.append([e for p in pending for e in p.all])
            except DimError as e:
                failed = e
        if failed is not None:
            await trio.lowlevel.checkpoint_if_cancelled()
            raise failed
        for p in pending:
            p.durable = True

    async def _written(self, pending: Sequence[PendingWrite], copied: Sequence[Copied], *, copies_first: bool) -> list[int]:
        fenced: Copied | None = None
        short = 0
        for p, c in zip(pending, copied, strict=True):
            if copies_first and c.fenced is None and not c.enough:
                short += 1
                continue
            if c.fenced is not None:
                fenced = c
                if copies_first:
                    self._give_back(p)
                await self.merge(p.job, c.entries)
            if c.fenced is None or not copies_first:
                self._settle(p.job, p.entries)
        if fenced is not None:
            owner = fenced.fenced
            assert owner is not None
            raise Fenced(f"ballot {owner.n} of {owner.peer} owns job {fenced.job}", hint="Its owner goes on with it.")
        if short:
            raise Unavailable(
                f"{short} of {len(pending)} decisions were not acknowledged by a majority of the voters",
                hint="It is tried again as long as this node holds a seat.",
                retry_after=1.0,
            )
        return [1 + c.others for c in copied]

    def _take_noted(self, job: str) -> list[SignedEntry]:
        state = self._memory.get(job)
        if state is None:
            return []
        noted, state.noted = state.noted, []
        return noted

    def _give_back(self, pending: PendingWrite) -> None:
        state = self._memory.get(pending.job)
        if state is not None:
            state.noted = [*pending.noted, *state.noted]

    # --- what others say

    async def merge(self, job: str, entries: Sequence[SignedEntry]) -> bool:
        """Entries of another copy, already checked (`check_entry`): durable when it returns. Whether they told anything
        new. A record that was unknown is one afterwards, if it has a core or an end."""
        return (await self.merge_many([(job, entries)]))[0].grew

    async def merge_many(
        self,
        jobs: Sequence[tuple[str, Sequence[SignedEntry]]],
        *,
        under: Mapping[str, Ballot] | None = None,
        fresh: Collection[str] = (),
    ) -> list[Merged]:
        """`merge` for several jobs (each once), in one transaction. ``under``: jobs with the ballots under which another node
        decided what it sends; where a higher one is known here, also by a fence alone, nothing of that job is stored.
        ``fresh``: those of them that are just being accepted; there any other ballot fences.
        Raises `ResourceExhausted` when the disk is full."""
        under = under or {}
        away = await self._journal.load_many(missing) if (missing := [job for job, _ in jobs if not self.holds(job)]) else {}
        new: dict[str, list[SignedEntry]] = {}
        for job, entries in jobs:
            state = self._memory.get(job)
            known = state.record if state is not None else frozenset(e.id for e in away.get(job, ()))
            unwritten = self.unwritten(job)
            new[job] = [e for e in entries if e.id not in known or e.id in unwritten]
        fenced: Mapping[str, Ballot] = {}
        if under or any(new.values()):
            with trio.CancelScope(shield=True):  # what is durable is also in memory, whoever was waiting for it
                fenced = await self._disk.append([e for entries in new.values() for e in entries], under=under, fresh=fresh)
        return [
            Merged(job, job not in fenced and self._absorb(job, away.get(job, ()), found), fenced.get(job)) for job, found in new.items()
        ]

    def _absorb(self, job: str, away: Sequence[SignedEntry], new: Sequence[SignedEntry]) -> bool:
        """What has just become durable, into memory. ``away``: what the journal had of a job that was not in memory."""
        if not new:
            return False
        state = self._memory.get(job)
        before = state.record.version if state is not None else -1
        if state is None and (state := self._take_in(job, away) if away else None) is None:
            state = self._take_in(job, (*away, *new))
            if state is not None:
                self._tell(state, job)
            return True
        self._settle(job, new)
        return state.record.version != before

    async def forget(self, jobs: Sequence[str]) -> None:
        """Removes records for good, here only: whoever follows them finds them unknown. Raises what `Journal.forget` raises."""
        await self._journal.forget(jobs)
        for job in jobs:
            state = self._memory.pop(job)
            if state is not None:
                self._tell(state, job)
            self._dirty.discard(job)
            self.changes.forget(job)

    # --- following

    async def wait_changed(self, job: str, since: int) -> int:
        """Returns the version once it is above ``since``; versions start at 1."""
        state = await self._find(job)
        while state.version <= since:
            await state.changed.wait()
        return state.version

    async def wait_ended(self, job: str) -> None:
        """Returns when the job is terminal."""
        await trio.lowlevel.checkpoint()
        while (state := self._memory.active.get(job)) is not None:
            await state.changed.wait()

    @property
    def version(self) -> int:
        """Grows with every change of any record."""
        return self._version

    async def wait_any(self, since: int) -> int:
        """Returns when `version` is above ``since``."""
        await trio.lowlevel.checkpoint()
        while self._version <= since:
            await self._changed.wait()
        return self._version

    def on_change(self, tell: Callable[[str], None]) -> None:
        """``tell`` is called with each job whose record changes, in the midst of it: it may only take a note."""
        self._told.append(tell)

    def take_dirty(self) -> set[str]:
        """Jobs whose records changed since the last call: for one caller, who tells others of them."""
        dirty, self._dirty = self._dirty, set()
        return dirty

    async def has_room(self) -> bool:
        """Whether the journal takes entries."""
        return await self._disk.has_room()

    # --- inside

    def _settle(self, job: str, entries: Sequence[SignedEntry]) -> None:
        """Durable entries into memory; what they compact away the journal has dropped by itself."""
        self._apply(job, entries)
        state = self._known(job)
        settled = {e.id for e in entries}
        state.noted = [e for e in state.noted if e.id in state.record and e.id not in settled]

    def _apply(self, job: str, entries: Sequence[SignedEntry]) -> None:
        """A view costs more than an entry: only an outcome or a claim can make a job finished or unfinished."""
        state = self._memory.get(job) or KeptRecord(Record(job))
        for entry in entries:
            state.record.add(entry)
        if not self.holds(job) or any(isinstance(e.body(), (OutcomeEntry, Claim)) for e in entries):
            self._memory.file(job, state, finished=view(state.record).terminal)
        self._tell(state, job)

    def _tell(self, state: KeptRecord, job: str) -> None:
        state.version += 1
        state.changed.set()
        state.changed = trio.Event()
        self._dirty.add(job)
        for tell in self._told:
            tell(job)
        self.changes.note(job, trio.current_time())
        self._version += 1
        self._changed.set()
        self._changed = trio.Event()

    def _known(self, job: str) -> KeptRecord:
        state = self._memory.get(job)
        if state is None:
            raise _unknown(job)
        return state

    async def _find(self, job: str) -> KeptRecord:
        state = await self._find_any(job)
        if state is None:
            raise _unknown(job)
        return state

    async def _find_any(self, job: str) -> KeptRecord | None:
        """None if there is nothing at all, or only what this node signed when it ran tasks for another owner."""
        state = self._memory.get(job)
        if state is not None:
            return state
        entries = await self._journal.load(job)
        return self._memory.get(job) or self._take_in(job, entries)

    def _take_in(self, job: str, entries: Sequence[SignedEntry]) -> KeptRecord | None:
        state = KeptRecord(Record(job, entries))
        seen = view(state.record)
        if seen.core is None and seen.status != "deleted":
            return None
        state.version = 1
        self._memory.file(job, state, finished=seen.terminal)
        return state


def _unknown(job: str) -> NotFound:
    return NotFound(f"job {job} is not known here", hint="`dimnode jobs` lists the jobs.")
