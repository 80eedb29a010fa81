"""Names on the network: announced by gossip, asked for by request, and in the swarm's DHT.

Gossip is a hint that a name points elsewhere now. Whoever needs to know asks: the node itself, then others who may have heard of
it, then the DHT; what was heard before serves while it is valid and nobody answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import structlog
import trio

from dimnode.domain import codec
from dimnode.errors import DimError
from dimnode.ports import Clock, Journal, Registry, Signer
from dimnode.snapshots.documents import Card, sign_card
from dimnode.snapshots.name_book import Announcement, BookSettings, Mark, NameBook, Named, Refused, decode
from dimnode.swarm.heartbeats import Verify
from p2p.api import Network, NetworkError, RemoteFault
from p2p.dht.api import Dht
from p2p.identity import Identity
from p2p.identity import verify as verify_with_peer_id
from p2p.ipfs import ipns

log = structlog.get_logger(__name__)
TOPIC = "dim/names/1"
"""Gossip: `Announcement`."""
METHOD = "names/get"
"""`NamesRequest` -> `NamesAnswer`."""
NAMESPACE = "names"
"""Of the DHT: `NameKind`."""
SEQUENCE = "names.sequence"
SINCE = "names.since"
MARKS = "names.believed"


class NamesRequest(msgspec.Struct, frozen=True, kw_only=True):
    peers: tuple[str, ...]
    """Whose names; at most `NamesSettings.most_asked`."""


class NamesAnswer(msgspec.Struct, frozen=True, kw_only=True):
    names: tuple[Announcement, ...]
    """Those that are known."""


class Outlet(Protocol):
    """Somebody else's way of publishing content under a name: a Kubo daemon."""

    async def publish(self, cid: str, lifetime: float, ttl: float) -> str:
        """Returns the name. Raises `ContentError`."""
        ...

    def generation(self) -> int:
        """Another number once what was published may be gone."""
        ...


@dataclass(frozen=True, slots=True)
class NamesSettings:
    validity: float = 86_400.0
    """Seconds for which a record is valid (``ipfs.name_validity``)."""
    ttl: float = 30.0
    """Seconds for which one may be used without asking its node for a newer one."""
    timeout: float = 5.0
    """Seconds for one node's answer."""
    at_once: int = 8
    """Nodes asked at the same time."""
    others: int = 3
    """Nodes asked for the name of one that does not answer."""
    repeat: float = 3_600.0
    """Seconds after which the own record is put into the DHT again (``dht.reprovide``)."""
    retry: float = 60.0
    """The same when nobody took it."""
    most_asked: int = 256
    inbox: int = 256
    mark_pause: float = 1.0
    """Least seconds between two writes of what was believed last."""
    book: BookSettings = field(default_factory=BookSettings)


