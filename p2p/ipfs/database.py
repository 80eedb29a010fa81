"""A small SQLite database beside the blocks: how it is opened, and transactions."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal


def connect(path: Path, synchronous: Literal["FULL", "NORMAL"], schema: Sequence[str]) -> sqlite3.Connection:
    """In WAL mode, for use in any thread, transactions by hand. Raises `sqlite3.Error`."""
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    try:
        for pragma in ("journal_mode = WAL", f"synchronous = {synchronous}", "fullfsync = ON"):
            connection.execute(f"PRAGMA {pragma}").close()
        for statement in schema:
            connection.execute(statement).close()
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Generator[None, None, None]:
    connection.execute("BEGIN IMMEDIATE").close()
    try:
        yield
        connection.execute("COMMIT").close()
    except BaseException:
        connection.execute("ROLLBACK").close()
        raise
