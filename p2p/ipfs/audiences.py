"""Whom blocks are for: most are for everybody, some only for an audience (for DIM: a job), or for several.

Kept for each block, leaves of large files included, since peers ask for blocks one by one. On the disk, so that it is known again after
a restart before anything is served, and so that memory does not grow with what is stored.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Collection, Generator, Iterable
from contextlib import closing, contextmanager
from pathlib import Path

from p2p.ipfs import database
from p2p.ipfs.cid import Cid

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS audiences (digest BLOB, audience TEXT, PRIMARY KEY (digest, audience)) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS by_audience ON audiences (audience)",
)

_IN_ONE_QUERY = 500
_DROP = """
    DELETE FROM audiences WHERE audience = ?1
    AND EXISTS (SELECT 1 FROM audiences AS other WHERE other.digest = audiences.digest AND other.audience <> ?1)
"""


class DiskAudiences:
    """Synchronous, to be called in threads; several at a time wait for each other. Raises `sqlite3.Error`.

    Not every change is fsynced: `flush` comes before blocks that shall be durable. So a power cut never leaves a durable block whose
    audience was forgotten."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()
        self._dirty = False

    def open(self) -> None:
        self._connection = database.connect(self._path, "NORMAL", _SCHEMA)

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def of(self, cid: Cid) -> frozenset[str]:
        """Empty: everybody."""
        with self._locked() as connection:
            return _of(connection, cid)

    def of_each(self, cids: Collection[Cid]) -> dict[Cid, frozenset[str]]:
        with self._locked() as connection:
            private = set(_private_of(connection, [cid.digest for cid in cids]))
            return {cid: _of(connection, cid) if cid.digest in private else frozenset() for cid in cids}

    def add(self, pairs: Collection[tuple[Cid, str]]) -> None:
        """(block, audience)"""
        with self._locked() as connection:
            self._add(connection, pairs)

    def share(self, pairs: Iterable[tuple[Cid, str]]) -> None:
        """As `add`, of those that are not everybody's."""
        with self._locked() as connection:
            self._add(connection, [(cid, a) for cid, a in pairs if _is_private(connection, cid) and not _is_for(connection, cid, a)])

    def forget(self, cids: Collection[Cid]) -> None:
        """They are everybody's, or gone."""
        with self._locked() as connection:
            known = _private_of(connection, [cid.digest for cid in cids])
            if known:
                with database.transaction(connection):
                    for digest in known:
                        connection.execute("DELETE FROM audiences WHERE digest = ?", (digest,)).close()

    def rename(self, old: str, new: str) -> None:
        with self._locked() as connection, database.transaction(connection):
            connection.execute("UPDATE OR IGNORE audiences SET audience = ? WHERE audience = ?", (new, old)).close()
            connection.execute("DELETE FROM audiences WHERE audience = ?", (old,)).close()
            self._dirty = True

    def drop(self, names: Iterable[str]) -> None:
        """Except where it is the last audience of a block: a block without any is everybody's."""
        with self._locked() as connection, database.transaction(connection):
            for name in names:
                connection.execute(_DROP, (name,)).close()

    def flush(self) -> None:
        """Everything so far is on the disk."""
        with self._locked() as connection:
            if self._dirty:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").close()
                self._dirty = False

    def _add(self, connection: sqlite3.Connection, pairs: Collection[tuple[Cid, str]]) -> None:
        if not pairs:
            return
        with database.transaction(connection):
            for cid, audience in pairs:
                connection.execute("INSERT OR IGNORE INTO audiences VALUES (?, ?)", (cid.digest, audience)).close()
            self._dirty = True

    @contextmanager
    def _locked(self) -> Generator[sqlite3.Connection, None, None]:
        with self._lock:
            assert self._connection is not None, "open() comes first"
            yield self._connection


def _of(connection: sqlite3.Connection, cid: Cid) -> frozenset[str]:
    with closing(connection.execute("SELECT audience FROM audiences WHERE digest = ?", (cid.digest,))) as rows:
        return frozenset(row[0] for row in rows)


def _is_private(connection: sqlite3.Connection, cid: Cid) -> bool:
    """Without counting for whom it is: thousands of jobs may have the same input."""
    return _found(connection, "SELECT 1 FROM audiences WHERE digest = ? LIMIT 1", (cid.digest,))


def _private_of(connection: sqlite3.Connection, digests: list[bytes]) -> list[bytes]:
    """Those that are not everybody's."""
    found: list[bytes] = []
    for start in range(0, len(digests), _IN_ONE_QUERY):
        some = digests[start : start + _IN_ONE_QUERY]
        marks = ",".join("?" * len(some))
        with closing(connection.execute(f"SELECT DISTINCT digest FROM audiences WHERE digest IN ({marks})", some)) as rows:  # noqa: S608
            found += [row[0] for row in rows.fetchall()]
    return found


def _is_for(connection: sqlite3.Connection, cid: Cid, audience: str) -> bool:
    return _found(connection, "SELECT 1 FROM audiences WHERE digest = ? AND audience = ?", (cid.digest, audience))


def _found(connection: sqlite3.Connection, statement: str, values: tuple[bytes | str, ...]) -> bool:
    with closing(connection.execute(statement, values)) as rows:
        return rows.fetchone() is not None


class AudiencesInMemory:
    """The same, for tests and simulation."""

    def __init__(self) -> None:
        self._audiences: dict[bytes, frozenset[str]] = {}

    def of(self, cid: Cid) -> frozenset[str]:
        return self._audiences.get(cid.digest, frozenset())

    def add(self, pairs: Iterable[tuple[Cid, str]]) -> None:
        for cid, audience in pairs:
            self._audiences[cid.digest] = self.of(cid) | {audience}

    def share(self, pairs: Iterable[tuple[Cid, str]]) -> None:
        self.add([(cid, audience) for cid, audience in pairs if self.of(cid)])

    def forget(self, cids: Iterable[Cid]) -> None:
        for cid in cids:
            self._audiences.pop(cid.digest, None)

    def rename(self, old: str, new: str) -> None:
        self._audiences = {d: frozenset(new if a == old else a for a in found) for d, found in self._audiences.items()}

    def drop(self, names: Iterable[str]) -> None:
        gone = frozenset(names)
        self._audiences = {d: (found - gone) or frozenset(sorted(found)[-1:]) for d, found in self._audiences.items()}
