"""Tells others by gossip which of this node's jobs changed, and hears the same of theirs.

A hint is small and may be lost; nothing depends on it. Whoever hears that its copy is behind, and finds it still behind a
little later, asks the owner. What bursts of hints lose, anti-entropy finds.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog
import trio

from dimnode.core.hint_index import Heard, HintIndex
from dimnode.core.job_record import DIGEST_BYTES
from dimnode.core.record_gate import EntryRules
from dimnode.domain import codec
from dimnode.errors import DimError
from dimnode.ports import Clock
from dimnode.records.exchange import ExchangeSettings, RecordExchange
from dimnode.records.messages import HINTS, Hint, Hints, JobEntries
from dimnode.records.table import RecordTable
from p2p.api import GossipMessage, Network, NetworkError

log = structlog.get_logger(__name__)
MAX_BYTES = 200 * 1024
"""Of a message; gossip takes 256 KiB."""
MAX_ID = 64
"""Characters of a job id."""


@dataclass(frozen=True, slots=True)
class HintSettings:
    """Times in seconds."""

    interval: float = 0.2
    """What changes within this time goes into one message."""
    most: int = 1_000
    """Hints in one message."""
    inbox: int = 256
    """Messages that wait; the oldest is dropped."""
    index: int = 10_000
    """Jobs whose owners are remembered; who looks for another one asks around."""
    grace: float = 2.0
    """A copy here may be behind what was hinted for so long before the owner is asked."""
    fetch: int = 128
    """Records that are asked of owners in one go."""
    exchange: ExchangeSettings = field(default_factory=ExchangeSettings)


class HintGossip:
    def __init__(
        self,
        network: Network,
        table: RecordTable,
        clock: Clock,
        settings: HintSettings | None = None,
        *,
        rules: EntryRules,
    ) -> None:
        self._network = network
        self._table = table
        self._clock = clock
        self._settings = s = settings or HintSettings()
        self._exchange = RecordExchange(network, table, clock, s.exchange, rules=rules)
        self._index = HintIndex(s.index, s.grace)
        self._inbox = network.subscribe(HINTS, self._validate, s.inbox)
        self._behind = trio.Event()
        self._counts: Counter[str] = Counter()

    def owner_of(self, job: str) -> str | None:
        """The peer that drives, or drove, the job, as far as this node heard."""
        heard = self._index.get(job)
        if self._table.holds(job):
            seen = self._table.view(job)
            if seen.owner is not None and (heard is None or seen.epoch >= heard.epoch):
                return seen.owner.peer
        return heard.owner if heard is not None else None

    def statistics(self) -> Mapping[str, int]:
        """Hints ``told``, ``heard`` (news only), messages ``refused``, jobs ``asked`` of their owners and ``index``: known ones."""
        return dict(self._counts) | {"index": len(self._index)}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell)
            nursery.start_soon(self._catch_up)
            task_status.started()
            async for message in self._inbox:
                self._hear(message)

    # --- telling

    async def _tell(self) -> None:
        version = self._table.version
        while True:
            hints = self._own(self._table.take_dirty())
            for start in range(0, len(hints), self._settings.most):
                await self._publish(hints[start : start + self._settings.most])
            await trio.sleep(self._settings.interval)
            version = await self._table.wait_any(version)

    def _own(self, jobs: set[str]) -> list[Hint]:
        hints: list[Hint] = []
        for job in sorted(jobs):
            if self._table.holds(job):
                seen = self._table.view(job)
                if seen.owner is not None and seen.owner.peer == self._network.peer_id:
                    hints.append(Hint(job=job, digest=self._table.digest(job), epoch=seen.epoch, terminal=seen.terminal))
        return hints

    async def _publish(self, hints: Sequence[Hint]) -> None:
        try:
            await self._network.publish(HINTS, codec.encode(Hints(hints=tuple(hints))))
            self._counts["told"] += len(hints)
        except (NetworkError, ValueError) as e:
            log.debug("hints.not_told", hints=len(hints), reason=str(e))

    # --- hearing

    def _validate(self, author: str, data: bytes) -> bool:
        del author
        fine = len(data) <= MAX_BYTES and (hints := _read(data)) is not None and len(hints) <= self._settings.most
        self._counts["refused"] += not fine
        return fine

    def _hear(self, message: GossipMessage) -> None:
        if message.author == self._network.peer_id:
            return
        now, author = self._clock.monotonic(), sys.intern(message.author)
        for hint in _read(message.data) or ():
            news = self._index.hear(hint.job, Heard(author, hint.epoch, hint.digest, hint.terminal))
            self._counts["heard"] += news
            if not self._table.holds(hint.job):
                continue
            if self._table.digest(hint.job) == hint.digest:
                self._index.agrees(hint.job)
            elif news:
                self._index.differs(hint.job, now)
                self._behind.set()

    # --- catching up

    async def _catch_up(self) -> None:
        while True:
            at = self._index.next_at()
            if at is None:
                self._behind = trio.Event()
                await self._behind.wait()
                continue
            await trio.sleep(max(0.0, at - self._clock.monotonic()))
            for owner, jobs in self._index.take_due(self._clock.monotonic(), self._settings.fetch).items():
                if still := [job for job in jobs if self._is_behind(job)]:
                    await self._ask(owner, still)

    def _is_behind(self, job: str) -> bool:
        heard = self._index.get(job)
        return heard is not None and self._table.holds(job) and self._table.digest(job) != heard.digest

    async def _ask(self, owner: str, jobs: Sequence[str]) -> None:
        self._counts["asked"] += len(jobs)
        try:
            found = await self._exchange.fetch(owner, jobs)
            await self._exchange.take(owner, [JobEntries(job=job, entries=tuple(found[job])) for job in jobs if job in found])
        except (NetworkError, codec.CodecError, DimError) as e:
            log.debug("hints.owner_not_asked", peer=owner, jobs=len(jobs), reason=str(e))


def _read(data: bytes) -> tuple[Hint, ...] | None:
    try:
        hints = codec.decode(data, Hints).hints
    except codec.CodecError:
        return None
    sound = all(0 < len(h.job) <= MAX_ID and len(h.digest) == DIGEST_BYTES and h.epoch >= 0 for h in hints)
    return hints if sound else None
