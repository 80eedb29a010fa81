"""What comes out of `dimnode.core.election_majority` and of a voter, beside wins and losses."""

from __future__ import annotations

from dataclasses import dataclass

from dimnode.core.election_types import Lost, Won
from dimnode.domain.voting import Poll, Vote


@dataclass(frozen=True, slots=True)
class SendPoll:
    to: tuple[str, ...]
    poll: Poll


@dataclass(frozen=True, slots=True)
class ExchangeLists:
    """That voter has another electorate: the newer one goes to whoever has the older."""

    peer: str


@dataclass(frozen=True, slots=True)
class Settled:
    """A majority of the version before stored the electorate: it acts. To be remembered."""

    version: int


@dataclass(frozen=True, slots=True)
class Reply:
    vote: Vote
    revision: int = 0
    """The vote goes out once the voter's promises are on disk as of this revision or a later one."""


MajorityAction = Won | Lost | SendPoll | ExchangeLists | Settled
