"""Decides for each private block whether a peer may have it: by what is known here, else by asking those who drive the job.

A node that only ran a task has no record of the job. When another node asks it for what the task put out, it asks the owner it ran the
task for, and the holders of seats (one of them may have taken the job over): the question costs one round, once for each peer and job.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass

import msgspec
import structlog
import trio

from dimnode.core.participants import NO_JOB, Participants, masters_in, named_in
from dimnode.domain import codec
from dimnode.errors import DimError, NotFound
from dimnode.ports import Clock, Elector, Journal
from dimnode.records.needed import bodies_of
from dimnode.records.table import RecordTable
from p2p.api import Network, NetworkError, RemoteFault

log = structlog.get_logger(__name__)
TAKES_PART = "records/takes-part"
"""`PartQuestion` -> `PartAnswer`: does a node take part in a job?"""


class PartQuestion(msgspec.Struct, frozen=True, kw_only=True):
    job: str
    peer: str


class PartAnswer(msgspec.Struct, frozen=True, kw_only=True):
    takes_part: bool


@dataclass(frozen=True, slots=True)
class ParticipationSettings:
    remembered: int = 16_384
    """Pairs of node and job."""
    pause: float = 0.5
    """Seconds until it is asked again about a node that takes no part."""
    timeout: float = 2.0
    """Seconds for the answer; until then the peer's other wants wait. Shorter than `p2p.ipfs.settings.ExchangeSettings.hedge`."""
    patience: float = 1.0
    """And so long the peer may still turn out to hold a seat."""
    look: float = 0.1
    asked: int = 8
    """Nodes that are asked about one job."""
    at_once: int = 16
    """Questions under way, and answered; beyond that the answer is no."""
    records: int = 256
    """Records whose participants are remembered."""


