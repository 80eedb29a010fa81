"""What a leaving node does with the records it has: others shall have them all before it goes.

Other nodes are asked first what they have (most have most already), and get what is missing.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog
import trio

from dimnode.core.job_record import Record
from dimnode.core.job_view import view
from dimnode.domain import codec
from dimnode.errors import DimError
from dimnode.ports import JobDigest, Journal
from dimnode.records.blocks import ask_to_keep, blocks_here
from dimnode.records.keepers import Keepers
from dimnode.records.links import in_parts
from dimnode.records.messages import (
    BLOCKS,
    COMPARE,
    MAX_BLOCKS,
    STORE,
    BlocksAnswer,
    BlocksRequest,
    CompareAnswer,
    CompareItem,
    CompareRequest,
    JobEntries,
    StoreAnswer,
    StoreRequest,
)
from dimnode.records.table import RecordTable
from p2p.api import Network, NetworkError
from p2p.ipfs.api import ContentError, ContentStore

log = structlog.get_logger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HandOverSettings:
    page: int = 500
    """Records of the journal that are looked at in one go."""
    compare: int = 256
    """Records that a node is asked about at once."""
    tries: int = 4
    """Requests in a row that a node may leave without an answer."""
    pause: float = 0.5
    """Seconds before it is asked again."""
    max_bytes: int = 4 * 1024 * 1024
    """Of entries in one request."""
    request_timeout: float = 5.0
    blocks_timeout: float = 30.0
    """For a node to fetch a record's blocks."""
    share: float = 0.25
    """Of the time that is left: a request takes no longer, so that there is time for other nodes when one does not answer."""
    least_timeout: float = 0.5
    """Whatever the share."""
    blocks_at_once: int = 8
    """Records whose blocks one node is asked to fetch at the same time."""


@dataclass(slots=True)
class _Item:
    digest: bytes
    have: set[str] = field(default_factory=set[str])
    """Nodes that have it."""
    refused: set[str] = field(default_factory=set[str])
    """Nodes that answered, and did not take it."""
    lacking: set[str] = field(default_factory=set[str])
    """Nodes that have the record, and whose blocks for it did not come: the record is equal to this one, so it does not tell."""


