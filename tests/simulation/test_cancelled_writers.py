"""A writer that is cancelled while the disk works: memory says what the disk says, and the cancellation is all that is heard."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from dimnode.domain.record import Ballot, StatusEntry
from dimnode.records.table import RecordTable
from dimnode.state.memory_journal import MemoryJournal
from tests.support.entries import FakeSigner, claim, core


def entry(status: str, elapsed: float = 0.0) -> StatusEntry:
    return StatusEntry(job="j", ballot=Ballot(1, "p", "b"), status=status, at=5.0, elapsed=elapsed)


async def a_table() -> tuple[RecordTable, MemoryJournal]:
    journal = MemoryJournal(sync=1.0)
    table = RecordTable(journal, FakeSigner("p"))
    await table.merge("j", [core("j"), claim(1, "p", job="j")])
    return table, journal


async def test_what_is_on_the_disk_is_in_memory_and_is_not_forgotten_with_the_seat(autojump_clock: MockClock) -> None:
    table, journal = await a_table()
    table.note("j", entry("scheduling"))
    with trio.move_on_after(0.5) as scope:
        await table.append("j", entry("running"))
    assert scope.cancel_called
    table.forsake("j")
    assert set(table.record("j").ids()) == {e.id for e in await journal.load("j")}
    assert entry("running") in [e.body() for e in await journal.load("j")]


@pytest.mark.parametrize("full", [False, True])
async def test_a_disk_that_fails_over_a_cancellation_raises_nothing_beside_it(autojump_clock: MockClock, full: bool) -> None:
    table, journal = await a_table()
    table.note("j", entry("scheduling"))
    with trio.move_on_after(0.5) as scope:
        journal.disk.full = full
        await table.append("j", entry("running"))
    assert scope.cancelled_caught == full, "what was done is done"
    on_disk = {e.id for e in await journal.load("j")}
    assert len(on_disk) == (2 if full else 4)
    if full:
        assert on_disk < set(table.record("j").ids()), "what was noted waits for the next decision"
        table.forsake("j")
    assert set(table.record("j").ids()) == on_disk
