"""What nodes say to each other about job records, over direct requests. Gossip only carries `Hint`."""

from __future__ import annotations

from typing import Literal

import msgspec

from dimnode.domain.record import Ballot, SignedEntry
from dimnode.domain.task import TaskReport

STORE = "records/store"
"""`StoreRequest` -> `StoreAnswer`: an owner copies what it decides."""
COMPARE = "records/compare"
"""`CompareRequest` -> `CompareAnswer`: anti-entropy."""
FETCH = "records/fetch"
"""`FetchRequest` -> `FetchAnswer`: whole records."""
BLOCKS = "records/blocks"
"""`BlocksRequest` -> `BlocksAnswer`: keep a job's blocks (inputs, results)."""
OFFER = "records/offer"
"""`OfferRequest` -> `OfferAnswer`: somebody holds unfinished jobs that no live seat drives; asked of seat holders."""
ATTEMPTS = "records/attempts"
"""`AttemptsRequest` -> `AttemptsAnswer`: what a node did for jobs that somebody takes over."""
RESULTS = "records/results"
"""`ResultsRequest` -> `ResultsAnswer`: finished attempts that nobody fetched; asked of seat holders."""
HINTS = "dim/jobs/1"
"""Gossip topic: `Hints`."""


class JobEntries(msgspec.Struct, frozen=True, kw_only=True):
    job: str
    entries: tuple[SignedEntry, ...]
    new: bool = False
    """In a `StoreRequest`: the job is being accepted. Then it is fenced by any claim that somebody else made, lower ones
    too: a client that sent its job to two seats gets one job, driven by the first."""


class StoreRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Each job once."""

    jobs: tuple[JobEntries, ...]
    merge: bool = False
    """Parts of records by somebody who holds copies, not decisions of an owner: all is taken and nothing fenced."""


class StoreResult(msgspec.Struct, frozen=True, kw_only=True):
    """``stored``: fsynced; ``entries`` are final outcomes that the sender did not have, if there are any. ``fenced``: a higher claim
    is known here; ``entries`` prove it. ``incomplete``: the job's core is not here, send the whole record. ``refused``: entries
    that may not enter any record, or no custody. ``full``: no room on this disk."""

    job: str
    status: Literal["stored", "fenced", "incomplete", "refused", "full"]
    ballot: Ballot | None = None
    entries: tuple[SignedEntry, ...] = ()
    reason: str = ""


class StoreAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """In the order of the request."""

    results: tuple[StoreResult, ...]


class CompareItem(msgspec.Struct, frozen=True, kw_only=True):
    job: str
    digest: bytes
    """Of the set of entries: `dimnode.core.job_record.Record.digest`."""
    keep: bool = False
    """The asked node shall hold a copy, if it does not yet."""


class CompareRequest(msgspec.Struct, frozen=True, kw_only=True):
    items: tuple[CompareItem, ...]


class CompareAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``want``: jobs whose records the asked node has not and shall have. ``differ``: of jobs that both hold differently,
    all entries of the asked node. ``more``: such jobs whose entries did not fit: to be fetched."""

    want: tuple[str, ...] = ()
    differ: tuple[JobEntries, ...] = ()
    more: tuple[str, ...] = ()


class FetchRequest(msgspec.Struct, frozen=True, kw_only=True):
    jobs: tuple[str, ...]
    after: str = ""
    """Of the first job only entries with ids above this one."""


class FetchAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Those that are held here, as far as they fit into one answer, entries by id. ``cut``: the last one is not whole, and
    whatever was asked for after it was not looked at."""

    jobs: tuple[JobEntries, ...]
    cut: bool = False


MAX_BLOCKS = 1_024
"""That one `BlocksRequest` names at most."""


class BlocksRequest(msgspec.Struct, frozen=True, kw_only=True):
    job: str
    cids: tuple[str, ...]
    providers: tuple[str, ...]


class BlocksAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Those that are now durable and pinned on the asked node."""

    kept: tuple[str, ...]


class OfferRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Whole records."""

    jobs: tuple[JobEntries, ...]
    give_away: bool = False
    """The asker owns these jobs, holds its seat still, and is about to leave."""


class OfferAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``taken``: the seat holder has them durably and drives them. ``known``: it knows better (a higher claim, an end)."""

    taken: tuple[str, ...] = ()
    known: tuple[JobEntries, ...] = ()


class AttemptsRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs with the ballots under which the asker drives them: the fence is raised to it."""

    jobs: tuple[tuple[str, Ballot], ...]


class AttemptsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """In the order of the request; None where the asker is fenced."""

    reports: tuple[TaskReport | None, ...]


class ResultsRequest(msgspec.Struct, frozen=True, kw_only=True):
    entries: tuple[SignedEntry, ...]


class ResultsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Entry ids that the seat holder has durably, or has no use for (the job ended)."""

    received: tuple[str, ...]


class Hint(msgspec.Struct, frozen=True, kw_only=True):
    """A job's record changed at its owner."""

    job: str
    digest: bytes
    epoch: int
    terminal: bool


class Hints(msgspec.Struct, frozen=True, kw_only=True):
    """Of one owner: the author of the message."""

    hints: tuple[Hint, ...]