class HandOver:
    def __init__(
        self,
        network: Network,
        table: RecordTable,
        journal: Journal,
        store: ContentStore,
        keepers: Keepers,
        settings: HandOverSettings,
        let_in: Callable[[str, str], None],
    ) -> None:
        self._network = network
        self._table = table
        self._journal = journal
        self._store = store
        self._keepers = keepers
        self._settings = settings
        self._let_in = let_in
        self._items: dict[str, _Item] = {}
        self._silent: Counter[str] = Counter()
        """How often a node did not answer since it last did."""
        self._until = 0.0
        """When the time is over."""

    async def run(self, replicas: int, held: Callable[[str], Collection[str]], timeout: float, *, only_finished: bool = False) -> int:
        """``held`` tells which nodes are known to have all of a job. Returns the records that too few others have: fewer
        than ``replicas`` (at least one), though there are so many others. What an earlier run found out is not asked again."""
        self._keepers.look()
        if self._keepers.alone():
            return 0
        self._silent.clear()
        self._until = trio.current_time() + timeout
        wanted = max(1, min(max(1, replicas), len(self._keepers.members)))
        items: Mapping[str, _Item] | None = None
        with trio.move_on_after(timeout):
            items = await self._collect(held, only_finished)
            await self._spread(items, wanted)
        # If there was not even time to look at them all, then at least one has been left.
        left = sum(len(i.have) < wanted for i in items.values()) if items is not None else 1
        log.info("records.handed_over", records=len(items or ()), not_handed_over=left, early=only_finished)
        return left

    async def _spread(self, items: Mapping[str, _Item], wanted: int) -> None:
        """Returns when enough nodes have them all, or no more can be done."""
        silent = self._silent
        while lacking := {job: item for job, item in items.items() if len(item.have) < wanted}:
            plan = self._plan(lacking, wanted)
            before = silent.total()
            async with trio.open_nursery() as nursery:
                for peer, jobs in plan.items():
                    nursery.start_soon(self._to_peer, peer, {j: items[j] for j in jobs})
            if not plan and not self._may_come(lacking.values()):
                return
            if not plan or silent.total() > before:  # a busy node is asked again in a while, one that left is not
                await trio.sleep(self._settings.pause)
                self._keepers.look()

    def _may_come(self, lacking: Iterable[_Item]) -> bool:
        """Whether some node that is not heard just now may take one of them when it is."""
        members = [p for p in self._keepers.members if self._silent[p] < self._settings.tries]
        return any(p not in item.have and p not in item.refused for item in lacking for p in members)

    async def _collect(self, held: Callable[[str], Collection[str]], only_finished: bool) -> dict[str, _Item]:
        """All records, unfinished ones first."""
        found: list[JobDigest] = []
        after = ""
        while page := await self._journal.digests(after, self._settings.page):
            found += (d for d in page if d.finished or not only_finished)
            after = page[-1].job
        found.sort(key=lambda d: d.finished)
        for d in found:
            known = self._items.get(d.job)
            if known is not None and known.digest == d.digest:
                known.have &= self._keepers.members
                known.refused.clear()
            else:
                self._items[d.job] = _Item(d.digest, set(held(d.job)))
        return {d.job: self._items[d.job] for d in found}

    def _plan(self, items: Mapping[str, _Item], wanted: int) -> dict[str, list[str]]:
        plan: dict[str, list[str]] = {}
        silent = self._silent
        for job, item in items.items():
            owner = self._owner(job)

            def fit(peer: str, item: _Item = item) -> bool:
                return peer not in item.refused and silent[peer] < self._settings.tries

            chosen = self._keepers.pick(job, wanted + 1, item.have, (), fit)
            if len(chosen) < wanted:
                chosen = self._keepers.pick(job, wanted + 1, item.have, (), fit, down=True)
            # An owner has the record, and finds others for it; before that one more node shall have it.
            chosen = sorted(chosen, key=lambda p, item=item: (p in item.lacking, silent[p], p == owner))
            for peer in [p for p in chosen if p not in item.have][: wanted - len(item.have)]:
                plan.setdefault(peer, []).append(job)
        return plan

    def _owner(self, job: str) -> str | None:
        if not self._table.holds(job):
            return None
        owner = view(self._table.record(job)).owner
        return owner.peer if owner is not None else None

    async def _to_peer(self, peer: str, items: dict[str, _Item]) -> None:
        """Marks each item that the peer has, or does not take. When it does not answer, the rest waits for the next round."""
        jobs = list(items)
        for start in range(0, len(jobs), self._settings.compare):
            part = jobs[start : start + self._settings.compare]
            try:
                await self._some(peer, {j: items[j] for j in part})
            except (NetworkError, codec.CodecError, DimError) as e:
                self._silent[peer] += 1
                log.warning("records.not_handed_over", peer=peer, records=len(jobs) - start, reason=str(e))
                return
            self._silent[peer] = 0

    async def _some(self, peer: str, items: dict[str, _Item]) -> None:
        asked = CompareRequest(items=tuple(CompareItem(job=j, digest=i.digest, keep=True) for j, i in items.items()))
        answer = await self._ask(peer, COMPARE, asked, CompareAnswer)
        lacking = {*answer.want, *answer.more, *(d.job for d in answer.differ)}
        missing = [j for j in items if j in lacking]
        owed = [j for j in items.keys() - missing if peer in items[j].lacking]
        for job in items.keys() - {*missing, *owed}:
            items[job].have.add(peer)
        if not missing and not owed:
            return
        records = {j: Record(j, e) for j, e in (await self._journal.load_many([*missing, *owed])).items()}
        taken = await self._store_all(peer, {j: r for j, r in records.items() if j not in owed})
        for job in set(missing) - taken:
            items[job].refused.add(peer)
        limit = trio.CapacityLimiter(self._settings.blocks_at_once)
        async with trio.open_nursery() as nursery:
            for job in [*taken, *(j for j in owed if j in records)]:
                nursery.start_soon(self._with_blocks, peer, records[job], items[job], limit)

    async def _with_blocks(self, peer: str, record: Record, item: _Item, limit: trio.CapacityLimiter) -> None:
        async with limit:
            try:
                (item.have if await self._keep_blocks(peer, record) else item.refused).add(peer)
            except (NetworkError, codec.CodecError, DimError, ContentError) as e:
                item.lacking.add(peer)
                log.warning("records.blocks_not_handed_over", peer=peer, job=record.job, reason=str(e))

    async def _store_all(self, peer: str, records: dict[str, Record]) -> set[str]:
        """Those that the peer stored whole."""
        most = self._settings.max_bytes
        pieces = deque((j, part, size) for j, r in records.items() for part, size in in_parts(r.entries(), most))
        stored = set(records)
        while pieces:
            batch: list[JobEntries] = []
            room = most
            while pieces and (not batch or (pieces[0][2] <= room and pieces[0][0] != batch[-1].job)):
                job, part, size = pieces.popleft()
                batch.append(JobEntries(job=job, entries=tuple(part)))
                room -= size
            answer = await self._ask(peer, STORE, StoreRequest(jobs=tuple(batch), merge=True), StoreAnswer)
            stored -= {r.job for r in answer.results if r.status != "stored"}
        return stored

    async def _keep_blocks(self, peer: str, record: Record) -> bool:
        """Whether the peer has the blocks of the record that are here."""
        cids = await blocks_here(record, self._store, self._settings.request_timeout)
        if not cids:
            return True
        self._let_in(peer, record.job)

        async def ask(request: BlocksRequest) -> BlocksAnswer:
            return await self._ask(peer, BLOCKS, request, BlocksAnswer, self._settings.blocks_timeout)

        return set(cids) <= await ask_to_keep(ask, self._network.peer_id, record.job, cids, MAX_BLOCKS)

    async def _ask(self, peer: str, method: str, request: Any, kind: type[T], timeout: float | None = None) -> T:
        s = self._settings
        timeout = min(timeout or s.request_timeout, max(s.least_timeout, s.share * (self._until - trio.current_time())))
        return codec.decode(await self._network.request(peer, method, codec.encode(request), timeout=timeout), kind)
