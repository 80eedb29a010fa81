"""Which name points where, as far as this node was told: the latest sound word of each node. Pure.

What is refused: a card that its node did not sign, a record that its name's key did not sign, one that is older than what is known,
expired, valid for longer than anybody should promise, or too large.
"""

from __future__ import annotations

from collections import OrderedDict
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


class NameBook:
    """``swarm``: its name. Times are seconds since the epoch, of this node's wall clock: records say their ends in them."""

    def __init__(self, swarm: str, verify: Verify, settings: BookSettings | None = None) -> None:
        self._swarm = swarm
        self._verify = verify
        self._settings = settings or BookSettings()
        self._known: OrderedDict[str, Named] = OrderedDict()

    def of(self, peer: str, now: float) -> Named | None:
        """Its latest record, unless that has expired."""
        known = self._known.get(peer)
        return known if known is not None and known.record.expires > now else None

    def card(self, peer: str) -> Card | None:
        known = self._known.get(peer)
        return known.card if known is not None else None

    def decode(self, data: bytes) -> Announcement:
        """Raises `Refused`."""
        if len(data) > MAX_BYTES:
            raise Refused("oversized")
        try:
            return codec.decode(data, Announcement)
        except codec.CodecError as error:
            raise Refused("malformed", str(error)) from error

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
        if (known is None or told.card != known.card) and not authentic(told.card, self._swarm, self._verify):
            raise Refused("forged")
        try:
            record = ipns.read(told.card.name, told.record)
            _ = record.cid
        except (ipns.BadRecord, ipns.BadName) as error:
            raise Refused("forged", str(error)) from error
        if record.expires <= now or record.expires > now + self._settings.longest:
            raise Refused("expired")
        if known is not None and known.card == told.card and not record.newer_than(known.record):
            raise Refused("older")
        named = self._known[told.card.peer] = Named(told.card, record)
        self._known.move_to_end(told.card.peer)
        while len(self._known) > self._settings.most:
            self._known.popitem(last=False)
        return named
