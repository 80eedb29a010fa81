"""A job's record: a grow-only set of signed entries. Merge is union, then compaction.

Union is commutative, associative and idempotent, so copies that diverged in any way end up equal.
Compaction keeps that, because what it keeps depends on the set alone: for any sets a and b,
``compact(compact(a) | b) == compact(a | b)``. Only the outcomes that no later claim can undo compact:

- *completed* and *cancelled*: the bulk (plan, assignments, attempts, voids, seals, checkpoints) goes. Core, claims, status
  times and all outcomes stay, for they are what a listing shows; results and receipts are in the outcome's
  result document;
- *deleted*: everything goes but the outcome itself, since the spec and the results are data.

Entries of unknown kinds are carried along until the job is deleted.

Two copies are equal if their digests are: the XOR of the ids of what is kept, so that it is made entry by entry and
in any order. Nobody signs or trusts it; two unequal copies with one digest would only be repaired later, by their next change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dimnode.core.entry_batches import Verify, holds
from dimnode.domain import codec
from dimnode.domain.ids import job_id
from dimnode.domain.record import (
    SIGNING_PREFIX,
    Assign,
    Attempt,
    Body,
    Checkpoint,
    Claim,
    Core,
    OutcomeEntry,
    PlanEntry,
    SealEntry,
    SignedEntry,
    Unknown,
    Void,
)

MAX_ENTRY_BYTES = 4 * 1024 * 1024
"""Largest payload of an entry: a spec or a result document may be inline, up to ``jobs.max_spec_bytes``
in JSON, plus its overhead."""
MAX_RECORD_ENTRIES = 50_000
MAX_RECORD_BYTES = 128 * 1024 * 1024
"""Of payloads. Bounds of what one copy takes from others; merging itself knows none, or its order would matter."""
ROOM_TO_END = 1_000
"""Claims and outcomes that a full record still takes, so that it can be taken over and end."""
MAX_BALLOT_N = 1 << 53

RANK = {"expired": 1, "failed": 2, "completed": 3, "cancelled": 4, "deleted": 5}
"""Which outcome wins: deleted > cancelled > completed > failed > expired."""
FINAL = frozenset({"completed", "cancelled", "deleted"})
"""Outcomes that count from any ballot, and compact."""

_BULK = (PlanEntry, Assign, Attempt, Void, SealEntry, Checkpoint)
BULK_KINDS = frozenset({"plan", "assign", "attempt", "void", "seal", "checkpoint"})
"""What completed and cancelled records do not keep."""
DIGEST_BYTES = 8

OutcomeKey = tuple[int, int, str, str, str]


class EntryRefused(ValueError):
    """An entry that may not enter any record; the text says why."""


class RecordFull(EntryRefused):
    """The record has as many entries, or as many bytes, as a copy may have."""


def check_entry(entry: SignedEntry, verify: Verify, max_bytes: int = MAX_ENTRY_BYTES, *, swarm: str | None = None) -> Body | Unknown:
    """The decoded body of an entry that is fit to be stored.

    Checks, the cheap ones first: size, schema, that a decision is by the peer of its ballot and an attempt
    by its executor, that a core's job id is made of what it says (given the name of the ``swarm``), signature.
    Raises `EntryRefused`.
    """
    if len(entry.payload) > max_bytes:
        raise EntryRefused(f"entry of {len(entry.payload)} bytes is larger than {max_bytes}")
    try:
        body = entry.body()
    except codec.CodecError as e:
        raise EntryRefused(f"not an entry: {e}") from e
    if not body.job:
        raise EntryRefused("entry names no job")
    _check_author(body, entry.author)
    if swarm is not None and isinstance(body, Core) and body.job != job_id(swarm, body.principal, body.nonce, codec.digest(body.spec)):
        raise EntryRefused(f"the core of {body.job} is another job's")
    if not holds(entry.author, SIGNING_PREFIX + entry.payload, entry.signature, verify):
        raise EntryRefused(f"signature is not {entry.author}'s")
    return body


def _check_author(body: Body | Unknown, author: str) -> None:
    match body:
        case Core() | Unknown():
            return
        case Attempt(node=node):
            if author != node:
                raise EntryRefused(f"attempt of {node} is written by {author}")
            if body.receipt is not None and body.receipt.node != author:
                raise EntryRefused(f"receipt of {body.receipt.node} in an attempt of {author}")
        case _:
            if author != body.ballot.peer:
                raise EntryRefused(f"decision under {body.ballot.peer}'s ballot is written by {author}")
    if not 0 <= body.ballot.n < MAX_BALLOT_N:
        raise EntryRefused(f"ballot number {body.ballot.n} is out of range")


def check_room(record: Record | None, entries: Iterable[SignedEntry]) -> None:
    """Whether a copy (None: not there yet) may take these entries, known ones left aside. Raises `RecordFull`."""
    new = [e for e in entries if record is None or e.id not in record]
    ending = sum(isinstance(e.body(), (Claim, OutcomeEntry)) for e in new)
    have, size = (len(record), record.size) if record is not None else (0, 0)
    most = MAX_RECORD_ENTRIES + (ROOM_TO_END if ending == len(new) else 0)
    if have + len(new) > most or (ending < len(new) and size + sum(len(e.payload) for e in new) > MAX_RECORD_BYTES):
        raise RecordFull(f"a record has at most {MAX_RECORD_ENTRIES} entries and {MAX_RECORD_BYTES} bytes")


def id_bits(entry_id: str) -> int:
    """What an entry adds to its record's digest."""
    return int(entry_id[: 2 * DIGEST_BYTES], 16)


