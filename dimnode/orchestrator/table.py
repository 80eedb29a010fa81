"""The jobs this orchestrator knows: records in memory, entries in the journal, watchers told.

The journal is the truth: decisions change a record only after they are durable there, so nothing is ever
done that a crash could take back. Facts that can be had again (what another node signed, how far a job got)
are noted at once and become durable together with the next decision.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import trio

from dimnode.core.job_record import Record
from dimnode.core.job_view import JobView, view
from dimnode.domain.record import Body, Claim, OutcomeEntry, SignedEntry
from dimnode.errors import NotFound
from dimnode.ports import Journal, Signer
from dimnode.security.signing import sign_entry


class _Job:
    __slots__ = ("changed", "ending", "noted", "record", "version")

    def __init__(self, record: Record) -> None:
        self.record = record
        self.noted: list[SignedEntry] = []
        """Entries that the journal does not have yet."""
        self.version = 0
        self.changed = trio.Event()
        self.ending = trio.Lock()

    def size(self) -> int:
        """Bytes of its entries."""
        return sum(len(e.payload) for e in self.record.entries())


class JobTable:
    """Records by job id. Unfinished jobs stay in memory; finished ones in an LRU of ``keep`` jobs and ``keep_bytes``
    (the latest stays in any case)."""

    def __init__(self, journal: Journal, signer: Signer, keep: int, keep_bytes: int) -> None:
        self._journal = journal
        self._signer = signer
        self._keep = keep
        self._keep_bytes = keep_bytes
        self._sizes: dict[str, int] = {}
        """Of the finished jobs in memory."""
        self._bytes = 0
        self._active: dict[str, _Job] = {}
        self._finished: OrderedDict[str, _Job] = OrderedDict()

    @property
    def active(self) -> tuple[str, ...]:
        return tuple(self._active)

    def active_count(self) -> int:
        return len(self._active)

    async def load(self, job: str) -> JobView:
        """Raises `NotFound`."""
        return view((await self._find(job)).record)

    def view(self, job: str) -> JobView:
        """Of a job that is in memory (an active one always is)."""
        return view(self._known(job).record)

    def record(self, job: str) -> Record:
        """The record itself, to be read only."""
        return self._known(job).record

    async def append(self, job: str, *bodies: Body) -> None:
        """Sign, make durable together with all that was noted, add, tell watchers."""
        entries = [sign_entry(body, self._signer) for body in bodies]
        state = self._known(job)
        noted, state.noted = state.noted, []
        try:
            await self._journal.append([*noted, *entries])
        except BaseException:
            state.noted = [*noted, *state.noted]
            raise
        before = state.record.ids()
        self._apply(job, entries)
        if dropped := before - state.record.ids():
            state.noted = [e for e in state.noted if e.id not in dropped]
            await self._journal.discard(job, sorted(dropped))

    async def conclude(self, job: str, outcome: OutcomeEntry) -> JobView:
        """The end of a job: of several that come at once the first stays. Once begun it is not interrupted, so
        that what is durable is also what clients are told."""
        state = self._known(job)
        async with state.ending:
            if (seen := view(state.record)).terminal:
                return seen
            with trio.CancelScope(shield=True):
                await self.append(job, outcome)
            return view(state.record)

    def note(self, job: str, body: Body) -> None:
        """Sign and add now; durable with the next `append`. For what may be lost in a crash, and for what has
        no effect before that `append`."""
        self.note_signed(job, sign_entry(body, self._signer))

    def note_signed(self, job: str, entry: SignedEntry) -> None:
        """The same for an entry of another node."""
        self._known(job).noted.append(entry)
        self._apply(job, [entry])

    async def extend(self, jobs: Sequence[tuple[str, Sequence[Body]]]) -> None:
        """New jobs, or entries of several jobs, all in one transaction."""
        signed = [(job, [sign_entry(b, self._signer) for b in bodies]) for job, bodies in jobs]
        await self._journal.append([e for _, entries in signed for e in entries])
        for job, entries in signed:
            self._apply(job, entries)

    def holds(self, job: str) -> bool:
        """Whether it is in memory."""
        return job in self._active or job in self._finished

    async def exists(self, job: str) -> bool:
        try:
            await self._find(job)
        except NotFound:
            return False
        return True

    async def wait_changed(self, job: str, since: int) -> int:
        """Returns the version once it is above ``since``; versions start at 1."""
        state = await self._find(job)
        while state.version <= since:
            await state.changed.wait()
        return state.version

    async def wait_ended(self, job: str) -> None:
        """Returns when the job is terminal."""
        await trio.lowlevel.checkpoint()
        while (state := self._active.get(job)) is not None:
            await state.changed.wait()

    async def recent(self, limit: int) -> list[JobView]:
        """Views of the newest jobs, newest first."""
        return [await self.load(job) for job in await self._journal.recent(limit)]

    def _apply(self, job: str, entries: Sequence[SignedEntry]) -> None:
        """A view costs more than an entry: only an outcome or a claim can make a job finished or unfinished."""
        state = self._active.get(job) or self._finished.get(job) or _Job(Record(job))
        for entry in entries:
            state.record.add(entry)
        if not self.holds(job) or any(isinstance(e.body(), (OutcomeEntry, Claim)) for e in entries):
            self._file(job, state, finished=view(state.record).terminal)
        state.version += 1
        state.changed.set()
        state.changed = trio.Event()

    def _file(self, job: str, state: _Job, *, finished: bool) -> None:
        if not finished:
            self._active[job] = state
            return
        self._active.pop(job, None)
        self._finished[job] = state
        self._finished.move_to_end(job)
        size = state.size()
        self._bytes += size - self._sizes.get(job, 0)
        self._sizes[job] = size
        while len(self._finished) > self._keep or (self._bytes > self._keep_bytes and len(self._finished) > 1):
            oldest, _ = self._finished.popitem(last=False)
            self._bytes -= self._sizes.pop(oldest)

    def _known(self, job: str) -> _Job:
        state = self._active.get(job) or self._finished.get(job)
        if state is None:
            raise NotFound(f"job {job} is not known here", hint="`dimnode jobs` lists the jobs.")
        return state

    async def _find(self, job: str) -> _Job:
        state = self._active.get(job) or self._finished.get(job)
        if state is not None:
            return state
        entries = await self._journal.load(job)
        state = self._active.get(job) or self._finished.get(job)
        if state is not None:  # loaded by somebody else meanwhile
            return state
        state = _Job(Record(job, entries))
        seen = view(state.record)
        if seen.core is None and seen.status != "deleted":
            # Nothing at all, or only what this node signed when it ran tasks for another owner.
            raise NotFound(f"job {job} is not known here", hint="`dimnode jobs` lists the jobs.")
        state.version = 1
        self._file(job, state, finished=seen.terminal)
        return state
