"""What nobody takes care of is brought to the seats: unfinished jobs without a driver, results that nobody fetched.

Every node does this for what it holds, again and again, so no job is an orphan for longer than a holder reaches no seat.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog
import trio

from dimnode.core.job_record import EntryRefused, Record, check_room
from dimnode.core.job_view import JobView
from dimnode.core.offers import Offering, OfferSettings, Turn
from dimnode.core.record_gate import EntryRules
from dimnode.domain import codec
from dimnode.domain.record import Claim, Core, SignedEntry
from dimnode.errors import DimError
from dimnode.ports import Clock, Elector
from dimnode.records.links import in_parts
from dimnode.records.messages import OFFER, RESULTS, JobEntries, OfferAnswer, OfferRequest, ResultsAnswer, ResultsRequest
from dimnode.records.table import RecordTable
from p2p.api import Network, NetworkError

log = structlog.get_logger(__name__)


class Driver(Protocol):
    """The orchestrator of a term, as far as other nodes' jobs go."""

    async def take_over(self, jobs: Sequence[str], handed_by: str = "") -> set[str]:
        """Those of these jobs, whose records are here, that are driven here afterwards."""
        ...

    def owned(self) -> list[str]:
        """Unfinished jobs that this node owns."""
        ...


class KeptResults(Protocol):
    """The part of `dimnode.ports.TaskService` that keeps what nobody fetched."""

    def unfetched(self) -> tuple[SignedEntry, ...]: ...

    def fetched(self, entry_ids: Collection[str]) -> None: ...

    async def wait_unfetched(self, since: int) -> int: ...


@dataclass(frozen=True, slots=True)
class OffersSettings:
    """Times in seconds."""

    jobs: OfferSettings = field(default_factory=OfferSettings)
    handing_over: OfferSettings = field(default_factory=lambda: OfferSettings(settle=0.0))
    """Of a node that leaves."""
    results: OfferSettings = field(default_factory=lambda: OfferSettings(settle=0.0, pause_most=30.0))
    timeout: float = 2.0
    """For one answer. Longer than a turn: a seat that is slow may still take what it was offered."""
    look: float = 1.0
    """Between two looks at all records while the seats stay the same; a change of seats is looked at at once."""
    hand_over_look: float = 0.05
    """The same while this node hands over."""
    request_bytes: int = 4 * 1024 * 1024
    """Entries in one request; a record that is larger goes in parts."""


class JobOffers:
    """Offers the jobs that are here and that no live seat drives; hands this node's own jobs over before it leaves."""

    def __init__(
        self,
        network: Network,
        table: RecordTable,
        elector: Elector,
        clock: Clock,
        driver: Callable[[], Driver | None],
        settings: OffersSettings | None = None,
        *,
        rules: EntryRules,
    ) -> None:
        """``driver``: the orchestrator while one is alive here."""
        self._network = network
        self._table = table
        self._elector = elector
        self._clock = clock
        self._driver = driver
        self._settings = settings or OffersSettings()
        self._rules = rules

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            rounds = _Rounds(Offering(self._settings.jobs), self._clock, self._offer, self._seats, self._size)
            nursery.start_soon(self._follow_seats, rounds)
            nursery.start_soon(self._follow_records, rounds)
            task_status.started()
            await rounds.run(self._nobodys)

    async def hand_over(self, timeout: float) -> int:
        """Offers the jobs that this node owns to the other seats until they have them all, at most for ``timeout`` seconds.
        Until one of them claims a job this node goes on driving it. Returns how many remain; all, if there is no other seat."""
        rounds = _Rounds(Offering(self._settings.handing_over), self._clock, self._give_away, self._others, self._size)
        with trio.move_on_after(timeout) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rounds.run, self._own)
                while self._own() and self._others():
                    await trio.sleep(self._settings.hand_over_look)
                    rounds.wake()
                nursery.cancel_scope.cancel()
        left = len(self._own())
        log.info("jobs.handed_over", left=left, in_time=not scope.cancelled_caught)
        return left

    # --- what to offer

    def _own(self) -> list[str]:
        driver = self._driver()
        return driver.owned() if driver is not None else []

    def _nobodys(self) -> list[str]:
        live = {(s.peer, s.boot) for s in self._elector.seats()}
        return [v.job for v in self._table.active_views() if is_nobodys(v, live)]

    def _seats(self) -> set[str]:
        """Those that can be asked: this node only once its orchestrator is there."""
        return {s.peer for s in self._elector.seats() if s.peer != self._network.peer_id or self._driver() is not None}

    def _others(self) -> set[str]:
        return self._seats() - {self._network.peer_id}

    def _size(self, job: str) -> int:
        return self._table.record(job).size if self._table.holds(job) else 0

    async def _follow_seats(self, rounds: _Rounds) -> None:
        version = self._elector.changed()
        while True:
            version = await self._elector.wait_changed(version)
            rounds.wake()

    async def _follow_records(self, rounds: _Rounds) -> None:
        version = 0
        while True:
            version = await self._table.wait_any(version)
            await trio.sleep(self._settings.look)
            rounds.wake()

    # --- offering

    async def _give_away(self, turn: Turn) -> set[str]:
        return await self._offer(turn, give_away=True)

    async def _offer(self, turn: Turn, *, give_away: bool = False) -> set[str]:
        """Those that are taken care of."""
        jobs = [j for j in turn.keys if self._table.holds(j)]
        if turn.peer == self._network.peer_id:
            driver = self._driver()
            return await driver.take_over(jobs) if driver is not None else set()
        done: set[str] = set()
        for request in self._requests(jobs, give_away=give_away):
            answer = await _ask(self._network, turn.peer, OFFER, request, OfferAnswer, self._settings.timeout)
            if answer is None:
                break
            done.update(answer.taken)
            for known in answer.known:
                await self._take_in(known)
                done.add(known.job)
        log.info("jobs.offered", seat=turn.peer, jobs=len(jobs), taken=len(done))
        return done

    def _requests(self, jobs: Iterable[str], *, give_away: bool) -> Iterable[OfferRequest]:
        batch: list[JobEntries] = []
        size = 0
        for job in jobs:
            if not self._table.holds(job):
                continue  # it ended, and was let go, while others were asked
            for part, more in in_parts(_core_last(self._table.record(job)), self._settings.request_bytes):
                if batch and size + more > self._settings.request_bytes:
                    yield OfferRequest(jobs=tuple(batch), give_away=give_away)
                    batch, size = [], 0
                batch.append(JobEntries(job=job, entries=tuple(part)))
                size += more
        if batch:
            yield OfferRequest(jobs=tuple(batch), give_away=give_away)

    async def _take_in(self, known: JobEntries) -> None:
        """What the seat knows better: a claim, an end."""
        try:
            if self._table.holds(known.job):
                new = [e for e in known.entries if e.id not in self._table.record(known.job)]
                if all(self._rules.check(e).job == known.job for e in new):
                    check_room(self._table.record(known.job), new)
                    await self._table.merge(known.job, new)
        except (EntryRefused, DimError) as e:
            log.warning("jobs.answer_refused", job=known.job, reason=str(e))


