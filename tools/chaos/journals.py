"""Reads the journals of homes, of running nodes and of dead ones alike; never writes."""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dimnode.domain import codec
from dimnode.domain.record import Attempt, Body, SignedEntry, Unknown

NAME = "journal.db"


@dataclass(frozen=True, slots=True)
class Found:
    """One entry in one journal. ``seq``: order of arrival there."""

    seq: int
    id: str
    kind: str
    author: str
    entry: SignedEntry

    @property
    def body(self) -> Body | Unknown:
        return self.entry.body()


def homes(folder: Path) -> list[Path]:
    """The folder itself if it is a home, else the homes in it, at any depth."""
    return [path.parent for path in sorted(folder.rglob(NAME))]


def entries(home: Path, *, job: str | None = None, kind: str | None = None) -> Iterator[Found]:
    statement = (
        "SELECT seq, id, kind, author, payload, signature FROM entries WHERE ifnull(?, job) = job AND ifnull(?, kind) = kind ORDER BY seq"
    )
    for seq, entry_id, found, author, payload, signature in _rows(home, statement, (job, kind)):
        yield Found(seq, entry_id, found, author, SignedEntry(payload, author, signature))


def ballot(home: Path, job: str) -> tuple[int, str, str] | None:
    """The highest that this node heard of."""
    return next(iter(_rows(home, "SELECT n, peer, boot FROM ballots WHERE job = ?", (job,))), None)


def _rows(home: Path, statement: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{home / NAME}?mode=ro", uri=True, timeout=10)) as connection:
        return connection.execute(statement, values).fetchall()


class Executions:
    """Completed attempts of each task, from journals and from results: a finished job's record keeps them only there."""

    def __init__(self) -> None:
        self._done: defaultdict[tuple[str, str, str], set[str]] = defaultdict(set)

    def add_home(self, home: Path) -> None:
        for found in entries(home, kind="attempt"):
            self.add(found.entry)

    def add_result(self, result: Mapping[str, Any]) -> None:
        for task in result["tasks"]:
            if task["receipt"]:
                self.add(codec.decode(task["receipt"], SignedEntry))

    def add(self, entry: SignedEntry) -> None:
        body = entry.body()
        if isinstance(body, Attempt) and body.status == "completed":
            self._done[body.job, body.task, body.task_key].add(entry.id)

    @property
    def tasks(self) -> int:
        return len(self._done)

    def repeated(self) -> Counter[str]:
        """Job -> executions beyond the first of each task."""
        repeats: Counter[str] = Counter()
        for (job, _, _), ids in self._done.items():
            repeats[job] += len(ids) - 1
        return +repeats