class SwarmNames:
    """``key``: what this node publishes under; its name is bound to the node by a card that ``signer`` signs."""

    def __init__(
        self,
        network: Network,
        registry: Registry,
        journal: Journal,
        clock: Clock,
        settings: NamesSettings | None = None,
        *,
        swarm: str,
        signer: Signer,
        key: Identity,
        verify: Verify = verify_with_peer_id,
        dht: Dht | None = None,
    ) -> None:
        self._network = network
        self._dht = dht
        self._published = trio.Event()
        self._believed = trio.Event()
        self._registry = registry
        self._journal = journal
        self._clock = clock
        self._settings = s = settings or NamesSettings()
        self._swarm = swarm
        self._signer = signer
        self._key = key
        self._book = NameBook(swarm, verify, s.book)
        self._card: Card | None = None
        self._counts: Counter[str] = Counter()
        self._heard: dict[str, float] = {}
        """Peer -> when its own word was had last (monotonic)."""
        self._inbox = network.subscribe(TOPIC, self._validate, s.inbox)
        network.serve(METHOD, self._serve)

    @property
    def name(self) -> str:
        """Under which this node publishes."""
        return ipns.name_of(self._key.peer_id)

    def statistics(self) -> Mapping[str, int]:
        """``published``; of announcements ``taken``, and by reason what was refused; ``asked`` requests."""
        return dict(self._counts)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. The validator has taken what comes out of the queue."""
        await self._recall()
        async with trio.open_nursery() as nursery:
            if self._dht is not None:
                nursery.start_soon(self._store_in, self._dht)
            nursery.start_soon(self._remember)
            task_status.started()
            async for _ in self._inbox:
                pass

    async def _recall(self) -> None:
        """What this node believed before its start: nothing older is believed now."""
        try:
            marks = codec.decode(await self._journal.get(MARKS) or codec.encode([]), list[Mark])
        except codec.CodecError as error:
            log.warning("names.marks_unreadable", reason=str(error))
            marks = []
        self._book.recall(marks, self._clock.wall())

    async def _remember(self) -> None:
        """Writes down what is believed, soon after it changed. A full disk is tried again with the next change, or in a while."""
        pause = float("inf")
        while True:
            with trio.move_on_after(pause):
                await self._believed.wait()
            self._believed = trio.Event()
            try:
                await self._journal.put(MARKS, codec.encode(self._book.marks()))
                pause = float("inf")
            except DimError as error:
                log.warning("names.not_remembered", reason=error.message)
                pause = self._settings.retry
            await trio.sleep(self._settings.mark_pause)

    async def _store_in(self, dht: Dht) -> None:
        """The own record, whenever there is a new one, and again and again: others keep it in memory only."""
        pause = float("inf")
        while True:
            with trio.move_on_after(pause):
                await self._published.wait()
            self._published = trio.Event()
            named = self._book.of(self._network.peer_id, self._clock.wall())
            if named is None:
                continue
            try:
                taken = await dht.put(NAMESPACE, named.peer, codec.encode(named.announcement()))
            except ValueError as error:  # somebody has a newer one: this node's key was used elsewhere
                log.warning("names.not_stored", reason=str(error))
                taken = 0
            self._counts["stored"] += taken > 0
            pause = self._settings.repeat if taken else self._settings.retry

    # --- publishing

    async def card(self) -> Card:
        """Made once for a key: whoever has lost the key of before has a later one."""
        if self._card is None:
            known = await self._journal.get(SINCE)
            name, _, since = (known or b"").decode().partition(" ")
            if name != self.name:
                since = repr(self._clock.wall())
                await self._journal.put(SINCE, f"{self.name} {since}".encode())
            self._card = sign_card(self._signer, self._swarm, self.name, float(since))
        return self._card

    async def publish(self, cid: str) -> Named:
        """Points this node's name to the content, first durably here. What does not reach others now they ask for, or hear the
        next time. Raises `DimError` if the journal cannot be written."""
        s, now = self._settings, self._clock.wall()
        sequence = max(int(await self._journal.get(SEQUENCE) or 0) + 1, int(now))  # also after the loss of the journal
        await self._journal.put(SEQUENCE, str(sequence).encode())
        record = ipns.make(self._key, cid, sequence=sequence, expires=now + s.validity, ttl=s.ttl)
        named = self._take(Announcement(card=await self.card(), record=record.raw)) or Named(await self.card(), record)
        self._counts["published"] += 1
        self._published.set()
        try:
            await self._network.publish(TOPIC, codec.encode(named.announcement()))
        except (NetworkError, ValueError) as error:
            log.info("names.not_gossiped", reason=str(error))
        return named

    # --- listening

    def _validate(self, author: str, data: bytes) -> bool:
        try:
            told = decode(data)
            if told.card.peer != author:
                raise Refused("forged")
            self._book.take(told, self._clock.wall())
            self._believed.set()
        except Refused as refused:
            self._counts[refused.reason] += 1
            return False
        self._counts["taken"] += 1
        self._heard[author] = self._clock.monotonic()
        return True

    def _take(self, told: Announcement) -> Named | None:
        """What the book has afterwards."""
        now = self._clock.wall()
        try:
            self._book.take(told, now)
            self._believed.set()
            self._counts["taken"] += 1
        except Refused as refused:
            self._counts[refused.reason] += 1
        return self._book.of(told.card.peer, now)

    async def _serve(self, peer: str, data: bytes) -> bytes:
        del peer
        await trio.lowlevel.checkpoint()
        try:
            asked = codec.decode(data, NamesRequest).peers
        except codec.CodecError:
            raise RemoteFault("INVALID_ARGUMENT", "the request cannot be read") from None
        if len(asked) > self._settings.most_asked:
            raise RemoteFault("INVALID_ARGUMENT", f"a request names at most {self._settings.most_asked} nodes")
        now = self._clock.wall()
        found = [named.announcement() for p in dict.fromkeys(asked) if (named := self._book.of(p, now)) is not None]
        return codec.encode(NamesAnswer(names=tuple(found)))

    # --- asking

    async def resolve(self, peers: Collection[str]) -> dict[str, Named]:
        """Where the names of these nodes point now, as far as anybody knows."""
        limit = trio.CapacityLimiter(self._settings.at_once)
        async with trio.open_nursery() as nursery:
            for peer in dict.fromkeys(peers):
                if not self._fresh(peer):
                    nursery.start_soon(self._look_for, peer, limit)
        now = self._clock.wall()
        return {p: named for p in peers if (named := self._book.of(p, now)) is not None}

    def heard_of(self) -> list[str]:
        """Nodes whose names are known, those heard of last first."""
        return self._book.peers(self._clock.wall())

    def _fresh(self, peer: str) -> bool:
        if peer == self._network.peer_id:
            return True
        known = self._book.of(peer, self._clock.wall())
        age = self._clock.monotonic() - self._heard.get(peer, float("-inf"))
        return known is not None and age < min(known.record.ttl, self._settings.ttl)

    async def _look_for(self, peer: str, limit: trio.CapacityLimiter) -> None:
        async with limit:
            if await self._ask(peer, (peer,)):
                self._heard[peer] = self._clock.monotonic()
                return
            others = [v.heartbeat.peer_id for v in self._registry.alive()]
            for other in [p for p in others if p not in (peer, self._network.peer_id)][: self._settings.others]:
                if await self._ask(other, (peer,)):
                    return
            if self._dht is not None and (data := await self._dht.get(NAMESPACE, peer)) is not None:
                self._counts["read_from_dht"] += 1
                self._take(decode(data))

    async def _ask(self, peer: str, about: Sequence[str]) -> bool:
        """Whether the node knew the names."""
        self._counts["asked"] += 1
        try:
            request = codec.encode(NamesRequest(peers=tuple(about)))
            answer = codec.decode(await self._network.request(peer, METHOD, request, timeout=self._settings.timeout), NamesAnswer)
        except (NetworkError, codec.CodecError) as error:
            log.debug("names.not_told", peer=peer, reason=str(error))
            return False
        told = {a.card.peer: a for a in answer.names if a.card.peer in about}
        return all(self._take(a) is not None for a in told.values()) and len(told) == len(about)