class ResultOffers:
    """Offers what this node finished and no caller fetched."""

    def __init__(self, network: Network, elector: Elector, clock: Clock, kept: KeptResults, settings: OffersSettings | None = None) -> None:
        self._network = network
        self._elector = elector
        self._clock = clock
        self._kept = kept
        self._settings = settings or OffersSettings()
        self._entries: dict[str, SignedEntry] = {}
        """As of the last look."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            rounds = _Rounds(Offering(self._settings.results), self._clock, self._offer, self._seats, self._size)
            nursery.start_soon(self._follow, rounds)
            nursery.start_soon(self._follow_seats, rounds)
            task_status.started()
            await rounds.run(self._unfetched)

    def _seats(self) -> set[str]:
        return {s.peer for s in self._elector.seats()}

    def _unfetched(self) -> list[str]:
        self._entries = {e.id: e for e in self._kept.unfetched()}
        return list(self._entries)

    def _size(self, entry_id: str) -> int:
        return len(self._entries[entry_id].payload)

    async def _follow(self, rounds: _Rounds) -> None:
        version = 0
        while True:
            version = await self._kept.wait_unfetched(version)
            rounds.wake()

    async def _follow_seats(self, rounds: _Rounds) -> None:
        version = self._elector.changed()
        while True:
            version = await self._elector.wait_changed(version)
            rounds.wake()

    async def _offer(self, turn: Turn) -> set[str]:
        """Those that are taken care of; also such as were fetched between the planning of this turn and now."""
        here = {k: self._entries[k] for k in turn.keys if k in self._entries}
        received = set[str]()
        if here:
            answer = await _ask(
                self._network, turn.peer, RESULTS, ResultsRequest(entries=tuple(here.values())), ResultsAnswer, self._settings.timeout
            )
            received = here.keys() & set(answer.received) if answer is not None else set[str]()
            self._kept.fetched(received)
        return received | (set(turn.keys) - here.keys())


class _Rounds:
    """Carries out the turns of an `Offering`: one request to a seat at a time."""

    def __init__(
        self,
        offering: Offering,
        clock: Clock,
        offer: Callable[[Turn], Any],
        seats: Callable[[], set[str]],
        size: Callable[[str], int],
    ) -> None:
        self._offering = offering
        self._clock = clock
        self._offer = offer
        self._seats = seats
        self._size = size
        self._busy: set[str] = set()
        self._wake = trio.Event()

    def wake(self) -> None:
        self._wake.set()

    async def run(self, keys: Callable[[], Sequence[str]]) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                self._wake = trio.Event()
                now = self._clock.monotonic()
                self._offering.see(keys(), now)
                for turn in self._offering.due(self._seats(), now, self._busy, self._size):
                    self._busy.add(turn.peer)
                    nursery.start_soon(self._turn, turn)
                at = self._offering.next_at()
                pause = float("inf") if at is None else at - now
                # What is due already waits for a seat, or for one that is busy: that will wake this.
                with trio.move_on_after(pause if pause > 0 else float("inf")):
                    await self._wake.wait()

    async def _turn(self, turn: Turn) -> None:
        try:
            done = await self._offer(turn)
            self._offering.declined([k for k in turn.keys if k not in done], self._seats(), self._clock.monotonic())
        finally:
            self._busy.discard(turn.peer)
            self.wake()


def is_nobodys(seen: JobView, live: Collection[tuple[str, str]]) -> bool:
    """Whether it was accepted (claimed once) and its owner holds no seat. ``live``: (peer, boot) of the seats."""
    return seen.core is not None and seen.owner is not None and not seen.terminal and (seen.owner.peer, seen.owner.boot) not in live


def _core_last(record: Record) -> Sequence[SignedEntry]:
    """If it goes in parts, who gets it can do nothing with it before he has all."""
    return sorted(record.entries(), key=lambda e: isinstance(e.body(), (Core, Claim)))


async def _ask(network: Network, peer: str, method: str, request: Any, kind: Any, timeout: float) -> Any:
    """None if there was no answer."""
    try:
        return codec.decode(await network.request(peer, method, codec.encode(request), timeout=timeout), kind)
    except (NetworkError, codec.CodecError) as e:
        log.info("offer.not_answered", seat=peer, method=method, reason=str(e))
        return None
