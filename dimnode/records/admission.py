"""Lets entries of other nodes in: checked here, on the event loop, a few at a time.

Checking a signature takes 0.1 ms at the most and holds the interpreter's lock, so a thread would not be faster.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

import trio

from dimnode.core.job_record import EntryRefused, Record, RecordFull, check_room
from dimnode.core.record_gate import NotADecider, RecordGate
from dimnode.domain.record import SignedEntry

AT_ONCE = 16
"""Entries that are checked before others have their turn on the loop."""


class Turns:
    """Of one caller: others have theirs after `AT_ONCE` entries, of however many jobs those are."""

    def __init__(self) -> None:
        self._entries = 0

    async def take(self) -> None:
        """Before each entry."""
        self._entries += 1
        if self._entries > AT_ONCE:
            self._entries = 1
            await trio.lowlevel.checkpoint()


@dataclass(frozen=True, slots=True)
class Admitted:
    entries: tuple[SignedEntry, ...]
    """New ones, fit to be stored."""
    refused: int = 0
    reason: str = ""
    """Of the first that was refused."""


async def admit(
    gate: RecordGate,
    job: str,
    entries: Sequence[SignedEntry],
    record: Record | None,
    turns: Turns,
    *,
    whole: bool,
    unwritten: Container[str] = (),
) -> Admitted:
    """``whole``: an owner's decisions belong together, all or none. Else the sound ones are taken: a copy may hold what another
    version of DIM let in. A decision by who may not decide spoils all. ``unwritten``: ids of what the record has in memory only."""
    new: dict[str, SignedEntry] = {}
    refused, reason = 0, ""
    for entry in entries:
        await turns.take()
        try:
            if gate.check(job, entry, record, unwritten):
                new[entry.id] = entry
        except EntryRefused as e:
            if whole or isinstance(e, NotADecider):
                return Admitted((), len(entries), str(e))
            refused, reason = refused + 1, reason or str(e)
    try:
        check_room(record, new.values())
    except RecordFull as e:
        return Admitted((), refused + len(new), str(e))
    return Admitted(tuple(new.values()), refused, reason)
