"""Entries as rows of the journal's tables: storing them, and what is kept about each job beside them.

The journal compacts as records do (`dimnode.core.job_record`), in the transaction in which the outcome arrives, so that what it
holds, the digest it tells and the record that is made of it always are one set.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

from dimnode.core.job_record import BULK_KINDS, FINAL, RANK, Record, id_bits
from dimnode.domain import codec
from dimnode.domain.record import Ballot, Claim, OutcomeEntry, SignedEntry, kind_of
from dimnode.errors import InvalidArgument

DELETED = RANK["deleted"]
_MARKS = ",".join("?" * len(BULK_KINDS))
_DROP_BULK = f"DELETE FROM entries WHERE job = ? AND kind IN ({_MARKS})"  # noqa: S608 - marks only


@dataclass(slots=True)
class Row:
    """An entry as it is stored."""

    job: str
    id: str
    kind: str
    entry: SignedEntry
    claim: Ballot | None = None
    ended: Ballot | None = None
    """Of an outcome that a later claim can undo."""
    final: int = 0
    """Rank of an outcome that compacts."""


def row(entry: SignedEntry) -> Row:
    """Raises `InvalidArgument` if the payload is not an entry."""
    try:
        body = entry.body()
    except codec.CodecError as e:
        raise InvalidArgument("this is not a record entry") from e
    if not body.job:
        raise InvalidArgument("record entry has no job")
    match body:
        case Claim():
            return Row(body.job, entry.id, "claim", entry, claim=body.ballot)
        case OutcomeEntry() if body.status in FINAL:
            return Row(body.job, entry.id, "outcome", entry, final=RANK[body.status])
        case OutcomeEntry():
            return Row(body.job, entry.id, "outcome", entry, ended=body.ballot)
        case _:
            return Row(body.job, entry.id, kind_of(body), entry)


def ballot_key(ballot: Ballot) -> bytes:
    """Sorts bytewise as ballots do."""
    return max(0, ballot.n).to_bytes(8, "big") + ballot.peer.encode() + b"\0" + ballot.boot.encode()


def ballot_of(key: bytes) -> Ballot:
    peer, _, boot = key[8:].partition(b"\0")
    return Ballot(int.from_bytes(key[:8], "big"), peer.decode(), boot.decode())


def best_key(ballots: Iterable[Ballot | None]) -> bytes:
    """Of the highest one; empty if there is none."""
    return max((ballot_key(b) for b in ballots if b is not None), default=b"")


def signed(bits: int) -> int:
    """Eight bytes as SQLite's integers hold them."""
    return bits - (1 << 64) if bits >> 63 else bits


def compact(connection: sqlite3.Connection, job: str, final: int) -> None:
    """Removes what a record with an outcome of this rank (0: none that compacts) does not keep; puts the digest right."""
    if final == DELETED:
        entries = _entries(connection, job)
        kept = Record(job, entries).ids()
        connection.executemany("DELETE FROM entries WHERE job = ? AND id = ?", [(job, e.id) for e in entries if e.id not in kept])
        connection.execute("UPDATE jobs SET core = NULL WHERE job = ?", (job,))
    elif final:
        connection.execute(_DROP_BULK, (job, *sorted(BULK_KINDS)))
    ids = connection.execute("SELECT id FROM entries WHERE job = ?", (job,)).fetchall()
    digest = reduce(lambda bits, found: bits ^ id_bits(found[0]), ids, 0)
    connection.execute("UPDATE jobs SET digest = ? WHERE job = ?", (signed(digest), job))


def rebuild(connection: sqlite3.Connection, job: str) -> None:
    """Makes what is kept about a job anew from its entries, ``at`` aside; of a job without any nothing stays."""
    found = [row(e) for e in _entries(connection, job)]
    if not found:
        connection.execute("DELETE FROM jobs WHERE job = ?", (job,))
        return
    final = max(r.final for r in found)
    connection.execute(
        "UPDATE jobs SET core = (SELECT min(seq) FROM entries WHERE job = ?1 AND kind = 'core'), claim = ?2, ended = ?3, final = ?4 WHERE job = ?1",
        (job, best_key(r.claim for r in found), best_key(r.ended for r in found), final),
    )
    compact(connection, job, final)


def discard(connection: sqlite3.Connection, job: str, ids: Sequence[str]) -> None:
    connection.executemany("DELETE FROM entries WHERE job = ? AND id = ?", [(job, i) for i in ids])
    rebuild(connection, job)


def _entries(connection: sqlite3.Connection, job: str) -> list[SignedEntry]:
    found = connection.execute("SELECT payload, author, signature FROM entries WHERE job = ? ORDER BY seq", (job,)).fetchall()
    return [SignedEntry(*columns) for columns in found]


def highest_ballot(connection: sqlite3.Connection, job: str) -> Ballot | None:
    """Of those that were raised to and of the claims in the record. Ballots are compared here: the order is ours, not SQL's."""
    raised = connection.execute("SELECT n, peer, boot FROM ballots WHERE job = ?", (job,)).fetchone()
    claim = connection.execute("SELECT claim FROM jobs WHERE job = ? AND claim > x''", (job,)).fetchone()
    known = [Ballot(*raised)] if raised is not None else []
    return max([*known, ballot_of(claim[0])] if claim is not None else known, default=None)


def fences(highest: Ballot | None, ballot: Ballot, *, fresh: bool) -> bool:
    """Whether what is decided under a ballot comes too late; ``fresh``: it would be the first decision about the job."""
    return highest is not None and (highest != ballot if fresh else highest > ballot)


def raise_ballot(connection: sqlite3.Connection, job: str, ballot: Ballot) -> Ballot:
    known = highest_ballot(connection, job)
    if known is not None and known >= ballot:
        return known
    connection.execute("INSERT OR REPLACE INTO ballots VALUES (?, ?, ?, ?)", (job, ballot.n, ballot.peer, ballot.boot))
    return ballot


def forget(connection: sqlite3.Connection, jobs: Sequence[str]) -> None:
    for table in ("entries", "jobs", "ballots"):
        connection.executemany(f"DELETE FROM {table} WHERE job = ?", [(job,) for job in jobs])  # noqa: S608 - names of our own