class Participation:
    """Serves from its making on. `may_serve` is a `p2p.ipfs.traffic.MayServe`."""

    def __init__(
        self,
        network: Network,
        table: RecordTable,
        journal: Journal,
        elector: Elector,
        clock: Clock,
        settings: ParticipationSettings | None = None,
        *,
        shall_keep: Callable[[str, str], bool] = lambda _job, _peer: False,
    ) -> None:
        """``shall_keep``: whether a node shall hold a copy of a job's record, with its blocks: then it takes part, whoever brings it the record."""
        self._network = network
        self._table = table
        self._journal = journal
        self._elector = elector
        self._clock = clock
        self._shall_keep = shall_keep
        self._settings = s = settings or ParticipationSettings()
        self._known = Participants(s.remembered, s.pause)
        self._named: OrderedDict[str, tuple[int, frozenset[str]]] = OrderedDict()
        self._asking = trio.Semaphore(s.at_once)
        self._counts: Counter[str] = Counter()
        network.serve(TAKES_PART, self._serve, s.at_once)

    def statistics(self) -> Mapping[str, int]:
        """``asked``: questions to others; ``turned_away``: how often a peer was given nothing."""
        return dict(self._counts)

    def let_in(self, peer: str, job: str) -> None:
        """The peer is about to be asked to keep blocks of the job."""
        self._known.let_in(peer, job)

    async def may_serve(self, peer: str, audiences: Collection[str]) -> bool:
        if self._holds_seat(peer):
            return True
        for job in audiences:
            if not job.startswith(NO_JOB) and await self._takes_part(peer, job):
                return True
        self._counts["turned_away"] += 1
        return False

    def _holds_seat(self, peer: str) -> bool:
        return any(seat.peer == peer for seat in self._elector.seats())

    async def _takes_part(self, peer: str, job: str) -> bool:
        if await self._known_here(peer, job):
            return True
        if not self._known.worth_asking(peer, job, self._clock.monotonic()) or self._asking.value == 0:
            return False
        if await self._keeps(peer, job):
            return True
        async with self._asking:
            answers = await self._ask_all(peer, job)
            if any(answers) or await self._gets_seat(peer):
                return True
        if answers:
            self._known.turned_away(peer, job, self._clock.monotonic())
        return False

    async def _gets_seat(self, peer: str) -> bool:
        """Whoever has just won a seat may ask before this node has heard of that."""
        with trio.move_on_after(self._settings.patience):
            while not self._holds_seat(peer):  # noqa: ASYNC110 - seats change seldom, and this is looked at for a moment only
                await trio.sleep(self._settings.look)
        return self._holds_seat(peer)

    async def _known_here(self, peer: str, job: str) -> bool:
        """By what this node knows without asking anybody."""
        return self._known.knows(peer, job) or await self._let_in_if(peer, job, self._is_named)

    async def _keeps(self, peer: str, job: str) -> bool:
        """Whether it shall have a copy of a record that is here."""
        return self._shall_keep(job, peer) and await self._let_in_if(peer, job, self._is_here)

    async def _is_named(self, peer: str, job: str) -> bool:
        return peer in await self._participants(job)

    async def _is_here(self, peer: str, job: str) -> bool:
        del peer
        return await self._table.exists(job)

    async def _let_in_if(self, peer: str, job: str, look: Callable[[str, str], Awaitable[bool]]) -> bool:
        try:
            found = await look(peer, job)
        except DimError as e:
            log.warning("blocks.record_unreadable", job=job, reason=e.message)
            return False
        if found:
            self._known.let_in(peer, job)
        return found

    async def _participants(self, job: str) -> frozenset[str]:
        """By the record; if there is none here, those for whom this node ran tasks."""
        try:
            record = await self._table.find(job)
        except NotFound:
            return masters_in(bodies_of(await self._journal.load(job)))
        version, named = self._named.get(job, (-1, frozenset[str]()))
        if version != record.version:
            named = named_in(body for _, body in record.items())
            self._named[job] = (record.version, named)
            self._named.move_to_end(job)
            if len(self._named) > self._settings.records:
                self._named.popitem(last=False)
        return named

    # --- asking

    async def _ask_all(self, peer: str, job: str) -> list[bool]:
        """The first yes counts."""
        answers: list[bool] = []
        async with trio.open_nursery() as nursery:
            for who in await self._who_knows(job, peer):
                nursery.start_soon(self._ask, who, PartQuestion(job=job, peer=peer), answers, nursery.cancel_scope)
        if any(answers):
            self._known.let_in(peer, job)
        return answers

    async def _who_knows(self, job: str, peer: str) -> list[str]:
        try:
            named = sorted(await self._participants(job))
        except DimError as e:
            log.warning("blocks.record_unreadable", job=job, reason=e.message)
            named = list[str]()
        seats = [s.peer for s in self._elector.seats()]
        return [p for p in dict.fromkeys([*seats, *named]) if p not in (peer, self._network.peer_id)][: self._settings.asked]

    async def _ask(self, who: str, question: PartQuestion, answers: list[bool], scope: trio.CancelScope) -> None:
        self._counts["asked"] += 1
        try:
            data = await self._network.request(who, TAKES_PART, codec.encode(question), timeout=self._settings.timeout)
            answers.append(codec.decode(data, PartAnswer).takes_part)
        except (NetworkError, codec.CodecError) as e:
            log.debug("blocks.nobody_said", job=question.job, asked=who, reason=str(e))
            return
        if answers[-1]:
            scope.cancel()

    async def _serve(self, peer: str, data: bytes) -> bytes:
        del peer
        try:
            question = codec.decode(data, PartQuestion)
        except codec.CodecError as e:
            raise RemoteFault("INVALID_ARGUMENT", "the request cannot be read") from e
        who, job = question.peer, question.job
        takes_part = self._holds_seat(who) or await self._known_here(who, job) or await self._keeps(who, job)
        return codec.encode(PartAnswer(takes_part=takes_part))


class Door:
    """Stands before the content store from its opening on; until the node knows its records, what is private stays here."""

    def __init__(self) -> None:
        self.participation: Participation | None = None

    async def may_serve(self, peer: str, audiences: Collection[str]) -> bool:
        if self.participation is None:
            await trio.lowlevel.checkpoint()
            return False
        return await self.participation.may_serve(peer, audiences)
