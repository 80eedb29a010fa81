"""The elector (`dimnode.ports.Elector`) of mode ``majority``: a trio shell around `dimnode.core.election_majority` and, where
this node votes, `dimnode.core.election_voter`.

Polls travel as requests; the answer is the vote. One request per voter is under way at a time; what is said meanwhile
waits, the latest only. A vote that grants leaves when what it promises is on disk.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import structlog
import trio

from dimnode.core.election_majority import MajorityElection
from dimnode.core.election_majority_types import ExchangeLists, MajorityAction, SendPoll, Settled
from dimnode.core.election_types import ElectionSettings, Lost, Won
from dimnode.core.election_voter import Voter
from dimnode.domain import codec
from dimnode.domain.node import Seat
from dimnode.domain.voting import Poll, Promises, Vote
from dimnode.errors import DimError
from dimnode.ports import Clock, Journal, Registry
from dimnode.swarm.elector import KEY as TERM
from dimnode.swarm.elector import ElectorSettings
from dimnode.swarm.electorate import Electorates
from dimnode.swarm.seat_watch import SeatWatch
from p2p.api import Network, NetworkError, RemoteFault

log = structlog.get_logger(__name__)

METHOD = "election/poll"
KEY = "election.promises"
MAX_BYTES = 256 * 1024


class MajorityElector(SeatWatch):
    def __init__(
        self,
        network: Network,
        registry: Registry,
        journal: Journal,
        clock: Clock,
        lists: Electorates,
        election: ElectionSettings | None = None,
        settings: ElectorSettings | None = None,
        *,
        boot: str,
        eligible: bool = True,
        rng: random.Random | None = None,
    ) -> None:
        """``lists`` is opened before `run`."""
        super().__init__()
        self._network = network
        self._registry = registry
        self._journal = journal
        self._clock = clock
        self._lists = lists
        self._settings = settings or ElectorSettings()
        self._rules = s = election or ElectionSettings(mode="majority")
        self._candidate = MajorityElection(
            s, network.peer_id, boot, n=0, now=clock.monotonic(), rng=rng or random.Random(), eligible=eligible  # noqa: S311 - no secret
        )  # fmt: skip
        self._voter: Voter | None = None
        self._saved = 0
        """The revision of the promises on disk."""
        self._saving = trio.Lock()
        self._nursery: trio.Nursery | None = None
        self._waiting: dict[str, Poll | None] = {}
        """Voters with a request under way -> what is to be said next."""
        self._exchanging: set[str] = set()
        self._hurry = trio.Event()
        self._sent = 0
        self._failed = 0
        lists.on_change = self._take_list
        lists.serve()
        network.serve(METHOD, self._serve, self._settings.concurrency)

    # --- dimnode.ports.Elector ------------------------------------------------------------------

    @property
    def boot(self) -> str:
        return self._candidate.boot

    def seats(self) -> tuple[Seat, ...]:
        return self._candidate.seats(self._clock.monotonic())

    def mine(self) -> Seat | None:
        return self._candidate.mine(self._clock.monotonic())

    def term(self) -> int:
        return self._candidate.n

    def advertise(self, grpc: str, local_only: bool) -> None:
        self._candidate.advertise(grpc, local_only)
        self._hasten()

    def tell_load(self, jobs: int) -> None:
        self._candidate.tell_load(jobs)

    async def release(self) -> None:
        with trio.move_on_after(self._settings.release_timeout):
            async with trio.open_nursery() as nursery:
                for action in self._note(self._candidate.release(self._clock.monotonic())):
                    if isinstance(action, SendPoll):
                        for peer in action.to:
                            nursery.start_soon(self._tell, peer, action.poll)
        await trio.lowlevel.checkpoint()

    # --- more -----------------------------------------------------------------------------------

    def sees_majority(self) -> bool:
        """Whether enough voters answered this node lately to elect somebody."""
        return self._candidate.sees_majority(self._clock.monotonic())

    def statistics(self) -> Mapping[str, int]:
        refused = self._candidate.refused + (self._voter.refused if self._voter else 0)
        return {"sent": self._sent, "failed": self._failed, "refused": refused}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Takes part until cancelled. Raises what the journal raises if the promises cannot be read."""
        stored, term = await self._journal.get(KEY), await self._journal.get(TERM)
        promises = codec.decode(stored, Promises) if stored else None
        voter = Voter(self._rules, self._network.peer_id, promises, self._clock.monotonic())
        voter.n = self._candidate.n = max(voter.n, int(term) if term else 0)
        self._voter = voter
        self._take_list()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await self._tick_loop(nursery)
            finally:
                self._nursery = None

    # --- inside

    def _take_list(self) -> None:
        lists = self._lists
        if lists.listed is not None and self._voter is not None:
            self._candidate.electorate(lists.listed, settled=lists.settled)
            self._voter.electorate(lists.listed, settled=lists.settled)
            self._hasten()

    async def _tick_loop(self, nursery: trio.Nursery) -> None:
        while True:
            self._candidate.members(len(self._registry.nodes()))
            if self._lists.listed is None:
                self._seek_list(nursery)
            self._do(nursery, self._candidate.tick(self._clock.monotonic()))
            self._look()
            with trio.move_on_after(self._pause()):
                await self._hurry.wait()
            self._hurry = trio.Event()

    def _pause(self) -> float:
        """Until the next tick: no later than the end of the lease, so that a seat that is lost is left at once."""
        pause = self._rules.renew / 3
        expires = self._candidate.expires
        return pause if expires is None else max(0.0, min(pause, expires - self._clock.monotonic()))

    def _seek_list(self, nursery: trio.Nursery) -> None:
        for peer in sorted(self._network.peers()):
            self._exchange(nursery, peer)

    def _exchange(self, nursery: trio.Nursery, peer: str) -> None:
        if peer not in self._exchanging and len(self._exchanging) < self._settings.concurrency:
            self._exchanging.add(peer)
            nursery.start_soon(self._exchange_once, peer)

    async def _exchange_once(self, peer: str) -> None:
        try:
            await self._lists.exchange(peer)
        finally:
            self._exchanging.discard(peer)

    def _hasten(self) -> None:
        if self._candidate.urgent:
            self._hurry.set()

    def _do(self, nursery: trio.Nursery, actions: list[MajorityAction]) -> None:
        for action in self._note(actions):
            match action:
                case SendPoll(to, poll):
                    for peer in to:
                        if peer in self._waiting:
                            self._waiting[peer] = poll
                        else:
                            self._waiting[peer] = None
                            nursery.start_soon(self._tell_in_turn, peer, poll)
                case ExchangeLists(peer):
                    self._exchange(nursery, peer)
                case Settled(version):
                    nursery.start_soon(self._settle, version)
                case Won() | Lost():
                    pass

    def _note(self, actions: list[MajorityAction]) -> list[MajorityAction]:
        for action in actions:
            match action:
                case Won(seat):
                    log.info("seat won", seat=seat.seat, term=seat.n)
                case Lost(seat, reason):
                    log.info("seat lost", seat=seat.seat, term=seat.n, reason=reason)
                case SendPoll() | ExchangeLists() | Settled():
                    continue
            self._look()
            self._wake()
        return actions

    async def _settle(self, version: int) -> None:
        try:
            await self._lists.settle(version)
        except DimError as e:
            log.warning("electorate.not_stored", error=str(e))

    # --- asking voters

    async def _tell_in_turn(self, peer: str, poll: Poll) -> None:
        try:
            while True:
                await self._tell(peer, poll)
                waiting = self._waiting[peer]
                if waiting is None:
                    return
                poll, self._waiting[peer] = waiting, None
        finally:
            del self._waiting[peer]

    async def _tell(self, peer: str, poll: Poll) -> None:
        self._sent += 1
        try:
            if peer == self._network.peer_id:
                vote = await self._vote(poll)
            else:
                answer = await self._network.request(peer, METHOD, codec.encode(poll), timeout=self._settings.request_timeout)
                vote = codec.decode(answer, Vote) if len(answer) <= MAX_BYTES else None
        except (NetworkError, codec.CodecError, DimError):
            self._failed += 1
            return
        if vote is None or vote.voter != peer:
            self._candidate.refused += 1
            return
        actions = self._candidate.on_vote(vote, self._clock.monotonic())
        if self._nursery is not None:
            self._do(self._nursery, actions)
        self._look()
        self._hasten()

    # --- voting

    async def _vote(self, poll: Poll) -> Vote:
        """Raises `DimError` if the promise cannot be stored: then nothing is granted."""
        voter = self._voter
        if voter is None:
            raise RemoteFault("UNAVAILABLE", "the election has not begun here")
        reply = voter.on_poll(poll, self._clock.monotonic())
        if reply.revision > self._saved:
            async with self._saving:
                if reply.revision > self._saved:
                    revision, promises = voter.revision, voter.promises()
                    await self._journal.put(TERM, str(promises.n).encode())
                    await self._journal.put(KEY, codec.encode(promises))
                    self._saved = revision
        return reply.vote

    async def _serve(self, peer: str, data: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        try:
            poll = codec.decode(data, Poll) if len(data) <= MAX_BYTES else None
        except codec.CodecError:
            poll = None
        if poll is None or poll.peer != peer:
            raise RemoteFault("INVALID_ARGUMENT", "not a poll of yours")
        try:
            return codec.encode(await self._vote(poll))
        except DimError as e:
            log.warning("promise not stored, nothing granted", error=str(e))
            raise RemoteFault("RESOURCE_EXHAUSTED", "the promise cannot be stored") from e
