"""What a node takes from the snapshots of others when it is new, or was away. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from dimnode.core.records_sync import heirs


class Take(Enum):
    NOW = "now"
    """Something may be done about it: it is here in another state, was this node's, or is unfinished and this node's to hold."""
    LATER = "later"
    """To be held, and answered about."""
    NO = "no"


@dataclass(frozen=True, slots=True)
class Told:
    """What a seat says of a job."""

    job: str
    digest: bytes
    finished: bool
    owner: str
    blocks: bool
    """The record names blocks."""


@dataclass(frozen=True, slots=True)
class Taker:
    """``members``: nodes that are there and may hold copies. ``owners``: those of them that see to copies of their own jobs."""

    me: str
    eligible: bool
    members: Collection[str]
    owners: Collection[str]
    replicas: int

    def holds(self, told: Told) -> bool:
        """Whether this node shall hold a copy, blocks included: as anti-entropy has it, of a job whose owner is not there."""
        return told.owner not in self.owners and self.me in heirs(told.job, self.members, self.replicas)

    def decide(self, told: Told, mine: bytes | None, active: bool) -> Take:
        """``mine``: digest of this node's copy, None if there is none; ``active``: it is unfinished here.

        What is unfinished is only for its owner and for those who shall hold it; so is what has blocks, for a copy of the record without
        the blocks would pass for a whole one."""
        if mine == told.digest:
            return Take.NO
        if active or mine is not None or told.owner == self.me:
            return Take.NOW
        if self.holds(told):
            return Take.LATER if told.finished else Take.NOW
        return Take.LATER if told.finished and self.eligible and not told.blocks else Take.NO

    def keeps_blocks(self, told: Told) -> bool:
        return told.blocks and (told.owner == self.me or self.holds(told))
