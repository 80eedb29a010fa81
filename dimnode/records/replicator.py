"""Keeps copies of the records that this node owns on other nodes (`dimnode.ports.Copies`).

An owner's decision is sent to the nodes that hold the job's copies; a writer waits until enough of them have it durably, or
its patience is over. A node that does not answer is replaced, without waiting for it: the others get the whole record. What
was not done in time, and copies that got lost with a node, are repaired in the background, so many per second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import structlog
import trio

from dimnode.core.electorate import others_needed
from dimnode.core.job_copies import JobCopies
from dimnode.core.job_record import FINAL
from dimnode.core.record_gate import EntryRules
from dimnode.domain.record import Ballot, Core, OutcomeEntry, SignedEntry
from dimnode.ports import Clock, Copied, Journal, Registry, Written
from dimnode.records.acknowledgements import Acknowledgements
from dimnode.records.answers import Learned, checked, fence_of
from dimnode.records.asks import Ask, Waiter
from dimnode.records.hand_over import HandOver, HandOverSettings
from dimnode.records.keepers import Keepers
from dimnode.records.links import Link, LinkSettings
from dimnode.records.messages import StoreResult
from dimnode.records.table import RecordTable
from p2p.api import Network
from p2p.ipfs.api import ContentStore

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ReplicatorSettings:
    """Times in seconds."""

    replicas: int = 1
    """Copies on other nodes (``jobs.replicas``)."""
    copies_on: frozenset[str] = frozenset()
    """Peer ids that may hold copies; empty: all members."""
    patience: float = 2.0
    """A writer waits so long for copies of entries."""
    blocks_patience: float = 10.0
    """And so long for copies of blocks."""
    repair_batch: int = 256
    """Jobs that get new copies in one go."""
    repair_pause: float = 0.25
    """After that."""
    repair_after: float = 3.0
    """A node may be silent for so long before the jobs whose copies it has get others."""
    repair_retry: float = 5.0
    """Jobs that have too few copies are looked at again, if nothing else gives cause."""
    refused_pause: float = 60.0
    """A node that refused a record is not asked again for so long."""
    forget_after: float = 20.0
    """After its end a job is left to anti-entropy."""
    look_pause: float = 0.1
    """Between looks at a registry that keeps changing."""
    links: LinkSettings = field(default_factory=LinkSettings)
    hand_over: HandOverSettings = field(default_factory=HandOverSettings)


@dataclass(slots=True)
class _Job:
    copies: JobCopies
    last: Sequence[SignedEntry] = ()
    """Of the latest write."""
    unsettled: list[SignedEntry] = field(default_factory=list[SignedEntry])
    """What was written and is not in the table (yet)."""
    asks: list[Ask] = field(default_factory=list[Ask])
    crowded: bool = False
    """It would have more copies if the nodes had room in their queues."""
    ending: bool = False
    ended: bool = False
    """This node wrote its end."""
    accepting: bool = False
    """Its first claim is being written: any other claim fences it."""


class Replicator:
    """`dimnode.ports.Copies`; a `dimnode.records.links.Receiver` of its links."""

    def __init__(
        self,
        network: Network,
        table: RecordTable,
        journal: Journal,
        registry: Registry,
        store: ContentStore,
        clock: Clock,
        settings: ReplicatorSettings | None = None,
        *,
        rules: EntryRules,
        voters: Callable[[], Collection[str]] = tuple,
        let_in: Callable[[str, str], None] = lambda _peer, _job: None,
    ) -> None:
        """``voters``: the electorate, if decisions count only when most of it has them; else nobody. ``let_in``: told of each node that
        is to have a job's blocks, before it is asked to fetch them."""
        self._network = network
        self._table = table
        self._registry = registry
        self._clock = clock
        self._settings = s = settings or ReplicatorSettings()
        self._rules = rules
        self._links: dict[str, Link] = {}
        self._voters = voters
        self._ends = Acknowledgements(network, table, clock, voters, s.patience, rules)
        self._keepers = Keepers(network, registry, s.copies_on, self._links, clock.monotonic, voters)
        self._let_in = let_in
        self._hand_over = HandOver(network, table, journal, store, self._keepers, s.hand_over, let_in)
        self._jobs: dict[str, _Job] = {}
        self._short: dict[str, None] = {}
        """Jobs whose copies are to be looked at."""
        self._wake = trio.Event()
        self._learned = Learned(table)
        self._endings: deque[tuple[float, str]] = deque()
        self._start: Callable[..., None] | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Before and after, a write finds no other node."""
        self._keepers.look()
        async with trio.open_nursery() as nursery:
            self._start = nursery.start_soon
            try:
                nursery.start_soon(self._follow)
                nursery.start_soon(self._repair)
                nursery.start_soon(self._forget)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._start = None
                self._links.clear()

    # --- dimnode.ports.Copies -------------------------------------------------------------------

    async def write(self, jobs: Sequence[Written], *, wanted: int | None = None) -> list[Copied]:
        """See `dimnode.ports.Copies`. What was handed over is sent even if the writer is cancelled."""
        await trio.lowlevel.checkpoint()
        waiter = Waiter(len(jobs))
        asks = [self._take(w, wanted, waiter) for w in jobs]
        try:
            await self._wait(waiter, asks)
        finally:
            self._settle(asks)
        return [a.copied or Copied(a.job, 0, enough=not self._needed()) for a in asks]

    def others(self, job: str) -> int:
        state = self._jobs.get(job)
        return state.copies.up_to(state.copies.length) if state is not None else 0

    def insists(self) -> bool:
        return bool(self._voters())

    def enough(self, job: str) -> bool:
        state = self._jobs.get(job)
        return self._counts(state.copies, state.copies.length) if state is not None else not self._needed()

    async def counts(self, job: str) -> bool:
        state = self._jobs.get(job)
        if state is not None and state.ended and self.enough(job):
            return True
        return await self._ends.counts(job)

    def _needed(self) -> int:
        return others_needed(self._voters(), self._network.peer_id)

    def _counts(self, copies: JobCopies, length: int) -> bool:
        needed = self._needed()
        return not needed or copies.voters_up_to(length, self._voters()) >= needed

    def drop(self, jobs: Sequence[str]) -> None:
        for job in jobs:
            self._short.pop(job, None)
            if state := self._jobs.pop(job, None):
                for ask in state.asks:
                    self._close(ask, state)

    # --- for others

    def responsible(self, job: str, owner: str | None = None) -> Collection[str]:
        """The nodes beside the owner (default: this node) that hold the record or shall."""
        state = self._jobs.get(job)
        if state is not None and state.copies.targets:
            return state.copies.targets
        return self._keepers.responsible(job, self._settings.replicas, owner or self._network.peer_id)

    async def hand_over(self, timeout: float, *, only_finished: bool = False) -> int:
        """Before this node leaves: every record that is here goes to other nodes, unfinished ones first, unless they are known
        to have it. Returns how many could not be handed over within ``timeout`` seconds. (A node that knows no other
        has nobody to leave.) ``only_finished``: those that do not change any more, while there is other work to be ended."""
        return await self._hand_over.run(self._settings.replicas, self._held_elsewhere, timeout, only_finished=only_finished)

    def statistics(self) -> dict[str, int]:
        return {
            "jobs": len(self._jobs),
            "short": len(self._short),
            "nodes": len(self._links),
            "nodes_down": sum(not link.up for link in self._links.values()),
        }

    def _held_elsewhere(self, job: str) -> Collection[str]:
        """Nodes that have everything this node ever decided about the job, and are there."""
        state = self._jobs.get(job)
        if state is None:
            return ()
        return [p for p in state.copies.targets if state.copies.full(p) and self._keepers.takes(p)]

    # --- a write

    def _take(self, w: Written, wanted: int | None, waiter: Waiter) -> Ask:
        replicas = max(self._settings.replicas, wanted or 0, self._needed())
        state = self._jobs.get(w.job)
        if state is None:
            state = self._jobs[w.job] = _Job(JobCopies(replicas))
        elif state.unsettled and self._table.holds(w.job):
            record = self._table.record(w.job)
            state.unsettled = [e for e in state.unsettled if e.id not in record]
        state.copies.wanted = max(replicas, state.copies.wanted)
        if w.entries or not state.copies.length:
            length = state.copies.grow(w.blocks)
            state.last = w.entries
            state.accepting = w.new
        else:
            length = state.copies.need(w.blocks)
        state.copies.pass_on(w.passing)
        state.unsettled += w.entries
        if any(isinstance(e.body(), OutcomeEntry) for e in w.entries):
            state.ended = True
            self._let_go_later(w.job, state)
        ask = Ask(w.job, length, self._settings.replicas if wanted is None else wanted, w.blocks, waiter)
        state.asks.append(ask)
        self._cover(w.job, state)
        self._review(w.job, state)
        return ask

    async def _wait(self, waiter: Waiter, asks: Sequence[Ask]) -> None:
        """For entries at most ``patience``, for blocks longer. On the way slow nodes are passed by."""
        s = self._settings
        since = trio.current_time()
        slow = 1.1 * s.links.slow_after  # a request begins a little later than its writer
        stages = ((slow, self._pass_by), (2 * slow, self._pass_by), (s.patience, self._settle_entries), (s.blocks_patience, None))
        for until, late in stages:
            if waiter.idle:
                return
            with trio.move_on_at(since + until):
                await waiter.done.wait()
            if late is not None and not waiter.idle:
                late([a for a in asks if a.copied is None])

    def _pass_by(self, asks: Sequence[Ask]) -> None:
        for ask in asks:
            if state := self._jobs.get(ask.job):
                self._cover(ask.job, state)
                self._review(ask.job, state)

    def _settle_entries(self, asks: Sequence[Ask]) -> None:
        self._settle([a for a in asks if (state := self._jobs.get(a.job)) and not self._has_all(a, state, blocks=())])

    def _settle(self, asks: Sequence[Ask]) -> None:
        """Nobody waits for these any longer: they get what there is."""
        for ask in asks:
            if ask.copied is None and (state := self._jobs.get(ask.job)):
                self._close(ask, state)
                state.asks.remove(ask)

    def _close(self, ask: Ask, state: _Job) -> None:
        ask.settle(state.copies.up_to(ask.length, ask.blocks), enough=self._counts(state.copies, ask.length))

    def _has_all(self, ask: Ask, state: _Job, blocks: Collection[str]) -> bool:
        return state.copies.up_to(ask.length, blocks) >= ask.wanted and self._counts(state.copies, ask.length)

    def _review(self, job: str, state: _Job) -> None:
        """Settles what has enough copies, or has nothing to wait for."""
        copies = state.copies
        for ask in tuple(state.asks):
            if self._has_all(ask, state, ask.blocks) or not (copies.under_way(ask.length) or state.crowded):
                self._close(ask, state)
                state.asks.remove(ask)

    # --- who gets what

    def _cover(self, job: str, state: _Job) -> None:
        """Sends what is missing to the job's copies; to others where those do not take it."""
        copies, keepers = state.copies, self._keepers
        keep = [t for t in copies.targets if keepers.takes(t) and copies.fit(t, self._clock.monotonic())]
        if (len(keep) < copies.wanted or keepers.too_few_voters(keep)) and self._start is not None:
            now = self._clock.monotonic()
            copies.targets = keepers.pick(job, copies.wanted, keep, copies.holders(), lambda p: copies.fit(p, now))
        sent = [self._send(job, state, peer) for peer in copies.targets]
        if len(sent) >= copies.wanted and all(sent):
            self._short.pop(job, None)
            state.crowded = False
        else:
            self._short[job] = None
            state.crowded = keepers.crowded()

    def _send(self, job: str, state: _Job, peer: str) -> bool:
        copies, link = state.copies, self._link(peer)
        if link is None:
            return False
        lacks = copies.lacks(peer)
        if lacks != "nothing":
            entries = state.last if lacks == "last" else self._whole(job, state)
            if not entries:  # it ended, and is no longer in memory: left to anti-entropy
                return True
            if not link.offer(job, entries, copies.length, new=state.accepting and bool(state.asks)):
                return False
            copies.handed(peer)
        if cids := copies.blocks_for(peer):
            self._let_in(peer, job)
            if not link.ask_blocks(job, tuple(sorted(cids))):
                return False
            copies.blocks_asked(peer, cids)
        return True

    def _whole(self, job: str, state: _Job) -> Sequence[SignedEntry]:
        """The record with all that this node decided, the core first; empty if it is not in memory."""
        if not self._table.holds(job):
            return state.unsettled if any(isinstance(e.body(), Core) for e in state.unsettled) else ()
        record = self._table.record(job).copy()
        for entry in state.unsettled:
            record.add(entry)
        return sorted(record.entries(), key=lambda e: not isinstance(e.body(), Core))

    def _link(self, peer: str) -> Link | None:
        link = self._links.get(peer)
        if link is None and self._start is not None:
            link = self._links[peer] = Link(peer, self._network, self._settings.links, self._start, self, self._clock.monotonic)
        return link

    # --- what links tell ------------------------------------------------------------------------

    def stored(self, peer: str, job: str, mark: int) -> None:
        if state := self._jobs.get(job):
            state.copies.stored(peer, mark)
            self._review(job, state)
            if state.ending and not state.asks and job not in self._short and all(state.copies.full(p) for p in state.copies.targets):
                state.last, state.unsettled = (), []  # what is still needed of it, the table has

    def learned(self, peer: str, job: str, entries: Sequence[SignedEntry]) -> None:
        """Somebody ended the job while this node could not hear of it: it stops."""
        if job not in self._jobs:
            return
        ends = [e for e in checked(job, entries, self._rules) if isinstance(b := e.body(), OutcomeEntry) and b.status in FINAL]
        if ends:
            log.info("copies.ended_elsewhere", job=job, peer=peer)
            self._learned.add(job, ends)
            self._wake.set()

    def failed(self, peer: str, job: str, result: StoreResult | None) -> None:
        state = self._jobs.get(job)
        if state is None:
            return
        pause_until = self._clock.monotonic() + self._settings.refused_pause
        match result.status if result is not None else "lost":
            case "fenced" if result is not None and (fence := self._fence(job, result)) is not None:
                if self._fenced(job, state, peer, *fence):
                    return
                state.copies.lost(peer)  # of what this node wrote before it claimed the job anew
                self._look_at([job])
                return
            case "incomplete":
                state.copies.incomplete(peer, pause_until)
            case "refused" | "fenced":
                log.warning("copies.refused", peer=peer, job=job, reason=result.reason if result is not None else "")
                state.copies.refused(peer, pause_until)
            case _:
                state.copies.lost(peer)
        self._again(job, state)

    def blocks_answered(self, peer: str, job: str, cids: tuple[str, ...], kept: Collection[str] | None) -> None:
        if state := self._jobs.get(job):
            state.copies.blocks_answered(peer, cids, kept, self._clock.monotonic() + self._settings.refused_pause)
            if state.copies.blocks_for(peer):
                self._again(job, state)
            else:
                self._review(job, state)

    def went_down(self, peer: str) -> None:
        if self._start is not None:
            self._start(self._replace_later, peer)

    def came_up(self, peer: str) -> None:
        del peer
        self._wake.set()

    def _again(self, job: str, state: _Job) -> None:
        """At once if somebody waits for it."""
        if state.asks:
            self._cover(job, state)
            self._review(job, state)
        else:
            self._look_at([job])

    # --- fences

    def _fence(self, job: str, result: StoreResult) -> tuple[Ballot, list[SignedEntry]] | None:
        return fence_of(job, result, self._table.record(job) if self._table.holds(job) else None, self._rules)

    def _fenced(self, job: str, state: _Job, peer: str, ballot: Ballot, proof: Sequence[SignedEntry]) -> bool:
        """Whether that fences this node's claim: then this node is not the owner any more."""
        mine = max((b for e in state.last if e.author == self._network.peer_id and (b := getattr(e.body(), "ballot", None))), default=None)
        if mine is not None and (ballot == mine or (ballot < mine and not state.accepting)):
            return False
        log.info("copies.fenced", job=job, peer=peer, owner=ballot.peer, epoch=ballot.n)
        del self._jobs[job]
        self._short.pop(job, None)
        for ask in state.asks:
            ask.fence(ballot, proof)
        if not state.asks:
            self._learned.add(job, proof)
            self._wake.set()
        return True

    # --- repair ---------------------------------------------------------------------------------

    async def _follow(self) -> None:
        version = self._registry.changed()
        while True:
            before = self._keepers.members
            gone = self._keepers.look()
            for peer in gone & self._links.keys():
                self._links.pop(peer).close()
            if gone:
                self._look_at([j for j, s in self._jobs.items() if not gone.isdisjoint(s.copies.targets)])
            if self._keepers.members - before:
                self._wake.set()
            for peer in self._keepers.members - before:
                if link := self._links.get(peer):
                    link.poke()
            version = await self._registry.wait_changed(version)
            await trio.sleep(self._settings.look_pause)

    async def _replace_later(self, peer: str) -> None:
        await trio.sleep(self._settings.repair_after)
        link = self._links.get(peer)
        if link is None or not link.up:
            self._look_at([j for j, s in self._jobs.items() if peer in s.copies.targets])

    def _look_at(self, jobs: Sequence[str]) -> None:
        self._short.update(dict.fromkeys(jobs))
        if jobs:
            self._wake.set()

    async def _repair(self) -> None:
        """Each job once for each cause to look."""
        s = self._settings
        while True:
            with trio.move_on_after(s.repair_retry):
                await self._wake.wait()
            self._wake = trio.Event()
            await self._learned.take_in()
            todo = list(self._short)
            for start in range(0, len(todo), s.repair_batch):
                for job in todo[start : start + s.repair_batch]:
                    if state := self._jobs.get(job):
                        self._cover(job, state)
                        self._review(job, state)
                    else:
                        self._short.pop(job, None)
                await trio.sleep(s.repair_pause)

    # --- forgetting

    def _let_go_later(self, job: str, state: _Job) -> None:
        if not state.ending:
            state.ending = True
            self._endings.append((self._clock.monotonic() + self._settings.forget_after, job))

    async def _forget(self) -> None:
        """Ended jobs, and those that ended or left without this node writing their end."""
        while True:
            await trio.sleep(self._settings.forget_after / 4)
            now = self._clock.monotonic()
            active = set(self._table.active)
            while self._endings and self._endings[0][0] <= now:
                _, job = self._endings.popleft()
                state = self._jobs.get(job)
                if state is None:
                    continue
                state.ending = False
                if job not in active and not state.asks:
                    self.drop([job])
            for job, state in self._jobs.items():
                if job not in active and not state.asks:
                    self._let_go_later(job, state)
