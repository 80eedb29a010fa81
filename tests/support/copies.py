"""An owner with a replicator, and nodes that hold copies for it, on the in-memory network."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from dimnode.clock import TrioClock
from dimnode.core.job_record import Record
from dimnode.domain import codec
from dimnode.domain.node import NodeState
from dimnode.domain.record import Ballot, Core, SignedEntry
from dimnode.ports import NodeView, Written
from dimnode.records.messages import (
    BLOCKS,
    COMPARE,
    MAX_BLOCKS,
    STORE,
    BlocksAnswer,
    BlocksRequest,
    CompareAnswer,
    CompareRequest,
    JobEntries,
    StoreAnswer,
    StoreRequest,
    StoreResult,
)
from dimnode.records.replicator import Replicator, ReplicatorSettings
from dimnode.records.table import RecordTable
from dimnode.state.memory_journal import MemoryJournal
from p2p.api import RemoteFault
from p2p.ipfs.memory import MemoryStore
from p2p.memory import MemoryHub
from tests.support.entries import RULES, FakeSigner, claim, core
from tests.support.swarm import heartbeat


class FakeRegistry:
    """Says what it is told to."""

    def __init__(self, peers: Sequence[str]) -> None:
        self.states: dict[str, NodeState] = dict.fromkeys(peers, "alive")
        self.leaving: set[str] = set()
        self._version = 1
        self._changed = trio.Event()

    def set(self, peer: str, state: NodeState = "alive", *, leaving: bool = False) -> None:
        self.states[peer] = state
        (self.leaving.add if leaving else self.leaving.discard)(peer)
        self._version += 1
        self._changed.set()
        self._changed = trio.Event()

    def nodes(self) -> tuple[NodeView, ...]:
        return tuple(NodeView(heartbeat(p, leaving=p in self.leaving), s, 0.0) for p, s in self.states.items() if s != "removed")

    def changed(self) -> int:
        return self._version

    async def wait_changed(self, since: int) -> int:
        while self._version <= since:
            await self._changed.wait()
        return self._version

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"copies need no {name} of the registry")


class Holder:
    """A node that keeps what it is sent, and can be told to misbehave. What is in ``records`` is durable."""

    def __init__(self, hub: MemoryHub, peer: str, sync: float = 0.005) -> None:
        self.hub = hub
        self.peer = peer
        self.sync = sync
        self.records: dict[str, dict[str, SignedEntry]] = {}
        self.blocks: set[str] = set()
        self.requests: list[int] = []
        """Jobs in each store request."""
        self.compared: list[str] = []
        """Jobs whose digests it was sent."""
        self.entries = 0
        """Received, known ones too."""
        self.new: set[str] = set()
        """Jobs that came as being accepted."""
        self.full = False
        self.refuses: set[str] = set()
        self.fences: dict[str, tuple[Ballot, tuple[SignedEntry, ...]]] = {}
        self.ends: dict[str, SignedEntry] = {}
        """Outcomes that whoever stores something is told of."""
        self.block_delay = 0.0
        self.no_blocks = False
        self.max_blocks = MAX_BLOCKS
        self.busy = False
        self.join()

    def join(self) -> None:
        """The hub, again after a crash; what was durable still is."""
        network = self.hub.network(self.peer)
        network.serve(STORE, self._store)
        network.serve(BLOCKS, self._blocks)
        network.serve(COMPARE, self._compare)

    async def _store(self, peer: str, data: bytes) -> bytes:
        request = codec.decode(data, StoreRequest)
        if self.busy:
            raise RemoteFault("RESOURCE_EXHAUSTED", "too many requests are waiting")
        if request.jobs:
            self.requests.append(len(request.jobs))
        await trio.sleep(self.sync)
        return codec.encode(StoreAnswer(results=tuple(self._take(j, request.merge) for j in request.jobs)))

    def _take(self, sent: JobEntries, merge: bool) -> StoreResult:
        known = self.records.get(sent.job)
        if self.full:
            return StoreResult(job=sent.job, status="full")
        self.new.update([sent.job] * sent.new)
        if sent.job in self.fences and not merge:
            ballot, proof = self.fences[sent.job]
            return StoreResult(job=sent.job, status="fenced", ballot=ballot, entries=proof)
        if sent.job in self.refuses:
            return StoreResult(job=sent.job, status="refused", reason="no custody")
        if known is None and not any(isinstance(e.body(), Core) for e in sent.entries):
            return StoreResult(job=sent.job, status="incomplete")
        self.entries += len(sent.entries)
        self.records.setdefault(sent.job, {}).update({e.id: e for e in sent.entries})
        ends = (self.ends[sent.job],) if sent.job in self.ends else ()
        return StoreResult(job=sent.job, status="stored", entries=ends)

    async def _blocks(self, peer: str, data: bytes) -> bytes:
        request = codec.decode(data, BlocksRequest)
        if len(request.cids) > self.max_blocks:
            raise RemoteFault("INVALID_ARGUMENT", "too many blocks")
        await trio.sleep(self.block_delay)
        kept = () if self.no_blocks else request.cids
        self.blocks.update(kept)
        return codec.encode(BlocksAnswer(kept=kept))

    async def _compare(self, peer: str, data: bytes) -> bytes:
        request = codec.decode(data, CompareRequest)
        self.compared += [i.job for i in request.items]
        await trio.lowlevel.checkpoint()
        held = {i.job: Record(i.job, self.records[i.job].values()) for i in request.items if i.job in self.records}
        differ = [JobEntries(job=i.job, entries=r.entries()) for i in request.items if (r := held.get(i.job)) and r.digest != i.digest]
        return codec.encode(CompareAnswer(want=tuple(i.job for i in request.items if i.job not in held), differ=tuple(differ)))

    def has(self, job: str, entries: Sequence[SignedEntry]) -> bool:
        return {e.id for e in entries} <= self.records.get(job, {}).keys()


class Owner:
    """The node under test, with holders ``a``, ``b``, ``c``..."""

    def __init__(
        self, hub: MemoryHub, peers: str = "abc", settings: ReplicatorSettings | None = None, voters: tuple[str, ...] = ()
    ) -> None:
        self.hub = hub
        self.network = hub.network("owner")
        self.journal = MemoryJournal()
        self.table = RecordTable(self.journal, FakeSigner("owner"))
        self.registry = FakeRegistry(["owner", *peers])
        self.store = MemoryStore()
        self.replicator = Replicator(
            self.network,
            self.table,
            self.journal,
            self.registry,
            self.store,
            TrioClock(),
            settings,
            rules=RULES,
            voters=lambda: voters,
        )
        self.table.copies = self.replicator
        self.holders = {p: Holder(hub, p) for p in peers}
        hub.connect_all()

    def kill(self, peer: str) -> None:
        self.hub.crash(peer)

    def revive(self, peer: str) -> None:
        self.holders[peer].join()
        self.hub.link("owner", peer)

    def copies(self, job: str, entries: Sequence[SignedEntry] = ()) -> set[str]:
        """Who has all of these durably."""
        return {p for p, h in self.holders.items() if job in h.records and h.has(job, entries)}


@asynccontextmanager
async def an_owner(
    peers: str = "abc",
    settings: ReplicatorSettings | None = None,
    delay: tuple[float, float] = (0.001, 0.002),
    voters: tuple[str, ...] = (),
) -> AsyncGenerator[Owner]:
    async with MemoryHub(seed=7, delay=delay) as hub, trio.open_nursery() as nursery:
        owner = Owner(hub, peers, settings, voters)
        await nursery.start(owner.replicator.run)
        yield owner
        nursery.cancel_scope.cancel()


def new_job(job: str, blocks: Sequence[str] = (), spec: bytes = b"spec") -> Written:
    return Written(job, (core(job, spec=spec), claim(1, "owner", job=job)), new=True, blocks=blocks)
