"""The journal's tables, and how an older file becomes a newer one."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping

from dimnode.errors import DataLoss, FailedPrecondition
from dimnode.state import rows

VERSION = 2

_JOBS = """CREATE TABLE jobs (
        first INTEGER PRIMARY KEY, job TEXT NOT NULL UNIQUE, core INTEGER, digest INTEGER NOT NULL, at REAL NOT NULL,
        claim BLOB NOT NULL DEFAULT x'', ended BLOB NOT NULL DEFAULT x'', final INTEGER NOT NULL DEFAULT 0,
        finished INTEGER AS (final > 0 OR (ended > x'' AND ended >= claim)) VIRTUAL)"""
_UNFINISHED = "CREATE INDEX unfinished ON jobs (core) WHERE core IS NOT NULL AND finished = 0"
TABLES = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    """CREATE TABLE entries (
        seq INTEGER PRIMARY KEY, job TEXT NOT NULL, id TEXT NOT NULL, kind TEXT NOT NULL,
        author TEXT NOT NULL, payload BLOB NOT NULL, signature BLOB NOT NULL, UNIQUE (job, id))""",
    _JOBS,
    _UNFINISHED,
    "CREATE TABLE ballots (job TEXT PRIMARY KEY, n INTEGER NOT NULL, peer TEXT NOT NULL, boot TEXT NOT NULL) WITHOUT ROWID",
)
"""``jobs.first`` and ``jobs.core`` are sequence numbers of entries: order of arrival, order of acceptance. ``digest`` is that of
the stored entries, ``at`` the time when they last grew. ``claim`` is the highest claim (it fences as ``ballots`` do), ``ended`` the highest failed or
expired outcome, which a later claim undoes, both as `dimnode.state.rows.ballot_key`; ``final`` is the rank of the best outcome
that compacts, 0 if there is none."""

Migration = Callable[[sqlite3.Connection], None]


def _second(connection: sqlite3.Connection) -> None:
    """Digests; failures that a later claim undid; what a crash left uncompacted goes. ``at`` is now."""
    connection.execute("DROP INDEX unfinished")
    connection.execute("ALTER TABLE jobs RENAME TO jobs_1")
    connection.execute(_JOBS)
    connection.execute("INSERT INTO jobs (first, job, core, digest, at) SELECT first, job, core, 0, ? FROM jobs_1", (time.time(),))
    connection.execute("DROP TABLE jobs_1")
    for (job,) in connection.execute("SELECT job FROM jobs").fetchall():
        rows.rebuild(connection, job)
    connection.execute(_UNFINISHED)


MIGRATIONS: Mapping[int, Migration] = {1: _second}
"""Version n -> what turns a file of version n into one of version n + 1."""


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
