"""The journal's tables, and how an older file becomes a newer one."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dimnode.domain import codec
from dimnode.domain.record import SignedEntry, kind_of
from dimnode.errors import DataLoss, FailedPrecondition, InvalidArgument

VERSION = 1

TABLES = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    """CREATE TABLE entries (
        seq INTEGER PRIMARY KEY, job TEXT NOT NULL, id TEXT NOT NULL, kind TEXT NOT NULL,
        author TEXT NOT NULL, payload BLOB NOT NULL, signature BLOB NOT NULL, UNIQUE (job, id))""",
    """CREATE TABLE jobs (
        first INTEGER PRIMARY KEY, job TEXT NOT NULL UNIQUE, core INTEGER, finished INTEGER NOT NULL DEFAULT 0)""",
    "CREATE INDEX unfinished ON jobs (core) WHERE core IS NOT NULL AND finished = 0",
    "CREATE TABLE ballots (job TEXT PRIMARY KEY, n INTEGER NOT NULL, peer TEXT NOT NULL, boot TEXT NOT NULL) WITHOUT ROWID",
)
"""``jobs.first`` and ``jobs.core`` are sequence numbers of entries: order of arrival, order of acceptance."""

Migration = Callable[[sqlite3.Connection], None]
MIGRATIONS: Mapping[int, Migration] = {}
"""Version n -> what turns a file of version n into one of version n + 1."""


@dataclass(frozen=True, slots=True)
class Row:
    """An entry as it is stored."""

    job: str
    id: str
    kind: str
    entry: SignedEntry


def row(entry: SignedEntry) -> Row:
    """Raises `InvalidArgument` if the payload is not an entry."""
    try:
        body = entry.body()
    except codec.CodecError as e:
        raise InvalidArgument("this is not a record entry") from e
    if not body.job:
        raise InvalidArgument("record entry has no job")
    return Row(body.job, entry.id, kind_of(body), entry)


def prepare(connection: sqlite3.Connection, migrations: Mapping[int, Migration] = MIGRATIONS, version: int = VERSION) -> None:
    """Create or migrate, in one transaction. Raises `FailedPrecondition` for a file of a later version."""
    found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if found > version:
        raise FailedPrecondition(
            f"the journal was written by a newer DIM (format {found}, this one knows {version})", hint="Install the newer version again."
        )
    if found == version:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        if found == 0:
            for statement in TABLES:
                connection.execute(statement)
        else:
            for step in range(found, version):
                migrations[step](connection)
        connection.execute(f"PRAGMA user_version = {version:d}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def check(connection: sqlite3.Connection) -> None:
    """Raises `DataLoss` if the file is damaged."""
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise damaged(found)


def damaged(detail: object) -> DataLoss:
    return DataLoss(
        f"the journal is damaged ({detail})",
        hint="Restore it from a backup, or move it away: the node then starts with an empty journal and "
        "takes over what other nodes have copies of.",
    )


def insert(connection: sqlite3.Connection, r: Row) -> None:
    """Store one entry; a known one is left alone."""
    e = r.entry
    cursor = connection.execute(
        "INSERT OR IGNORE INTO entries (job, id, kind, author, payload, signature) VALUES (?, ?, ?, ?, ?, ?)",
        (r.job, r.id, r.kind, e.author, e.payload, e.signature),
    )
    if cursor.rowcount == 0:
        return
    seq = cursor.lastrowid
    connection.execute("INSERT OR IGNORE INTO jobs (first, job) VALUES (?, ?)", (seq, r.job))
    if r.kind == "core":
        connection.execute("UPDATE jobs SET core = ? WHERE job = ? AND core IS NULL", (seq, r.job))
    elif r.kind == "outcome":
        connection.execute("UPDATE jobs SET finished = 1 WHERE job = ?", (r.job,))
