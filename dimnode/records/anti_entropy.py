"""Makes copies equal that differ, whatever was lost on the way: every few seconds with one node, in random rounds.

The digests of some records go to that node; it answers with its copies of those that it has otherwise, and names those that
it lacks and should have. Both sides then merge. What has changed since the last comparison with that node comes first, then what is
unfinished; a walk through the whole journal sees to the rest.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
import trio

from dimnode.core.job_record import Record
from dimnode.core.recent_changes import Changes
from dimnode.core.record_gate import EntryRules
from dimnode.core.records_sync import Agenda, OwedBlocks, Quarrels, Rounds, heirs, missing
from dimnode.domain import codec
from dimnode.errors import DimError, ResourceExhausted
from dimnode.ports import Clock, JobDigest, Journal, NodeView, Registry
from dimnode.records.blocks import ask_to_keep, blocks_here
from dimnode.records.exchange import ExchangeSettings, RecordExchange
from dimnode.records.messages import (
    BLOCKS,
    COMPARE,
    MAX_BLOCKS,
    BlocksAnswer,
    BlocksRequest,
    CompareAnswer,
    CompareItem,
    CompareRequest,
    JobEntries,
)
from dimnode.records.table import RecordTable
from p2p.api import Network, NetworkError, Unreachable
from p2p.ipfs.api import ContentError, ContentStore

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class AntiEntropySettings:
    interval: float = 2.0
    """Seconds between comparisons, as a mean."""
    jitter: float = 0.5
    """Share of it by which each pause is longer or shorter, so that nodes do not go in step."""
    items: int = 512
    """Records in one comparison at the most."""
    quiet: float = 5.0
    """Seconds after its last change in which a record is left to its owner and those that copy it."""
    in_a_row: int = 8
    """Comparisons with one node at once, when more has changed than fits into one."""
    replicas: int = 1
    """Copies on other nodes (``jobs.replicas``)."""
    copies_on: frozenset[str] = frozenset()
    """Peer ids that may hold copies; empty: all members."""
    quarrel_first: float = 5.0
    """Seconds for which two copies that stay different are left alone; doubled each time."""
    quarrel_longest: float = 300.0
    sync_at_once: int = 4
    """Nodes that `AntiEntropy.sync_now` compares with at the same time."""
    blocks_timeout: float = 30.0
    """Seconds for a node to fetch the blocks of a record that it shall have."""
    giving: float = 60.0
    """Seconds of one meeting after which no more blocks are given: the rest has its turn at the next one."""
    max_blocks: int = MAX_BLOCKS
    """In one request."""
    exchange: ExchangeSettings = field(default_factory=ExchangeSettings)


class AntiEntropy:
    """``responsible`` tells which nodes shall hold a record of a job that this node owns; ``rng`` decides whom to meet and when;
    ``let_in`` is told of each node that is to have a job's blocks."""

    def __init__(
        self,
        network: Network,
        table: RecordTable,
        journal: Journal,
        registry: Registry,
        store: ContentStore,
        clock: Clock,
        settings: AntiEntropySettings | None = None,
        *,
        responsible: Callable[[str], Collection[str]],
        rules: EntryRules,
        rng: random.Random | None = None,
        let_in: Callable[[str, str], None] = lambda _peer, _job: None,
    ) -> None:
        self._network = network
        self._table = table
        self._journal = journal
        self._registry = registry
        self._store = store
        self._clock = clock
        self._settings = s = settings or AntiEntropySettings()
        self._responsible = responsible
        self._let_in = let_in
        self._rng = rng or random.Random()  # noqa: S311 - no secret
        self._exchange = RecordExchange(network, table, clock, s.exchange, rules=rules)
        self._rounds = Rounds(self._rng)
        self._agenda = Agenda(s.items, s.quiet)
        self._quarrels = Quarrels(s.quarrel_first, s.quarrel_longest)
        self._owed = OwedBlocks()
        self._paying: set[str] = set()
        self._counts: Counter[str] = Counter()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        task_status.started()
        s = self._settings
        while True:
            await trio.sleep(s.interval * self._rng.uniform(1 - s.jitter, 1 + s.jitter))
            peer = self._rounds.next({v.heartbeat.peer_id for v in self._registry.alive()} - {self._network.peer_id})
            if peer is not None:
                await self._meet(peer)

    async def sync_now(self, jobs: Sequence[str], peers: Sequence[str], timeout: float) -> None:
        """Compares these jobs with these peers at once and merges, for at most ``timeout`` seconds: before a node that was
        away does anything with them. A job that is not here at all is fetched from whoever has it. Raises
        `ResourceExhausted` when the disk is full; peers that do not answer are passed over."""
        with trio.move_on_after(timeout):
            full: list[DimError] = []
            async with trio.open_nursery() as nursery:
                limit = trio.CapacityLimiter(self._settings.sync_at_once)
                for peer in dict.fromkeys(peers):
                    if peer != self._network.peer_id:
                        nursery.start_soon(self._sync, peer, tuple(dict.fromkeys(jobs)), limit, full)
            if full:
                raise full[0]

    async def bring(self, peer: str, jobs: Sequence[str]) -> Collection[str]:
        """Compares these records with a peer that shall have them, out of turn; it gets what it lacks, with the blocks. Returns those
        that it did not get."""
        states = {v.heartbeat.peer_id: v for v in self._registry.nodes()}
        try:
            for start in range(0, len(jobs), self._settings.items):
                digests = await self._journal.digests_of(jobs[start : start + self._settings.items])
                items = [CompareItem(job=job, digest=d.digest, keep=self._keep(job, peer, states, d.owner)) for job, d in digests.items()]
                await self._compare(peer, items)
        except (NetworkError, codec.CodecError, DimError) as e:
            log.debug("records.not_brought", peer=peer, jobs=len(jobs), reason=str(e))
            return jobs
        await self._pay(peer)
        now = self._clock.monotonic()
        return [job for job in jobs if self._quarrels.holds(peer, job, now)]

    async def heirs(self, owners: Mapping[str, str]) -> dict[str, Collection[str]]:
        """Who shall hold the records of these jobs, as far as this node has to see to it. ``owners``: the peer with the highest claim."""
        states = {v.heartbeat.peer_id: v for v in self._registry.nodes()}
        found: dict[str, Collection[str]] = {}
        for job, owner in owners.items():
            found[job] = self._shall_hold(job, states, owner)
            await trio.lowlevel.checkpoint()
        return found

    def statistics(self) -> Mapping[str, int]:
        """``rounds``, ``failed`` ones, records ``compared``; entries ``taken``, ``refused`` and ``sent``."""
        return dict(self._counts + self._exchange.counts)

    # --- a round

    async def _meet(self, peer: str) -> None:
        self._counts["rounds"] += 1
        states = {v.heartbeat.peer_id: v for v in self._registry.nodes()}
        if peer not in states:
            return
        self._agenda.only({_life(v) for v in states.values()})
        life = _life(states[peer])
        for number in range(self._settings.in_a_row):
            changes = self._agenda.changed(life, self._table.changes, trio.current_time())
            try:
                digests = await self._journal.digests_of(changes.jobs) if number else await self._chosen(changes)
                items = [CompareItem(job=job, digest=d.digest, keep=self._keep(job, peer, states, d.owner)) for job, d in digests.items()]
                await self._compare(peer, items)
            except (NetworkError, codec.CodecError, DimError) as e:
                self._counts["failed"] += 1
                if not isinstance(e, Unreachable):
                    self._agenda.failed(life, changes)
                log.debug("records.not_compared", peer=peer, reason=str(e))
                return
            self._agenda.compared(life, changes)
            if not changes.more:
                break
        await self._pay(peer)

    async def _pay(self, peer: str) -> None:
        """Blocks of the records that the peer got from here, now or at an earlier meeting. One that does not work is in nobody's way."""
        if peer in self._paying or not (jobs := self._owed.of(peer)):
            return
        self._paying.add(peer)
        try:
            await self._pay_all(peer, jobs)
        finally:
            self._paying.discard(peer)

    async def _pay_all(self, peer: str, jobs: Sequence[str]) -> None:
        until = trio.current_time() + self._settings.giving
        try:
            records = await self._journal.load_many(jobs)
            for job in jobs:
                if trio.current_time() >= until:
                    return
                await self._pay_one(peer, Record(job, records.get(job, ())))
        except (Unreachable, ContentError, DimError) as e:
            log.debug("records.blocks_not_given", peer=peer, reason=str(e))

    async def _pay_one(self, peer: str, record: Record) -> None:
        """Raises `Unreachable`, and `ContentError` while the store is away: that is no try."""
        cids = await blocks_here(record, self._store, self._settings.blocks_timeout)
        self._owed.tried(peer, record.job)
        try:
            if await self._give_blocks(peer, record.job, cids):
                self._owed.given(peer, record.job)
        except Unreachable:
            raise
        except (NetworkError, codec.CodecError) as e:
            log.debug("records.blocks_not_given", peer=peer, job=record.job, reason=str(e))

    async def _chosen(self, changes: Changes) -> dict[str, JobDigest]:
        """For the first comparison of a meeting: what else has its turn, too."""
        first = dict.fromkeys([*changes.jobs, *self._agenda.unfinished(self._table.active)])
        digests = await self._journal.digests_of(list(first))
        asked = self._agenda.page(len(digests))
        page = await self._journal.digests(self._agenda.cursor, asked)
        self._agenda.turned([d.job for d in page], asked)
        return digests | {d.job: d for d in page}

    async def _sync(self, peer: str, jobs: Sequence[str], limit: trio.CapacityLimiter, full: list[DimError]) -> None:
        async with limit:
            try:
                for start in range(0, len(jobs), self._settings.items):
                    part = jobs[start : start + self._settings.items]
                    here = await self._journal.digests_of(part)
                    await self._compare(peer, [CompareItem(job=j, digest=here[j].digest if j in here else b"") for j in part])
            except (NetworkError, codec.CodecError) as e:
                self._counts["failed"] += 1
                log.info("records.not_compared", peer=peer, reason=str(e))
            except ResourceExhausted as e:  # of this node, whoever is asked
                full.append(e)

    async def _compare(self, peer: str, items: Sequence[CompareItem]) -> None:
        now = self._clock.monotonic()
        items = [i for i in items if not self._quarrels.holds(peer, i.job, now)]
        if not items:
            return
        self._counts["compared"] += len(items)
        answer = await self._exchange.ask(peer, COMPARE, CompareRequest(items=tuple(items)), CompareAnswer)
        asked = {i.job for i in items}
        told = {t.job: t for t in answer.differ if t.job in asked}
        if more := [job for job in answer.more if job in asked and job not in told]:
            told |= {
                job: JobEntries(job=job, entries=tuple(e)) for job, e in (await self._exchange.fetch(peer, more)).items() if job in more
            }
        await self._exchange.take(peer, tuple(told.values()))
        await self._give(peer, told, [job for job in answer.want if job in asked])

    async def _give(self, peer: str, told: Mapping[str, JobEntries], want: Sequence[str]) -> None:
        """What the peer lacks. Where one side does not take what the other has there is a quarrel."""
        mine = await self._journal.load_many([*told, *want])
        theirs = {job: {e.id for e in told[job].entries} if job in told else set[str]() for job in mine}
        lacking = [(job, lacks) for job, entries in mine.items() if (lacks := missing(entries, theirs[job]))]
        stored = await self._exchange.send(peer, lacking) if lacking else set[str]()
        sent = {job for job, _ in lacking}
        for job, entries in mine.items():
            if job in sent - stored or (job not in sent and not theirs[job] <= {e.id for e in entries}):
                self._quarrels.add(peer, job, self._clock.monotonic())
        for job in want:
            if job in stored:
                self._owed.add(peer, job)  # it has the record now, and the digests will be equal

    async def _give_blocks(self, peer: str, job: str, cids: Sequence[str]) -> bool:
        """Whether the peer has all of them."""
        if not cids:
            return True
        self._let_in(peer, job)

        async def ask(request: BlocksRequest) -> BlocksAnswer:
            data = await self._network.request(peer, BLOCKS, codec.encode(request), timeout=self._settings.blocks_timeout)
            return codec.decode(data, BlocksAnswer)

        kept = await ask_to_keep(ask, self._network.peer_id, job, cids, self._settings.max_blocks)
        if lacking := set(cids) - kept:
            log.info("records.blocks_not_kept", peer=peer, job=job, blocks=len(lacking))
        return not lacking

    # --- who shall have what

    def shall_keep(self, job: str, peer: str) -> bool:
        """Whether this node would give the peer a copy of the job's record, and its blocks, if it lacked them."""
        return self._keep(job, peer, {v.heartbeat.peer_id: v for v in self._registry.nodes()})

    def _keep(self, job: str, peer: str, states: Mapping[str, NodeView], owned_by: str = "") -> bool:
        return peer in self._shall_hold(job, states, owned_by)

    def _shall_hold(self, job: str, states: Mapping[str, NodeView], owned_by: str = "") -> Collection[str]:
        """Who shall hold a copy, as far as this node has to see to it: an owner that is there sees to its own. An owner that does not
        have it shall, or nobody would drive it: its disk was full, say, when the copies had its claim already. ``owned_by``: the peer with
        the highest claim, which is all that is known of a job that is not in memory (it ended)."""
        owner = self._table.view(job).owner if self._table.holds(job) else None
        there = states.get(owner.peer if owner is not None else owned_by)
        if there is None or there.state not in ("alive", "suspect") or (owner is not None and there.heartbeat.boot != owner.boot):
            return self._heirs(job, states)
        peer = there.heartbeat.peer_id
        return {peer, *self._responsible(job)} if peer == self._network.peer_id else {peer}

    def _heirs(self, job: str, states: Mapping[str, NodeView]) -> Collection[str]:
        allowed = self._settings.copies_on
        members = [p for p, v in states.items() if v.state == "alive" and not v.heartbeat.leaving and (not allowed or p in allowed)]
        return heirs(job, members, self._settings.replicas)


def _life(node: NodeView) -> str:
    """A node from one of its starts to its end."""
    return f"{node.heartbeat.peer_id} {node.heartbeat.boot}"