class Record:
    """The entries of one job, each decoded once.

    Adding never fails for lack of order: any entry of the job may come at any time, any number of times.
    Entries are trusted to have passed `check_entry`.
    """

    __slots__ = ("_bodies", "_bytes", "_digest", "_entries", "_final", "_version", "job", "view_cache")

    def __init__(self, job: str, entries: Iterable[SignedEntry] = ()) -> None:
        self.job = job
        self._entries: dict[str, SignedEntry] = {}
        self._bodies: dict[str, Body | Unknown] = {}
        self._final = 0
        """Rank of the best final outcome so far, 0 if there is none."""
        self._version = 0
        self._digest = 0
        self._bytes = 0
        self.view_cache: tuple[int, object] | None = None
        """For `dimnode.core.job_view.view`: the version it was made from, and the view."""
        for entry in entries:
            self.add(entry)

    @property
    def final(self) -> bool:
        """Whether it has an outcome that no later claim can undo."""
        return self._final > 0

    @property
    def version(self) -> int:
        """Grows with every change of this copy; says nothing about other copies."""
        return self._version

    @property
    def digest(self) -> bytes:
        """Of the set of entries, whatever their order: equal copies have equal ones."""
        return self._digest.to_bytes(DIGEST_BYTES, "big")

    @property
    def size(self) -> int:
        """Bytes of the entries' payloads."""
        return self._bytes

    def add(self, entry: SignedEntry, body: Body | Unknown | None = None) -> bool:
        """Whether the record changed. ``body`` saves decoding where the caller has it. Raises
        `EntryRefused` if the entry is another job's, `codec.CodecError` if it is none."""
        key = entry.id
        if key in self._entries:
            return False
        body = body if body is not None else entry.body()
        if body.job != self.job:
            raise EntryRefused(f"entry of {body.job} in the record of {self.job}")
        if not self.keeps(body):
            return False
        self._entries[key] = entry
        self._bodies[key] = body
        self._digest ^= id_bits(key)
        self._bytes += len(entry.payload)
        self._version += 1
        if isinstance(body, OutcomeEntry) and body.status in FINAL:
            self._compact(RANK[body.status])
            return key in self._entries
        return True

    def merge(self, other: Record) -> tuple[str, ...]:
        """Take in another copy of the same job; returns the ids that are new here."""
        new = [key for key, entry in other._entries.items() if self.add(entry, other._bodies[key])]
        return tuple(key for key in new if key in self._entries)

    def copy(self) -> Record:
        twin = Record(self.job)
        twin._entries, twin._bodies = dict(self._entries), dict(self._bodies)
        twin._final, twin._version, twin._digest, twin._bytes = self._final, self._version, self._digest, self._bytes
        return twin

    def get(self, entry_id: str) -> SignedEntry | None:
        return self._entries.get(entry_id)

    def body(self, entry_id: str) -> Body | Unknown | None:
        return self._bodies.get(entry_id)

    def entries(self) -> tuple[SignedEntry, ...]:
        """In order of arrival here."""
        return tuple(self._entries.values())

    def ids(self) -> frozenset[str]:
        return frozenset(self._entries)

    def items(self) -> Iterator[tuple[str, Body | Unknown]]:
        return iter(self._bodies.items())

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, entry_id: object) -> bool:
        return entry_id in self._entries

    def __eq__(self, other: object) -> bool:
        """Equal sets of entries; the order of arrival does not count."""
        return isinstance(other, Record) and self.job == other.job and self._entries.keys() == other._entries.keys()

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def keeps(self, body: Body | Unknown) -> bool:
        """Whether an entry like this would stay, as far as compaction goes."""
        if self._final == RANK["deleted"]:
            return isinstance(body, OutcomeEntry) and body.status == "deleted"
        return not (self._final and isinstance(body, _BULK))

    def _compact(self, rank: int) -> None:
        self._final = max(self._final, rank)
        if self._final == RANK["deleted"]:
            best = min((k for k, b in self._bodies.items() if isinstance(b, OutcomeEntry)), key=lambda k: outcome_key(k, self._outcome(k)))
            drop = [k for k in self._bodies if k != best]
        else:
            drop = [k for k, b in self._bodies.items() if isinstance(b, _BULK)]
        for key in drop:
            self._digest ^= id_bits(key)
            self._bytes -= len(self._entries[key].payload)
            del self._entries[key], self._bodies[key]

    def _outcome(self, key: str) -> OutcomeEntry:
        body = self._bodies[key]
        assert isinstance(body, OutcomeEntry)
        return body


def outcome_key(entry_id: str, body: OutcomeEntry) -> OutcomeKey:
    """Sorts outcomes, the winner first: higher rank, then lowest ballot, then lowest entry id."""
    return (-RANK[body.status], body.ballot.n, body.ballot.peer, body.ballot.boot, entry_id)


def merge(a: Record, b: Record) -> Record:
    """The union of two copies, compacted; neither is changed. Raises `ValueError` for two jobs."""
    if a.job != b.job:
        raise ValueError(f"records of {a.job} and {b.job} cannot be merged")
    out = a.copy()
    out.merge(b)
    return out
