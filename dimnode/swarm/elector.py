"""The elector (`dimnode.ports.Elector`): a trio shell around `dimnode.core.election`.

Beats travel as requests; the answer is the other side's beat. One request per peer is under way at a time and
nothing queues: a beat that is late is worth nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass

import structlog
import trio

from dimnode.core.election import Election
from dimnode.core.election_types import (
    Action,
    Duplicate,
    ElectionSettings,
    Lost,
    PersistTerm,
    Quarantined,
    SendBeat,
    Start,
    Won,
)
from dimnode.domain import codec
from dimnode.domain.node import Beat, Seat
from dimnode.errors import DimError, FailedPrecondition
from dimnode.ports import Clock, Journal, Registry
from dimnode.swarm.seat_watch import SeatWatch
from p2p.api import Network, NetworkError, RemoteFault

log = structlog.get_logger(__name__)

METHOD = "election/beat"
KEY = "election.n"
BOOTS = "election.boots"
MAX_BYTES = 256 * 1024
_MAX_BOOTS = 16
"""Earlier boot ids kept: late messages of these are no sign of a copied disk."""


@dataclass(frozen=True, slots=True)
class ElectorSettings:
    request_timeout: float = 1.0
    """Seconds for one beat and its answer."""
    release_timeout: float = 1.0
    """Seconds to tell the others that the seat is free."""
    concurrency: int = 256
    """Beats of others answered at once."""


class SwarmElector(SeatWatch):
    def __init__(
        self,
        network: Network,
        registry: Registry,
        journal: Journal,
        clock: Clock,
        election: ElectionSettings | None = None,
        settings: ElectorSettings | None = None,
        *,
        boot: str,
        eligible: bool = True,
        start: Start = "alone",
        on_quarantine: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """``start``: whether there may be others to find, see `dimnode.core.election`. ``on_quarantine`` is called when
        this node's disk turns out to be a copy, or to have been rolled back: learn anew, take a new store id."""
        super().__init__()
        self._network = network
        self._registry = registry
        self._journal = journal
        self._clock = clock
        self._settings = settings or ElectorSettings()
        self._election = Election(
            election or ElectionSettings(), network.peer_id, boot, n=0, now=clock.monotonic(), eligible=eligible, start=start
        )
        self._nursery: trio.Nursery | None = None
        self._in_flight: set[str] = set()
        self._kept = 0
        self._keeping = trio.Lock()
        self._on_quarantine = on_quarantine
        self._hurry = trio.Event()
        self._sent = 0
        self._failed = 0
        self._peer_events = network.peer_events()
        network.serve(METHOD, self._serve, self._settings.concurrency)

    # --- dimnode.ports.Elector ------------------------------------------------------------------

    @property
    def boot(self) -> str:
        return self._election.boot

    def seats(self) -> tuple[Seat, ...]:
        return self._election.seats(self._clock.monotonic())

    def mine(self) -> Seat | None:
        return self._election.mine()

    def term(self) -> int:
        return self._election.n

    def advertise(self, grpc: str, local_only: bool) -> None:
        self._election.advertise(grpc, local_only)

    def tell_load(self, jobs: int) -> None:
        self._election.tell_load(jobs)

    async def release(self) -> None:
        actions = self._election.release(self._clock.monotonic())
        self._note(actions)
        with trio.move_on_after(self._settings.release_timeout):
            async with trio.open_nursery() as nursery:
                for action in actions:
                    if isinstance(action, SendBeat):
                        for peer in action.to:
                            nursery.start_soon(self._tell, peer, codec.encode(action.beat))
        await trio.lowlevel.checkpoint()

    # --- more -----------------------------------------------------------------------------------

    def statistics(self) -> Mapping[str, int]:
        return {"sent": self._sent, "failed": self._failed, **asdict(self._election.statistics)}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Takes part until cancelled. Raises what the journal raises if the persisted term cannot be read, and
        `FailedPrecondition` when another running node has this node's identity."""
        stored = await self._journal.get(KEY)
        boots = await self._remember_boot()
        self._kept = int(stored) if stored else 0
        self._election.resume(self._kept, self._clock.monotonic(), boots)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._watch_connections)
            task_status.started()
            try:
                await self._tick_loop(nursery)
            finally:
                self._nursery = None

    def saw_boot(self, boot: str) -> None:
        """An authentic heartbeat of this node's own id came with this boot id."""
        self._election.on_boot(boot, self._clock.monotonic())
        self._hasten()

    # --- inside ---------------------------------------------------------------------------------

    async def _remember_boot(self) -> list[str]:
        """Boot ids of earlier starts; this one joins them."""
        stored = await self._journal.get(BOOTS)
        boots = stored.decode().split() if stored else []
        try:
            await self._journal.put(BOOTS, " ".join([*boots, self.boot][-_MAX_BOOTS:]).encode())
        except DimError as e:
            log.warning("boot id not stored", error=str(e))
        return boots

    async def _tick_loop(self, nursery: trio.Nursery) -> None:
        while True:
            views = self._registry.nodes()
            self._election.members(v.heartbeat.peer_id for v in views if v.state in ("alive", "suspect") and v.heartbeat.eligible)
            self._do(nursery, self._election.tick(self._clock.monotonic()))
            if self._election.n > self._kept and not self._keeping.locked():
                nursery.start_soon(self._keep_heard)
            self._look()
            with trio.move_on_after(self._election.settings.beat / 2):
                await self._hurry.wait()
            self._hurry = trio.Event()

    def _do(self, nursery: trio.Nursery, actions: list[Action]) -> None:
        self._note(actions)
        for action in actions:
            match action:
                case PersistTerm(n):
                    nursery.start_soon(self._persist, nursery, n)
                case SendBeat(to, beat):
                    data = codec.encode(beat)
                    for peer in to:
                        if peer not in self._in_flight:
                            self._in_flight.add(peer)
                            nursery.start_soon(self._tell_once, peer, data)
                case Quarantined(other):
                    log.error("another node speaks with this node's identity: no seat, learning anew", boot=other)
                    if self._on_quarantine is not None:
                        nursery.start_soon(self._on_quarantine)
                case Duplicate():
                    raise FailedPrecondition(
                        "another running node has this node's identity",
                        hint="A home was copied: stop one of the two nodes and give it a home of its own (`dimnode init` in an empty one).",
                    )
                case Won() | Lost():
                    pass

    def _hasten(self) -> None:
        if self._election.urgent:
            self._hurry.set()

    def _note(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Won(seat):
                    log.info("seat won", seat=seat.seat, term=seat.n)
                case Lost(seat, reason):
                    log.info("seat lost", seat=seat.seat, term=seat.n, reason=reason)
                case PersistTerm() | SendBeat() | Quarantined() | Duplicate():
                    continue
            self._look()
            self._wake()

    async def _persist(self, nursery: trio.Nursery, n: int) -> None:
        try:
            await self._keep(n)
        except DimError as e:
            log.warning("term not stored, no seat claimed", term=n, error=str(e))
            self._election.not_persisted(self._clock.monotonic())
            return
        self._do(nursery, self._election.persisted(n, self._clock.monotonic()))

    async def _keep_heard(self) -> None:
        """Terms of others, too: after a power cut of all, whoever comes up first claims with a higher one."""
        try:
            await self._keep(self._election.n)
        except DimError as e:
            log.debug("heard term not stored", error=str(e))

    async def _keep(self, n: int) -> None:
        """One write at a time: what is on disk never falls."""
        async with self._keeping:
            if n > self._kept:
                await self._journal.put(KEY, str(n).encode())
                self._kept = n

    async def _tell_once(self, peer: str, data: bytes) -> None:
        try:
            await self._tell(peer, data)
        finally:
            self._in_flight.discard(peer)

    async def _tell(self, peer: str, data: bytes) -> None:
        self._sent += 1
        try:
            answer = await self._network.request(peer, METHOD, data, timeout=self._settings.request_timeout)
        except NetworkError:
            self._failed += 1
            return
        self._hear(peer, answer)

    def _hear(self, peer: str, data: bytes) -> Beat | None:
        """None if it was no beat of this peer; stale ones are beats, too."""
        try:
            beat = codec.decode(data, Beat) if len(data) <= MAX_BYTES else None
        except codec.CodecError:
            beat = None
        if beat is None or beat.peer != peer:
            self._election.statistics.refused += 1
            return None
        self._election.on_beat(beat, self._clock.monotonic())
        self._hasten()
        return beat

    async def _serve(self, peer: str, data: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        if self._nursery is None:
            raise RemoteFault("UNAVAILABLE", "the election has not begun here")
        beat = self._hear(peer, data)
        if beat is None:
            raise RemoteFault("INVALID_ARGUMENT", "not a beat of yours")
        return codec.encode(self._election.answer(beat, self._clock.monotonic()))

    async def _watch_connections(self) -> None:
        async for event in self._peer_events:
            if not event.connected:
                self._election.on_disconnect(event.peer, self._clock.monotonic())
