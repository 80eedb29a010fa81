"""Looks for the record of a job that is not here: at the nodes that most likely keep a copy first, then at the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import structlog
import trio

from dimnode.core.job_record import EntryRefused, Verify, check_entry
from dimnode.core.rendezvous import rendezvous
from dimnode.domain import codec
from dimnode.domain.record import SignedEntry
from dimnode.ports import Registry
from dimnode.records.messages import FETCH, FetchAnswer, FetchRequest
from dimnode.records.table import RecordTable
from p2p.api import Network, NetworkError
from p2p.identity import verify as verify_with_peer_id

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SearchSettings:
    timeout: float = 2.0
    """Seconds for one node's answer."""
    at_once: int = 4
    """Nodes asked at the same time."""
    most: int = 32
    """Nodes asked for one job."""


class RecordSearch:
    def __init__(
        self,
        network: Network,
        table: RecordTable,
        registry: Registry,
        settings: SearchSettings | None = None,
        verify: Verify = verify_with_peer_id,
    ) -> None:
        self._network = network
        self._table = table
        self._registry = registry
        self._settings = settings or SearchSettings()
        self._verify = verify

    async def __call__(self, job: str) -> bool:
        """Whether the record is here now. Raises what `RecordTable.merge` raises."""
        alive = [v.heartbeat.peer_id for v in self._registry.alive()]
        order = [p for p in rendezvous(job, alive) if p != self._network.peer_id][: self._settings.most]
        for start in range(0, len(order), self._settings.at_once):
            if await self._ask(job, order[start : start + self._settings.at_once]):
                return True
        return False

    async def _ask(self, job: str, peers: Sequence[str]) -> bool:
        fit: dict[str, SignedEntry] = {}
        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(self._fetch, job, peer, fit)
        if fit:
            await self._table.merge(job, list(fit.values()))
        return await self._table.exists(job)

    async def _fetch(self, job: str, peer: str, fit: dict[str, SignedEntry]) -> None:
        try:
            data = await self._network.request(peer, FETCH, codec.encode(FetchRequest(jobs=(job,))), timeout=self._settings.timeout)
            answer = codec.decode(data, FetchAnswer)
        except (NetworkError, codec.CodecError):
            return
        for found in answer.jobs:
            if found.job == job:
                fit.update((e.id, e) for e in self._fit(job, found.entries))

    def _fit(self, job: str, entries: Sequence[SignedEntry]) -> list[SignedEntry]:
        fit: list[SignedEntry] = []
        for entry in entries:
            try:
                if check_entry(entry, self._verify).job == job:
                    fit.append(entry)
            except EntryRefused as e:
                log.warning("records.entry_refused", job=job, reason=str(e))
        return fit
