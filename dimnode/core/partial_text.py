"""Text as it comes, before its task is done: hints for people who watch. Pure.

What counts is the signed output at the end; pieces may be left out, told twice, or begin anew with another attempt, and none is ever
written down. Everything here is bounded: what does not fit any more is left out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

from dimnode.domain.task import PartialOutput, TextPiece

MAX_ROWS = 256


class PartialText:
    """The texts of one attempt so far, by row; at most so many characters in all."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._rows: dict[int, str] = {}
        self.size = 0

    def add(self, piece: TextPiece) -> bool:
        """Whether there was something new in it. A piece that is known already, or that lies behind a gap, changes nothing."""
        have = self._rows.get(piece.row, "")
        if not 0 <= piece.offset <= len(have) or not 0 <= piece.row < MAX_ROWS:
            return False
        new = piece.text[len(have) - piece.offset :][: self._most - self.size]
        if new:
            self._rows[piece.row] = have + new
            self.size += len(new)
        return bool(new)

    def after(self, seen: Mapping[int, int]) -> list[TextPiece]:
        """What is beyond the characters that have been ``seen`` of each row, a piece a row."""
        return [
            TextPiece(row=row, offset=at, text=text[at:])
            for row, text in sorted(self._rows.items())
            if (at := seen.get(row, 0)) < len(text)
        ]


class Seen:
    """What one watcher has of a job: of each task the attempt, and of its rows the characters."""

    def __init__(self) -> None:
        self._tasks: dict[str, tuple[int, dict[int, int]]] = {}

    def of(self, task: str, attempt: int) -> Mapping[int, int]:
        known = self._tasks.get(task)
        return known[1] if known is not None and known[0] == attempt else {}

    def news(self, output: PartialOutput) -> PartialOutput | None:
        """The part of it to show, which then counts as seen. A later attempt begins anew; an earlier one is over."""
        known = self._tasks.get(output.task)
        if known is None or known[0] < output.attempt:
            known = self._tasks[output.task] = (output.attempt, {})
        if known[0] > output.attempt:
            return None
        have = known[1].get(output.row, 0)
        text = output.text[max(0, have - output.offset) :]
        if not text:
            return None
        at = max(have, output.offset)
        known[1][output.row] = at + len(text)
        return PartialOutput(task=output.task, attempt=output.attempt, row=output.row, offset=at, text=text)

    def to_plain(self) -> list[list[Any]]:
        return [[task, attempt, row, at] for task, (attempt, rows) in self._tasks.items() for row, at in (rows or {0: 0}).items()]

    @classmethod
    def from_plain(cls, plain: Iterable[tuple[str, int, int, int]]) -> Seen:
        out = cls()
        for task, attempt, row, at in plain:
            known = out._tasks.get(task)
            if known is None or known[0] < attempt:
                known = out._tasks[task] = (attempt, {})
            if known[0] == attempt:
                known[1][row] = at
        return out


class Board:
    """The texts of many jobs, those that were written to longest ago dropped first. ``each``: characters of one task, ``most`` of all."""

    def __init__(self, each: int, most: int) -> None:
        self._each, self._most = each, most
        self._jobs: OrderedDict[str, dict[str, tuple[int, PartialText]]] = OrderedDict()
        self._size = 0

    def add(self, job: str, task: str, attempt: int, piece: TextPiece) -> bool:
        """Whether there was something new in it."""
        tasks = self._jobs.setdefault(job, {})
        known = tasks.get(task)
        if known is not None and known[0] > attempt:
            return False
        if known is None or known[0] < attempt:
            self._size -= known[1].size if known is not None else 0
            known = tasks[task] = (attempt, PartialText(self._each))
        before = known[1].size
        new = known[1].add(piece)
        self._size += known[1].size - before
        self._jobs.move_to_end(job)
        while self._size > self._most:
            _, dropped = self._jobs.popitem(last=False)
            self._size -= sum(text.size for _, text in dropped.values())
        return new

    def after(self, job: str, seen: Seen, most: int = 64 << 10) -> list[PartialOutput]:
        """What a watcher has not seen; at most so many characters at a time."""
        out: list[PartialOutput] = []
        for task, (attempt, text) in self._jobs.get(job, {}).items():
            for p in text.after(seen.of(task, attempt)):
                if most > 0:
                    out.append(PartialOutput(task=task, attempt=attempt, row=p.row, offset=p.offset, text=p.text[:most]))
                    most -= len(p.text)
        return out
