"""The rules of the electorate: who decides, and how the list of voters changes.

The list is explicit and versioned; the operator's key signs every version. It changes by one voter at a time, so any majority
of v and any majority of v + 1 have a voter in common, who keeps what it granted when it takes the new list. Version v + 1
acts once a majority of v stored it, and the next version is signed only after that and after one lease: at no moment do
two leases of one seat rest on lists that are two versions apart. (One server at a time, as in D. Ongaro's Raft
dissertation, section 4.1.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from dimnode.domain import codec
from dimnode.domain.voting import Electorate

MAX_VOTERS = 63


class ElectorateError(ValueError):
    """The list cannot be one, or cannot follow on another; the message says why."""


def first(swarm: str, voters: Iterable[str], operator: str) -> Electorate:
    """Version 1. Raises `ElectorateError`."""
    made = Electorate(swarm=swarm, version=1, voters=tuple(sorted(set(voters))), operator=operator)
    check(made)
    return made


def with_voter(known: Electorate, peer: str) -> Electorate:
    """The next version. Raises `ElectorateError`."""
    if peer in known.voters:
        raise ElectorateError("it is a voter already")
    return _next(known, (*known.voters, peer))


def without_voter(known: Electorate, peer: str) -> Electorate:
    """The next version. Raises `ElectorateError`."""
    if peer not in known.voters:
        raise ElectorateError("it is no voter")
    return _next(known, [p for p in known.voters if p != peer])


def _next(known: Electorate, voters: Iterable[str]) -> Electorate:
    made = Electorate(
        swarm=known.swarm, version=known.version + 1, voters=tuple(sorted(voters)), previous=known.voters, operator=known.operator
    )
    check(made)
    return made


def check(made: Electorate) -> None:
    """Raises `ElectorateError` for what no operator makes."""
    if not 1 <= len(made.voters) <= MAX_VOTERS:
        raise ElectorateError(f"an electorate has 1 to {MAX_VOTERS} voters")
    if list(made.voters) != sorted(set(made.voters)) or list(made.previous) != sorted(set(made.previous)):
        raise ElectorateError("voters are listed once each, in order")
    if made.version < 1 or (made.version == 1) != (not made.previous):
        raise ElectorateError("version 1 follows on nothing, and every other on one before")
    if made.previous and len(set(made.voters) ^ set(made.previous)) != 1:
        raise ElectorateError("an electorate changes by one voter at a time")


def replaces(known: Electorate | None, offered: Electorate) -> bool:
    """Whether a node that has ``known`` takes ``offered``. Of two lists of one version it keeps the first."""
    return known is None or offered.version > known.version


def tag(listed: Electorate) -> str:
    """Tells two lists of one version apart."""
    return codec.digest(codec.encode(listed))[:16]


def majority(voters: Collection[str], yes: Collection[str]) -> bool:
    return 2 * len(frozenset(voters).intersection(yes)) > len(voters)


def quorum(listed: Electorate, yes: Collection[str], *, settled: bool) -> bool:
    """Whether these voters decide. As long as it is not known that the version acts, most of the one before are needed, too."""
    return majority(listed.voters, yes) and (settled or not listed.previous or majority(listed.previous, yes))


def others_needed(voters: Collection[str], me: str) -> int:
    """How many voters beside this node make a majority with it."""
    return len(voters) // 2 + 1 - (me in voters) if voters else 0
