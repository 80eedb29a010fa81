"""What goes into an `dimnode.core.election.Election` and what comes out of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from dimnode.core.election_terms import MAX_LEAP
from dimnode.domain.node import Beat, Seat

Start = Literal["alone", "lan", "join"]
"""Nobody to find; perhaps somebody by mDNS; bootstrap peers or an invite to find."""
ClaimKey = tuple[int, int, str, str]
Reason = Literal["displaced", "pause", "released", "unreached", "clone", "expired"]
"""Why a seat was lost: a rival's claim was higher; this node slept; it gave the seat up; others can be reached by many more;
another node has this node's identity; a majority did not renew the lease (mode ``majority``)."""


@dataclass(frozen=True, slots=True)
class ElectionSettings:
    """Times in seconds."""

    mode: Literal["available", "majority"] = "available"
    orchestrators: int = 3
    """K, the seats of the swarm."""
    spare: int = 3
    """The pool has this many more nodes than there are seats."""
    beat: float = 0.5
    observe: float = 1.0
    """Between the beats of a node outside seats and pool, at the least."""
    observe_rate: float = 200.0
    """Observers' beats per second and seat in the whole swarm: with N nodes each waits N / this."""
    suspicion: float = 2.0
    disconnect_grace: float = 0.75
    pause: float = 2.0
    """A longer gap between two ticks means that this node slept."""
    step: float = 1.0
    """Between the claims of ranks that have no vacancy of their own."""
    lan_wait: float = 2.0
    join_wait: float = 10.0
    contact_wait: float = 1.0
    """After the first two-way contact, before claiming."""
    probe: float = 2.0
    """Between beats to a pool member that does not answer."""
    forget: float = 60.0
    """After this long a silent peer is forgotten."""
    released: float = 60.0
    """After a release no seat is claimed for this long: longer than a stop may take; a node that released because it
    could not serve tries again."""
    support_kept: float = 5.0
    """A holder's support falls to its live set of now when it was not that large for this long."""
    unreached: float = 6.0
    """A holder that can be reached by less than half as many as a candidate gives way after this long."""
    quarantine: float = 10.0
    """No claim for this long after a sign of another node with this node's identity."""
    clone_patience: float = 15.0
    """When such signs go on for this long, the newcomer ends; the other one after three times this."""
    late: float = 5.0
    """Messages of a node's earlier life may arrive until this long after its start."""
    newcomer: float = 30.0
    """A node that meets its twin within this time after its start is the newcomer."""
    max_leap: int = MAX_LEAP
    """A beat whose n is higher than mine by more is refused."""
    max_peers: int = 4096
    allow: frozenset[str] = frozenset()
    """Peers that may hold seats; empty: all eligible ones."""
    lease: float = 3.0
    """Mode ``majority``: a voter grants a seat for so long."""
    renew: float = 0.75
    """A holder asks again so often; candidates look so often."""
    drift: float = 0.05
    """The rates of two clocks differ by less than this share."""
    ask: float = 0.6
    """A candidate that has no majority after this gives its grants back, and waits a random time."""


@dataclass(frozen=True, slots=True)
class PersistTerm:
    """Write ``n`` to disk, then call `Election.persisted`."""

    n: int


@dataclass(frozen=True, slots=True)
class Won:
    seat: Seat


@dataclass(frozen=True, slots=True)
class Lost:
    seat: Seat
    reason: Reason


@dataclass(frozen=True, slots=True)
class SendBeat:
    to: tuple[str, ...]
    beat: Beat


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Another node with my identity speaks (its boot id): a copied disk, or one that was rolled back. What this node
    remembers may be old: it should learn anew from others, and take a new store id."""

    other: str


@dataclass(frozen=True, slots=True)
class Duplicate:
    """It went on: this node has to end."""

    other: str


Action = PersistTerm | Won | Lost | SendBeat | Quarantined | Duplicate


@dataclass(slots=True)
class ElectionStatistics:
    beats: int = 0
    stale: int = 0
    refused: int = 0
    """Beats with an impossible claim or a leaping n, or for which there was no room."""
    clones: int = 0
    """Signs of another node with my identity: somebody copied this node's disk."""


def claim_key(seat: Seat) -> ClaimKey:
    """Of two claims of one seat the higher stays."""
    return (seat.support, seat.n, seat.peer, seat.boot)


@lru_cache(maxsize=16384)
def pool_order(peer: str) -> bytes:
    """The pool is made of the lowest of these."""
    return hashlib.sha256(peer.encode()).digest()
