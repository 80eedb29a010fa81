"""Nodes that publish and read the swarm's state, on the in-memory network and on virtual time: real registry, elector, records and
state manager."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import trio

from dimnode.core.election import ElectionSettings
from dimnode.core.record_gate import EntryRules
from dimnode.core.retention import RetentionRule
from dimnode.domain import codec
from dimnode.domain.ids import job_id
from dimnode.domain.record import Core, OutcomeEntry, SignedEntry
from dimnode.records.anti_entropy import AntiEntropy, AntiEntropySettings
from dimnode.records.exchange import ExchangeSettings
from dimnode.records.holder import HolderSettings, RecordHolder
from dimnode.records.participation import Door, Participation
from dimnode.records.table import RecordTable
from dimnode.snapshots.catch_up import CatchUpSettings
from dimnode.snapshots.manager import StateManager, StateSettings
from dimnode.snapshots.name_book import NameKind
from dimnode.snapshots.names import NAMESPACE, NamesSettings
from dimnode.snapshots.publisher import PublisherSettings
from dimnode.snapshots.writer import WriterSettings
from dimnode.state.memory_journal import MemoryDisk
from p2p.dht.memory import MemoryDht
from p2p.identity import Identity
from p2p.ipfs.api import ContentStore
from p2p.ipfs.memory import MemoryExchange, MemoryStore
from p2p.memory import MemoryHub
from tests.support.entries import FakeSigner, ballot, claim, fake_verify, outcome, signed
from tests.support.swarm import SwarmNode

SWARM = "dim"
FOR_EVER = RetentionRule(retention=1e12)
"""The entries of `tests.support.entries` are of the year 1970."""


def key_of(peer: str) -> Identity:
    return Identity(hashlib.sha256(peer.encode()).digest())


def name_of_job(number: int) -> str:
    return job_id(SWARM, "me", "", codec.digest(_spec(number)))


def _spec(number: int) -> bytes:
    return codec.encode({"number": number, "text": "x" * 300})


def job(number: int, ended: str | None = "completed", *, owner: str = "p", submitted: float = 1.0) -> tuple[str, list[SignedEntry]]:
    """A job's id and record: accepted, claimed, and ended unless ``ended`` is None."""
    name = name_of_job(number)
    core = Core(
        job=name, spec_cid="c", spec=_spec(number), pattern="chained", priority="normal", principal="me", submitted=submitted, timeout=60
    )
    entries = [signed(core), claim(1, owner, at=submitted + 1, job=name)]
    if ended is not None:
        entries.append(outcome(1, ended, owner, at=submitted + 8, result=codec.encode({"outputs": {}, "tasks": [], "y": number}), job=name))
    return name, entries


async def job_with_blocks(store: ContentStore, number: int) -> tuple[tuple[str, list[SignedEntry]], tuple[str, ...]]:
    """A finished job whose input, result document and output are private blocks of this store, and their CIDs."""
    draft = store.private_to(draft_name := f"draft {number}")
    wanted = await draft.add_bytes(f"input {number}".encode())
    spec = codec.encode({"client_data": {"x": {"cid": wanted}}})
    name = job_id(SWARM, "me", "", codec.digest(spec))
    await store.rename_audience(draft_name, name)
    output = await store.private_to(name).add_bytes(f"output {number}".encode())
    document = await store.private_to(name).put_dag({"outputs": {"y": {"cid": output}}, "tasks": []})
    core = Core(job=name, spec_cid="c", spec=spec, pattern="chained", priority="normal", principal="me", submitted=1.0, timeout=60)
    ended = OutcomeEntry(job=name, ballot=ballot(1, "p"), status="completed", at=9.0, result_cid=document)
    return (name, [signed(core), claim(1, "p", job=name), signed(ended)]), (wanted, document, output)


class StateNode(SwarmNode):
    """`SwarmNode` with records and the swarm's state."""

    def __init__(self, hub: MemoryHub, peer: str, blocks: MemoryExchange, **kw: Any) -> None:
        super().__init__(hub, peer, **kw)
        rule = kw.get("rule", FOR_EVER)
        door = Door()
        self.store = kw.get("store") or MemoryStore(peer, blocks, may_serve=door.may_serve)
        self.table = RecordTable(self.journal, FakeSigner(peer))
        self.holder = RecordHolder(
            self.network,
            self.table,
            self.journal,
            self.store,
            self.clock,
            HolderSettings(retention=rule),
            rules=EntryRules(fake_verify, SWARM),
        )
        self.anti_entropy = AntiEntropy(
            self.network,
            self.table,
            self.journal,
            self.registry,
            self.store,
            self.clock,
            AntiEntropySettings(interval=1.0, exchange=ExchangeSettings(retention=rule)),
            responsible=lambda _: (),
            rules=EntryRules(fake_verify, SWARM),
            let_in=lambda peer, job: self.participation.let_in(peer, job),
        )
        self.participation = door.participation = Participation(
            self.network, self.table, self.journal, self.elector, self.clock, shall_keep=self.anti_entropy.shall_keep
        )
        settings = kw.get("state", StateSettings())
        self.state = StateManager(
            swarm=SWARM,
            protocol=1,
            rules=EntryRules(fake_verify, SWARM),
            network=self.network,
            journal=self.journal,
            table=self.table,
            store=self.store,
            registry=self.registry,
            elector=self.elector,
            clock=self.clock,
            signer=FakeSigner(peer),
            key=kw.get("key", key_of(peer)),
            keep_blocks=self.holder.keep_blocks,
            settings=replace(settings, exchange=ExchangeSettings(retention=rule)),
            outlet=kw.get("outlet"),
            dht=MemoryDht(kw["dht"], peer, {NAMESPACE: NameKind(SWARM, self.clock.wall, fake_verify)}) if "dht" in kw else None,
        )
        self._deltas = kw.get("deltas", False)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self.scope:
            await self.table.open()
            async with trio.open_nursery() as nursery:
                await nursery.start(self.registry.run)
                await nursery.start(self.elector.run)
                await nursery.start(self.state.run)
                if self._deltas:
                    await nursery.start(self.anti_entropy.run)
                task_status.started()

    async def learn(self, *jobs: tuple[str, Sequence[SignedEntry]]) -> None:
        await self.table.merge_many(jobs)

    async def digests(self) -> dict[str, bytes]:
        return {d.job: d.digest for d in await self.journal.digests("", 1_000_000)}


QUICK = StateSettings(
    names=NamesSettings(ttl=1.0),
    publisher=PublisherSettings(interval=2.0, settle=0.5, ttl=1.0),
    catch_up=CatchUpSettings(retry=0.5),
)
BARE = replace(QUICK, writer=WriterSettings(with_records=False))


class StateSwarm:
    """``seats`` of them; the first peers to be added get them."""

    def __init__(self, hub: MemoryHub, nursery: trio.Nursery, **kw: Any) -> None:
        self.hub = hub
        self.nodes: dict[str, StateNode] = {}
        self.blocks = MemoryExchange()
        self._nursery = nursery
        self._kw = {"state": QUICK, "election": ElectionSettings(orchestrators=kw.pop("seats", 2)), **kw}

    async def add(self, peer: str, **kw: Any) -> StateNode:
        start = "join" if self.nodes else "alone"
        node = self.nodes[peer] = StateNode(self.hub, peer, self.blocks, start=start, **{**self._kw, **kw})
        await self._nursery.start(node.run)
        self.hub.connect_all()
        return node

    def crash(self, peer: str) -> MemoryDisk:
        node = self.nodes.pop(peer)
        node.crash()
        del self.blocks._members[peer]
        return node.journal.crash().disk
