"""Nodes that decide about their private blocks: the real table, journal in memory and `Participation`, on any network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from dimnode.clock import TrioClock
from dimnode.domain.node import Seat
from dimnode.domain.record import SignedEntry
from dimnode.records.participation import Door, Participation, ParticipationSettings
from dimnode.records.table import RecordTable
from dimnode.state.memory_journal import MemoryDisk, MemoryJournal
from p2p.api import Network
from tests.support.entries import JOB, FakeSigner


class Seated:
    """Says who holds seats."""

    def __init__(self) -> None:
        self.holders: Sequence[str] = ()

    def seats(self) -> tuple[Seat, ...]:
        return tuple(Seat(seat=n, n=1, peer=peer, boot="b") for n, peer in enumerate(self.holders))


class Doorkeeper:
    """``may_serve`` is what a content store is given."""

    def __init__(self, network: Network, settings: ParticipationSettings | None = None, door: Door | None = None) -> None:
        self.seated = Seated()
        self.journal = MemoryJournal(MemoryDisk())
        self.table = RecordTable(self.journal, FakeSigner(network.peer_id))
        self.shall_keep: set[tuple[str, str]] = set()
        """(job, node)"""
        self.participation = Participation(
            network, self.table, self.journal, cast(Any, self.seated), TrioClock(), settings,
            shall_keep=lambda job, peer: (job, peer) in self.shall_keep,
        )  # fmt: skip
        if door is not None:
            door.participation = self.participation

    async def knows(self, *entries: SignedEntry, job: str = JOB) -> None:
        """The record, or a part of one: what this node signed itself."""
        await self.journal.append(entries)
        await self.table.exists(job)

    async def serves(self, peer: str, *audiences: str) -> bool:
        return await self.participation.may_serve(peer, audiences or (JOB,))

    @property
    def asked(self) -> int:
        return self.participation.statistics().get("asked", 0)
