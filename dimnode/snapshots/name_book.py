"""Which name points where, as far as this node was told: the latest sound word of each node. Pure.

What is refused: a card that its node did not sign, a record that its name's key did not sign, one that is older than what is known,
expired, valid for longer than anybody should promise, or too large.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from dimnode.domain import codec
from dimnode.snapshots.documents import Card, authentic
from dimnode.swarm.heartbeats import Verify
from p2p.ipfs import ipns
from p2p.ipfs.ipns import NameRecord

MAX_BYTES = ipns.MAX_BYTES + 2048
"""Of an announcement."""


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """A node's name, and the IPNS record of that name."""

    card: Card
    record: bytes


class Refused(ValueError):
    """``reason`` is a word for the statistics: oversized, malformed, foreign, forged, expired, older, known."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Named:
    """Where a node's name points now."""

    card: Card
    record: NameRecord

    @property
    def peer(self) -> str:
        return self.card.peer

    @property
    def cid(self) -> str:
        return self.record.cid

    def announcement(self) -> Announcement:
        return Announcement(card=self.card, record=self.record.raw)


@dataclass(frozen=True, slots=True)
class BookSettings:
    most: int = 1_024
    """Nodes whose names are remembered; those that were heard of longest ago are forgotten first."""
    longest: float = 8 * 86_400.0
    """Seconds for which a record may be valid: a week, and a day for clocks that differ."""
    marks: int = 4_096
    """Nodes of which it is remembered, also over a restart, what was believed last."""


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """The latest word of a node that was believed: nothing older is, though the record itself is forgotten."""

    peer: str
    name: str
    since: float
    """Of its card."""
    sequence: int
    expires: float
    heard: float
    """Wall clock of this node. What is older than `BookSettings.longest` has expired, whatever it says."""

    def outdoes(self, card: Card, record: NameRecord | None) -> bool:
        """Whether that is older."""
        if card.name != self.name or card.since != self.since:
            return card.since <= self.since
        return record is not None and (record.sequence, record.expires) < (self.sequence, self.expires)


def decode(data: bytes) -> Announcement:
    """Raises `Refused`."""
    if len(data) > MAX_BYTES:
        raise Refused("oversized")
    try:
        return codec.decode(data, Announcement)
    except codec.CodecError as error:
        raise Refused("malformed", str(error)) from error


def read_record(told: Announcement, now: float, longest: float) -> Named:
    """The record of a card that was checked. Raises `Refused`."""
    try:
        record = ipns.read(told.card.name, told.record)
        _ = record.cid
    except (ipns.BadRecord, ipns.BadName) as error:
        raise Refused("forged", str(error)) from error
    if record.expires <= now or record.expires > now + longest:
        raise Refused("expired")
    return Named(told.card, record)


class NameBook:
    """``swarm``: its name. Times are seconds since the epoch, of this node's wall clock: records say their ends in them."""

    def __init__(self, swarm: str, verify: Verify, settings: BookSettings | None = None) -> None:
        self._swarm = swarm
        self._verify = verify
        self._settings = settings or BookSettings()
        self._known: OrderedDict[str, Named] = OrderedDict()
        self._marks: OrderedDict[str, Mark] = OrderedDict()

    def of(self, peer: str, now: float) -> Named | None:
        """Its latest record, unless that has expired."""
        known = self._known.get(peer)
        return known if known is not None and known.record.expires > now else None

    def peers(self, now: float) -> list[str]:
        """Nodes whose latest record has not expired, those heard of last first."""
        return [peer for peer, known in reversed(self._known.items()) if known.record.expires > now]

    def marks(self) -> list[Mark]:
        return list(self._marks.values())

    def recall(self, marks: Iterable[Mark], now: float) -> None:
        """What was believed before this start. What came meanwhile and is older is not believed any more."""
        for mark in marks:
            known = self._known.get(mark.peer)
            if known is None or mark.outdoes(known.card, known.record):
                self._known.pop(mark.peer, None)
                self._marks[mark.peer] = mark
        self._tidy(now)

    def _tidy(self, now: float) -> None:
        for peer in [p for p, mark in self._marks.items() if mark.heard + self._settings.longest < now]:
            del self._marks[peer]
        while len(self._marks) > self._settings.marks:
            self._marks.popitem(last=False)

    def card(self, peer: str) -> Card | None:
        known = self._known.get(peer)
        return known.card if known is not None else None

    def take(self, told: Announcement, now: float) -> Named:
        """Believes it from now on. Raises `Refused`: ``known`` if it says what is known already. What is cheap to check comes first."""
        if len(told.record) > ipns.MAX_BYTES:
            raise Refused("oversized")
        if told.card.swarm != self._swarm:
            raise Refused("foreign")
        known = self._known.get(told.card.peer)
        if known is not None and told.record == known.record.raw and told.card == known.card:
            raise Refused("known")
        if known is not None and told.card != known.card and told.card.since <= known.card.since:
            raise Refused("older")
        mark = self._marks.get(told.card.peer)
        if mark is not None and mark.outdoes(told.card, None):
            raise Refused("older")
        if (known is None or told.card != known.card) and not authentic(told.card, self._swarm, self._verify):
            raise Refused("forged")
        named = read_record(told, now, self._settings.longest)
        if known is not None and known.card == told.card and not named.record.newer_than(known.record):
            raise Refused("older")
        if mark is not None and mark.outdoes(told.card, named.record):
            raise Refused("older")
        self._known[told.card.peer] = named
        self._mark(named, now)
        self._known.move_to_end(told.card.peer)
        while len(self._known) > self._settings.most:
            self._known.popitem(last=False)
        return named

    def _mark(self, named: Named, now: float) -> None:
        card, record = named.card, named.record
        self._marks[card.peer] = Mark(
            peer=card.peer, name=card.name, since=card.since, sequence=record.sequence, expires=record.expires, heard=now
        )
        self._marks.move_to_end(card.peer)
        if len(self._marks) > self._settings.marks:
            self._tidy(now)


class NameKind:
    """Names as records of the swarm's DHT (`p2p.dht.api.RecordKind`), by the peer id of whose name it is. ``now``: this node's wall clock.

    A record alone does not say whose it is; so what is stored is what is gossiped: the card, and the IPNS record of the card's name."""

    def __init__(self, swarm: str, now: Callable[[], float], verify: Verify, settings: BookSettings | None = None) -> None:
        self._swarm = swarm
        self._now = now
        self._verify = verify
        self._settings = settings or BookSettings()

    def check(self, name: str, value: bytes) -> None:
        """Raises `Refused`. What is cheap to check comes first."""
        told = decode(value)
        if len(told.record) > ipns.MAX_BYTES:
            raise Refused("oversized")
        if told.card.swarm != self._swarm or told.card.peer != name:
            raise Refused("foreign")
        if not authentic(told.card, self._swarm, self._verify):
            raise Refused("forged")
        read_record(told, self._now(), self._settings.longest)

    def newer(self, name: str, value: bytes, than: bytes) -> bool:
        """The later card counts; of one card the newer record."""
        del name
        a, b = decode(value), decode(than)
        if a.card != b.card:
            return a.card.since > b.card.since
        return ipns.read(a.card.name, a.record).newer_than(ipns.read(b.card.name, b.record))
