"""What candidates and voters tell each other in election mode ``majority``, and the list of who votes."""

from __future__ import annotations

import msgspec

from dimnode.domain.node import Seat


class Electorate(msgspec.Struct, frozen=True, kw_only=True):
    """Who votes. Version v + 1 differs from v by one voter."""

    swarm: str
    version: int
    voters: tuple[str, ...]
    """Peer ids, sorted."""
    previous: tuple[str, ...] = ()
    """The voters of the version before: a majority of them has to store this one before it acts. Empty for version 1."""
    operator: str
    """The peer id of the operator's key: it contains the public key that signs every version."""


class SignedElectorate(msgspec.Struct, frozen=True, kw_only=True):
    """As it travels and is stored: any node may pass it on."""

    payload: bytes
    """Canonical DAG-CBOR of an `Electorate`."""
    signature: bytes


class Poll(msgspec.Struct, frozen=True, kw_only=True):
    """From a node to each voter. It says all that its sender asks for: a voter that gets it takes back whatever it granted
    the sender for another seat, or for the same if none is asked for."""

    peer: str
    boot: str
    seq: int
    """Grows with each poll of one boot; the answer names it."""
    n: int
    """The highest term that the sender knows."""
    version: int
    """Of the sender's electorate."""
    tag: str
    """Tells two lists of one version apart."""
    ask: Seat | None = None
    """The seat, with its term, that the sender stands for or holds."""
    ballot: int = 0
    """What voters promise: the term of ``ask``, or a higher one under which a holder renews where its term was passed by."""
    held: bool = False
    """The sender holds it; else it stands for it."""
    standing: bool = False
    """The sender would take a seat."""


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """One seat as one voter sees it."""

    seat: Seat
    left: float
    """Seconds, by the voter's clock."""
    held: bool = False
    """The candidate said that a majority granted it."""


class Vote(msgspec.Struct, frozen=True, kw_only=True):
    """A voter's answer to a poll."""

    voter: str
    seq: int
    """Of the poll."""
    granted: bool
    """The seat that was asked for is the sender's for one lease from when the poll was answered."""
    n: int
    version: int
    tag: str
    settled: bool = False
    """The voter knows that this version acts."""
    leases: tuple[Lease, ...] = ()
    standing: tuple[str, ...] = ()
    """Peers that would take a seat and were heard lately, the first in line only."""


class Promises(msgspec.Struct, frozen=True, kw_only=True):
    """What a voter must never forget: one candidate for each (seat, term)."""

    n: int
    """The highest term seen."""
    seats: tuple[Seat, ...] = ()
    """The latest grant of each seat: seat, ballot (as ``n``), peer and boot count."""
