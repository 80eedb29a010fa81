"""Nodes that hold records, on the in-memory network and on virtual time: the real table, holder, anti-entropy, hints and retention."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import trio

from dimnode.clock import TrioClock
from dimnode.core.job_record import Record
from dimnode.core.record_gate import EntryRules
from dimnode.core.retention import RetentionRule
from dimnode.domain import codec
from dimnode.domain.node import NodeState
from dimnode.domain.record import SignedEntry
from dimnode.ports import NodeView
from dimnode.records.anti_entropy import AntiEntropy, AntiEntropySettings
from dimnode.records.hints import HintGossip, HintSettings
from dimnode.records.holder import HolderSettings, RecordHolder
from dimnode.records.messages import STORE, JobEntries, StoreAnswer, StoreRequest, StoreResult
from dimnode.records.restoration import Restoration
from dimnode.records.retention import Retention, RetentionSettings
from dimnode.records.table import RecordTable, TableSettings
from dimnode.state.memory_journal import MemoryDisk, MemoryJournal
from p2p.ipfs.memory import MemoryExchange, MemoryStore
from p2p.memory import MemoryHub
from tests.support.entries import FakeSigner, fake_verify
from tests.support.swarm import heartbeat

T = TypeVar("T")
FOR_EVER = RetentionRule(retention=1e12)
"""The entries of `tests.support.entries` are of the year 1970."""


class Members:
    """`dimnode.ports.Registry` as far as records need it, one for all nodes: says what it is told to."""

    def __init__(self) -> None:
        self.states: dict[str, NodeState] = {}
        self.boots: dict[str, str] = {}
        self.leaving: set[str] = set()

    def nodes(self) -> tuple[NodeView, ...]:
        return tuple(NodeView(heartbeat(p, boot=self.boots.get(p, "b"), leaving=p in self.leaving), s, 0.0) for p, s in self.states.items())

    def alive(self) -> tuple[NodeView, ...]:
        return tuple(v for v in self.nodes() if v.state == "alive")

    def find(self, name_or_id: str) -> tuple[NodeView, ...]:
        return tuple(v for v in self.nodes() if v.heartbeat.peer_id == name_or_id)

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"records need no {name} of the registry")


class RecordNode:
    """Its boot id is ``b``, as in `tests.support.entries`."""

    def __init__(self, hub: MemoryHub, members: Members, peer: str, store: MemoryStore, **kw: Any) -> None:
        self.peer = peer
        self.members = members
        self.clock = TrioClock()
        self.network = hub.network(peer)
        self.journal = MemoryJournal(kw.get("disk") or MemoryDisk(), sync=0.003)
        self.table = RecordTable(self.journal, FakeSigner(peer), settings=kw.get("table") or TableSettings())
        self.store = store
        rule = kw.get("rule") or FOR_EVER
        self.chosen: dict[str, Collection[str]] = {}
        """Job -> the nodes that shall hold it, of jobs that this node owns."""
        rules = EntryRules(fake_verify, kw.get("swarm"), frozenset(kw.get("deciders", ())))
        self.holder = RecordHolder(
            self.network,
            self.table,
            self.journal,
            self.store,
            self.clock,
            replace(kw.get("holder") or HolderSettings(), retention=rule),
            rules=rules,
            accepts=kw.get("accepts") or (lambda _: True),
            free=kw.get("free"),
        )
        settings = kw.get("anti_entropy") or AntiEntropySettings()
        settings = replace(settings, exchange=replace(settings.exchange, retention=rule))
        self.anti_entropy = AntiEntropy(
            self.network,
            self.table,
            self.journal,
            members,
            self.store,
            self.clock,
            settings,
            responsible=lambda job: self.chosen.get(job, ()),
            rules=rules,
            rng=random.Random(peer),
        )
        self.restoration = Restoration(
            peer, self.journal, members, self.clock, kw.get("restoration"), heirs=self.anti_entropy.heirs, bring=self.anti_entropy.bring
        )
        self.hints = HintGossip(self.network, self.table, self.clock, kw.get("hints") or HintSettings(), rules=rules)
        self.retention = Retention(
            self.table,
            self.journal,
            self.store,
            members,
            FakeSigner(peer),
            self.clock,
            replace(kw.get("retention") or RetentionSettings(), rule=rule),
            boot="b",
            may_decide=rules.may_decide(peer),
        )
        self.scope = trio.CancelScope()

    async def run(self, *parts: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self.scope:
            await self.table.open()
            async with trio.open_nursery() as nursery:
                for part in parts:
                    await nursery.start(getattr(self, part).run)
                task_status.started()

    async def ask(self, peer: str, method: str, request: Any, kind: type[T], timeout: float = 10.0) -> T:
        return codec.decode(await self.network.request(peer, method, codec.encode(request), timeout=timeout), kind)

    async def store_at(self, peer: str, job: str, *entries: SignedEntry, new: bool = False, merge: bool = False) -> StoreResult:
        request = StoreRequest(jobs=(JobEntries(job=job, entries=entries, new=new),), merge=merge)
        return (await self.ask(peer, STORE, request, StoreAnswer)).results[0]

    async def has(self, job: str, entries: Sequence[SignedEntry]) -> bool:
        """Durably, and in the table, exactly this."""
        want = Record(job, entries)
        here = Record(job, await self.journal.load(job))
        return here == want and (await self.table.find_many([job])).get(job, Record(job)) == want


class RecordSwarm:
    def __init__(self, hub: MemoryHub, nursery: trio.Nursery, parts: Sequence[str], **kw: Any) -> None:
        self.hub = hub
        self.members = Members()
        self.blocks = MemoryExchange()
        self.stores: dict[str, MemoryStore] = {}
        """They survive crashes."""
        self.nodes: dict[str, RecordNode] = {}
        self._nursery = nursery
        self._parts = parts
        self._kw = kw

    async def add(self, peer: str, **kw: Any) -> RecordNode:
        if peer not in self.stores:
            self.stores[peer] = MemoryStore(peer, self.blocks)
        self.blocks.reconnect(peer)
        node = self.nodes[peer] = RecordNode(self.hub, self.members, peer, self.stores[peer], **{**self._kw, **kw})
        self.members.states[peer] = "alive"
        await self._nursery.start(node.run, *self._parts)
        self.hub.connect_all()
        return node

    def crash(self, peer: str) -> MemoryDisk:
        node = self.nodes.pop(peer)
        self.hub.crash(peer)
        node.scope.cancel()
        self.members.states[peer] = "dead"
        self.blocks.disconnect(peer)
        return node.journal.crash().disk


@asynccontextmanager
async def record_swarm(
    peers: Sequence[str], *parts: str, loss: float = 0.0, delay: tuple[float, float] = (0.001, 0.02), **kw: Any
) -> AsyncGenerator[RecordSwarm]:
    """``parts``: which loops run: ``anti_entropy``, ``restoration``, ``hints``, ``retention``."""
    async with MemoryHub(seed=3, loss=loss, delay=delay) as hub, trio.open_nursery() as nursery:
        swarm = RecordSwarm(hub, nursery, parts, **kw)
        for peer in peers:
            await swarm.add(peer)
        yield swarm
        nursery.cancel_scope.cancel()


QUICK = AntiEntropySettings(interval=1.0)
SMALL = replace(QUICK, items=16)


async def holders(nodes: dict[str, RecordNode], job: str, entries: list[SignedEntry]) -> set[str]:
    return {p for p, n in nodes.items() if await n.has(job, entries)}


async def until(condition: Callable[[], object], limit: float, step: float = 0.5) -> float:
    """Seconds until it holds."""
    start = trio.current_time()
    while True:
        found = condition()
        if await found if hasattr(found, "__await__") else found:  # pyright: ignore
            return trio.current_time() - start
        assert trio.current_time() - start < limit, "took too long"
        await trio.sleep(step)
