"""Pins: which DAGs must stay, and why. SQLite in WAL mode, fsynced, pins made together share one commit."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

_SCHEMA = "CREATE TABLE IF NOT EXISTS pins (cid TEXT PRIMARY KEY, reason TEXT NOT NULL) WITHOUT ROWID"
_PIN = "INSERT INTO pins VALUES (?, ?) ON CONFLICT (cid) DO UPDATE SET reason = excluded.reason"

Change = tuple[str, str | None]
"""(CID, reason), or (CID, None) to unpin."""


class DiskPins:
    """Synchronous, to be called in threads, by one at a time. Raises `sqlite3.Error`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._pins: dict[str, str] = {}

    def open(self) -> None:
        connection = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        try:
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "fullfsync = ON"):
                connection.execute(f"PRAGMA {pragma}").close()
            connection.execute(_SCHEMA).close()
            with closing(connection.execute("SELECT cid, reason FROM pins")) as rows:
                self._pins = dict(rows)
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def apply(self, changes: list[Change]) -> None:
        """All changes in one durable transaction, in order."""
        assert self._connection is not None, "open() comes first"
        self._connection.execute("BEGIN IMMEDIATE").close()
        try:
            for cid, reason in changes:
                if reason is None:
                    self._connection.execute("DELETE FROM pins WHERE cid = ?", (cid,)).close()
                else:
                    self._connection.execute(_PIN, (cid, reason)).close()
            self._connection.execute("COMMIT").close()
        except BaseException:
            self._connection.execute("ROLLBACK").close()
            raise
        for cid, reason in changes:
            if reason is None:
                self._pins.pop(cid, None)
            else:
                self._pins[cid] = reason

    def all(self) -> dict[str, str]:
        return dict(self._pins)
