"""Many appends as few SQL statements.

Around every statement SQLite lets other Python threads run, and gets the interpreter back only when a busy event loop gives
it away: up to a switch interval later. Statement by statement a hundred jobs would wait a hundred times.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from dimnode.core.job_record import id_bits
from dimnode.domain.record import Ballot
from dimnode.state import rows
from dimnode.state.rows import DELETED, Row

T = TypeVar("T")
_SIZES = (256, 64, 16, 4, 1)
"""Rows of one statement: few different texts, so that SQLite compiles each once."""
_INSERT = "INSERT OR IGNORE INTO entries (job, id, kind, author, payload, signature) VALUES "
_NOTE = "INSERT INTO jobs (first, job, core, digest, at, claim, ended, final) VALUES "
_ON_CONFLICT = """ ON CONFLICT (job) DO UPDATE SET core = coalesce(core, excluded.core),
    digest = (digest | excluded.digest) - (digest & excluded.digest), at = excluded.at, claim = max(claim, excluded.claim),
    ended = max(ended, excluded.ended), final = max(final, excluded.final)"""
"""``(a | b) - (a & b)`` is a XOR b, which SQLite does not have."""


@dataclass(slots=True)
class Append:
    """What one caller of the journal appends."""

    by_job: Mapping[str, Sequence[Row]]
    under: Mapping[str, Ballot]
    fresh: Collection[str]
    at: float
    fenced: dict[str, Ballot] = field(default_factory=dict[str, Ballot])
    """The answer."""


def append_all(connection: sqlite3.Connection, appends: Sequence[Append]) -> None:
    """As if one after the other; the caller begins and ends the transaction."""
    group: list[Append] = []
    jobs: set[str] = set()
    for append in appends:
        if not jobs.isdisjoint(append.by_job):
            _append_together(connection, group)
            group, jobs = [], set()
        group.append(append)
        jobs |= append.by_job.keys()
    _append_together(connection, group)


def _append_together(connection: sqlite3.Connection, appends: Sequence[Append]) -> None:
    """No job is in two of them."""
    highest = _highest_ballots(connection, [job for a in appends for job in a.under])
    new: list[tuple[str, Row]] = []
    at: dict[str, float] = {}
    for append in appends:
        for job, found in append.by_job.items():
            known = highest.get(job)
            if job in append.under and known is not None and rows.fences(known, append.under[job], fresh=job in append.fresh):
                append.fenced[job] = known
            else:
                new += [(job, r) for r in found]
                at[job] = append.at
    _insert(connection, new, at)


def _highest_ballots(connection: sqlite3.Connection, jobs: Sequence[str]) -> dict[str, Ballot]:
    """As `rows.highest_ballot`; jobs of which no ballot is known are left out."""
    highest: dict[str, Ballot] = {}
    for part, marks in _asked(jobs):
        for job, *ballot in connection.execute(f"SELECT job, n, peer, boot FROM ballots WHERE job IN ({marks})", part).fetchall():  # noqa: S608 - marks only
            highest[job] = Ballot(*ballot)
        for job, key in connection.execute(f"SELECT job, claim FROM jobs WHERE claim > x'' AND job IN ({marks})", part).fetchall():  # noqa: S608
            claim = rows.ballot_of(key)
            highest[job] = max(claim, highest.get(job, claim))
    return highest


@dataclass(slots=True)
class _Gain:
    """What a job's new entries add to what is kept about it."""

    first: int | None = None
    core: int | None = None
    digest: int = 0
    claim: bytes = b""
    ended: bytes = b""
    final: int = 0
    dropping: bool = False
    """Something may have to go: an outcome came, or what one drops."""

    def add(self, seq: int, r: Row) -> None:
        self.first = min(seq, self.first or seq)
        self.digest ^= id_bits(r.id)
        if r.kind == "core":
            self.core = min(seq, self.core or seq)
        elif r.claim is not None:
            self.claim = max(self.claim, rows.ballot_key(r.claim))
        elif r.ended is not None:
            self.ended = max(self.ended, rows.ballot_key(r.ended))
        self.final = max(self.final, r.final)
        self.dropping = self.dropping or bool(r.final) or r.kind in rows.BULK_KINDS


def _insert(connection: sqlite3.Connection, new: Sequence[tuple[str, Row]], at: Mapping[str, float]) -> None:
    """Known entries are left alone."""
    gains: dict[str, _Gain] = {}
    for part in _parts(new):
        for seq, (job, r) in _insert_part(connection, part):
            gains.setdefault(job, _Gain()).add(seq, r)
    notes = [(g.first, job, g.core, rows.signed(g.digest), at[job], g.claim, g.ended, g.final) for job, g in gains.items()]
    for part in _parts(notes):
        values = ",".join(["(?, ?, ?, ?, ?, ?, ?, ?)"] * len(part))
        connection.execute(_NOTE + values + _ON_CONFLICT, [v for note in part for v in note])
    for part, marks in _asked(list(gains)):
        ended = connection.execute(f"SELECT job, final FROM jobs WHERE final > 0 AND job IN ({marks})", part).fetchall()  # noqa: S608 - marks only
        for job, final in ended:
            if gains[job].dropping or final == DELETED:
                rows.compact(connection, job, final)


def _insert_part(connection: sqlite3.Connection, part: Sequence[tuple[str, Row]]) -> Iterable[tuple[int, tuple[str, Row]]]:
    """Those that were not known, with their sequence numbers, which one statement gives in a row."""
    values = ",".join(["(?, ?, ?, ?, ?, ?)"] * len(part))
    columns = [v for job, r in part for v in (job, r.id, r.kind, r.entry.author, r.entry.payload, r.entry.signature)]
    cursor = connection.execute(_INSERT + values, columns)
    if cursor.rowcount <= 0:
        return ()
    assert cursor.lastrowid is not None
    before = cursor.lastrowid - cursor.rowcount
    if cursor.rowcount == len(part):
        return enumerate(part, start=before + 1)
    given = {(job, r.id): r for job, r in part}
    found = connection.execute("SELECT seq, job, id FROM entries WHERE seq > ? ORDER BY seq", (before,)).fetchall()
    return [(seq, (job, given[job, id_])) for seq, job, id_ in found]


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    start = 0
    for size in _SIZES:
        while len(items) - start >= size:
            yield items[start : start + size]
            start += size


def _asked(jobs: Sequence[str]) -> Iterator[tuple[Sequence[str], str]]:
    """Jobs to ask for in one statement, with as many marks; the last ones several times, to fill up."""
    for start in range(0, len(jobs), _SIZES[0]):
        part = list(jobs[start : start + _SIZES[0]])
        size = min(s for s in _SIZES if s >= len(part))
        yield part + part[-1:] * (size - len(part)), ",".join("?" * size)
