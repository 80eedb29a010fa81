"""What a node takes from the snapshots of others when it is new, or was away. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from dimnode.core.records_sync import heirs


class Take(Enum):
    NOW = "now"
    """Something may be done about it: it is unfinished on one side, or was this node's."""
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

        A finished job with blocks is only for those who shall hold it: a copy of the record without the blocks would pass for a whole one."""
        if mine == told.digest:
            return Take.NO
        if not told.finished or active or mine is not None or told.owner == self.me:
            return Take.NOW
        if self.holds(told) or (self.eligible and not told.blocks):
            return Take.LATER
        return Take.NO

    def keeps_blocks(self, told: Told) -> bool:
        return told.blocks and (told.owner == self.me or self.holds(told))
