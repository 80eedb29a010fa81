"""Pins: which DAGs must stay, and why. SQLite in WAL mode, fsynced, pins made together share one commit."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from p2p.ipfs import database
from p2p.ipfs.api import Pin

_SCHEMA = """CREATE TABLE IF NOT EXISTS pins (
    cid TEXT PRIMARY KEY, reason TEXT NOT NULL, recursive INTEGER NOT NULL DEFAULT 1, at REAL NOT NULL DEFAULT 0
) WITHOUT ROWID"""
_LATER = {"recursive": "INTEGER NOT NULL DEFAULT 1", "at": "REAL NOT NULL DEFAULT 0"}
"""Columns that files of the first version do not have."""
_PIN = """INSERT INTO pins (cid, reason, recursive, at) VALUES (?, ?, ?, ?) ON CONFLICT (cid)
    DO UPDATE SET reason = excluded.reason, recursive = excluded.recursive, at = excluded.at"""

Change = tuple[str, Pin | None]
"""(CID, pin), or (CID, None) to unpin."""


class DiskPins:
    """Synchronous, to be called in threads, by one at a time. Raises `sqlite3.Error`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._pins: dict[str, Pin] = {}

    def open(self) -> None:
        connection = database.connect(self._path, "FULL", [_SCHEMA])
        try:
            _widen(connection)
            with closing(connection.execute("SELECT cid, reason, recursive, at FROM pins")) as rows:
                self._pins = {cid: Pin(reason, bool(recursive), at) for cid, reason, recursive, at in rows}
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
        with database.transaction(self._connection):
            for cid, pin in changes:
                if pin is None:
                    self._connection.execute("DELETE FROM pins WHERE cid = ?", (cid,)).close()
                else:
                    self._connection.execute(_PIN, (cid, pin.reason, pin.recursive, pin.at)).close()
        for cid, pin in changes:
            if pin is None:
                self._pins.pop(cid, None)
            else:
                self._pins[cid] = pin

    def get(self, cid: str) -> Pin | None:
        return self._pins.get(cid)

    def all(self) -> dict[str, Pin]:
        return dict(self._pins)


def _widen(connection: sqlite3.Connection) -> None:
    with closing(connection.execute("PRAGMA table_info(pins)")) as rows:
        known = {row[1] for row in rows}
    for column, kind in _LATER.items():
        if column not in known:
            connection.execute(f"ALTER TABLE pins ADD COLUMN {column} {kind}").close()
