"""Looks for the record of a job that is not here: at the nodes that most likely keep a copy first, then at the others.

That a job does not exist is only said when every node that may have it said so: one that is busy, or just gone, may be the one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import structlog
import trio

from dimnode.core.job_record import EntryRefused
from dimnode.core.record_gate import EntryRules, NotADecider
from dimnode.core.rendezvous import rendezvous
from dimnode.domain import codec
from dimnode.domain.record import SignedEntry
from dimnode.ports import Registry
from dimnode.records.messages import FETCH, FetchAnswer, FetchRequest
from dimnode.records.table import RecordTable
from p2p.api import Network, NetworkError

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SearchSettings:
    timeout: float = 2.0
    """Seconds for one node's answer."""
    at_once: int = 4
    """Nodes asked at the same time."""
    most: int = 32
    """Nodes asked for one job."""


class Found(Enum):
    HERE = "here"
    """The record is here now."""
    NOWHERE = "nowhere"
    UNKNOWN = "unknown"
    """A node that may have it did not answer."""


class RecordSearch:
    def __init__(
        self,
        network: Network,
        table: RecordTable,
        registry: Registry,
        settings: SearchSettings | None = None,
        *,
        rules: EntryRules,
    ) -> None:
        self._network = network
        self._table = table
        self._registry = registry
        self._settings = settings or SearchSettings()
        self._rules = rules

    async def __call__(self, job: str) -> Found:
        """Raises what `RecordTable.merge` raises."""
        others = {v.heartbeat.peer_id: v.state for v in self._registry.nodes() if v.heartbeat.peer_id != self._network.peer_id}
        order = rendezvous(job, [p for p, state in others.items() if state != "dead"])[: self._settings.most]
        silent = any(v.state == "dead" and not v.heartbeat.leaving for v in self._registry.nodes())  # who left handed its records over
        for start in range(0, len(order), self._settings.at_once):
            part = order[start : start + self._settings.at_once]
            fit: dict[str, SignedEntry] = {}
            answered: list[str] = []
            async with trio.open_nursery() as nursery:
                for peer in part:
                    nursery.start_soon(self._fetch, job, peer, fit, answered)
            if fit:
                await self._table.merge(job, list(fit.values()))
            if await self._table.exists(job):
                return Found.HERE
            silent |= len(answered) < len(part)
        return Found.UNKNOWN if silent else Found.NOWHERE

    async def _fetch(self, job: str, peer: str, fit: dict[str, SignedEntry], answered: list[str]) -> None:
        try:
            data = await self._network.request(peer, FETCH, codec.encode(FetchRequest(jobs=(job,))), timeout=self._settings.timeout)
            answer = codec.decode(data, FetchAnswer)
        except (NetworkError, codec.CodecError):
            return
        for found in answer.jobs:
            if found.job == job:
                fit.update((e.id, e) for e in self._fit(job, found.entries))
        answered.append(peer)

    def _fit(self, job: str, entries: Sequence[SignedEntry]) -> list[SignedEntry]:
        fit: list[SignedEntry] = []
        for entry in entries:
            try:
                if self._rules.check(entry).job == job:
                    fit.append(entry)
            except NotADecider as e:
                log.warning("records.answer_refused", job=job, reason=str(e))
                return []
            except EntryRefused as e:
                log.warning("records.entry_refused", job=job, reason=str(e))
        return fit
