"""All that a node does with records, wired: its own and the copies that it keeps, whatever its role."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio

from dimnode.core.record_gate import EntryRules
from dimnode.ports import Clock, Elector, Journal, Registry, Signer
from dimnode.records.anti_entropy import AntiEntropy, AntiEntropySettings
from dimnode.records.hints import HintGossip, HintSettings
from dimnode.records.holder import HolderSettings, RecordHolder
from dimnode.records.made_blocks import BlockMaker, MakingSettings
from dimnode.records.messages import BlocksRequest
from dimnode.records.offers import Driver, JobOffers, KeptResults, OffersSettings, ResultOffers
from dimnode.records.participation import Participation, ParticipationSettings
from dimnode.records.questions import Questions, QuestionsSettings, Reporter
from dimnode.records.replicator import Replicator, ReplicatorSettings
from dimnode.records.restoration import Restoration, RestorationSettings
from dimnode.records.retention import Retention, RetentionSettings
from dimnode.records.search import RecordSearch, SearchSettings
from dimnode.records.table import RecordTable, TableSettings
from p2p.api import Network
from p2p.ipfs.api import ContentStore


class Tasks(Reporter, KeptResults, Protocol):
    """The part of `dimnode.ports.TaskService` that knows what became of tasks."""


@dataclass(frozen=True, slots=True)
class KeepingSettings:
    table: TableSettings = field(default_factory=TableSettings)
    holder: HolderSettings = field(default_factory=HolderSettings)
    replicator: ReplicatorSettings = field(default_factory=ReplicatorSettings)
    anti_entropy: AntiEntropySettings = field(default_factory=AntiEntropySettings)
    hints: HintSettings = field(default_factory=HintSettings)
    restoration: RestorationSettings = field(default_factory=RestorationSettings)
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    sync_timeout: float = 2.0
    """Seconds to learn what others know of jobs, before they are claimed."""
    sync_peers: int = 16
    """Nodes that are asked for that."""
    search: SearchSettings = field(default_factory=SearchSettings)
    offers: OffersSettings = field(default_factory=OffersSettings)
    questions: QuestionsSettings = field(default_factory=QuestionsSettings)
    participation: ParticipationSettings = field(default_factory=ParticipationSettings)
    making: MakingSettings = field(default_factory=MakingSettings)


class Keeping:
    """``driver``: the orchestrator while one is alive here; ``free``: bytes left on the disk of the blocks."""

    def __init__(
        self,
        *,
        rules: EntryRules,
        network: Network,
        journal: Journal,
        signer: Signer,
        registry: Registry,
        elector: Elector,
        store: ContentStore,
        clock: Clock,
        tasks: Tasks,
        driver: Callable[[], Driver | None],
        settings: KeepingSettings,
        free: Callable[[], int] | None = None,
        rng: random.Random | None = None,
        voters: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """``voters``: the electorate in election mode ``majority``: what most of it has not acknowledged does not count."""
        self._settings = s = settings
        self._elector = elector
        self._voters = voters
        self.table = RecordTable(journal, signer, settings=s.table)
        self._holder = RecordHolder(network, self.table, journal, store, clock, s.holder, rules=rules, free=free)
        self.participation = Participation(
            network, self.table, journal, elector, clock, s.participation,
            shall_keep=self._shall_keep,
        )  # fmt: skip
        self.replicator = Replicator(
            network, self.table, journal, registry, store, clock, s.replicator,
            rules=rules, voters=voters, let_in=self.participation.let_in,
        )  # fmt: skip
        self.table.copies = self.replicator
        self._anti_entropy = AntiEntropy(
            network, self.table, journal, registry, store, clock, s.anti_entropy,
            responsible=self.replicator.responsible, rules=rules, rng=rng, let_in=self.participation.let_in,
        )  # fmt: skip
        self._restoration = Restoration(
            network.peer_id, journal, registry, clock, s.restoration,
            heirs=self._anti_entropy.heirs, bring=self._anti_entropy.bring,
        )  # fmt: skip
        self.hints = HintGossip(network, self.table, clock, s.hints, rules=rules)
        self._retention = Retention(
            self.table,
            journal,
            store,
            registry,
            signer,
            clock,
            s.retention,
            boot=elector.boot,
            may_decide=rules.may_decide(network.peer_id),
        )
        self._maker = BlockMaker(self.table, journal, store, s.making)
        self.search = RecordSearch(network, self.table, registry, s.search, rules=rules)
        self.offers = JobOffers(network, self.table, elector, clock, driver, s.offers, rules=rules)
        self._results = ResultOffers(network, elector, clock, tasks, s.offers)
        Questions(network, self.table, tasks, driver, s.questions, rules=rules)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Started once the journal's unfinished records are in memory."""
        await self.table.open()
        while await self._retention.expire_orphans():  # what returns after all too long a time is not even offered
            pass
        async with trio.open_nursery() as nursery:
            for part in (
                self.replicator.run, self._anti_entropy.run, self.hints.run, self._retention.run, self.offers.run, self._results.run,
                self._maker.run, self._restoration.run,
            ):  # fmt: skip
                await nursery.start(part)
            task_status.started()

    async def sync(self, jobs: Sequence[str]) -> None:
        """Learns what the live seats and the likely holders know of these jobs, before a seat drives them."""
        peers = dict.fromkeys([*(s.peer for s in self._elector.seats()), *self._voters()])
        for job in jobs:
            if len(peers) >= self._settings.sync_peers:
                break
            peers.update(dict.fromkeys(self.replicator.responsible(job)))
        await self._anti_entropy.sync_now(jobs, tuple(peers), self._settings.sync_timeout)

    def _shall_keep(self, job: str, peer: str) -> bool:
        return self._anti_entropy.shall_keep(job, peer)

    async def keep_blocks(self, request: BlocksRequest) -> Collection[str]:
        """Fetches blocks of a job and pins them; see `RecordHolder.keep_blocks`."""
        return await self._holder.keep_blocks(request)

    def publishing(self) -> Mapping[str, Any]:
        """For ``status``: blocks of records that are to be made; see `BlockMaker.status`."""
        return self._maker.status()

    def statistics(self) -> Mapping[str, Mapping[str, int]]:
        """``copies.short``: jobs of this node that have too few copies now; ``copies.nodes_down``: keepers that do not answer."""
        return {
            "copies": self.replicator.statistics(),
            "held": self._holder.statistics(),
            "compared": self._anti_entropy.statistics(),
            "restored": self._restoration.statistics(),
            "hints": self.hints.statistics(),
            "retention": self._retention.statistics(),
            "blocks": self.participation.statistics(),
            "made": self._maker.statistics(),
        }
