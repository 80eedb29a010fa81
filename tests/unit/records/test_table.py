"""The records in memory are those of the journal, whatever is interrupted, forgotten, or comes back from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from dimnode.core.job_record import Record
from dimnode.domain.record import Assign, StatusEntry
from dimnode.errors import ResourceExhausted
from dimnode.ports import Copied, Written
from dimnode.records.no_copies import NoCopies
from dimnode.records.table import RecordTable
from dimnode.state.memory_journal import MemoryJournal
from tests.support import entries as e
from tests.support.record_nodes import QUICK, record_swarm

RUNNING = StatusEntry(job=e.JOB, ballot=e.ballot(1), status="running", at=4.0)
SCHEDULING = StatusEntry(job=e.JOB, ballot=e.ballot(1), status="scheduling", at=3.5)
ASSIGN = Assign(job=e.JOB, ballot=e.ballot(1), task="t", attempt=1, node="x", task_key="k", model_cid="m", at=3.0)


@pytest.fixture
def journal(autojump_clock: MockClock) -> MemoryJournal:
    return MemoryJournal(sync=1.0)


@pytest.fixture
async def table(journal: MemoryJournal) -> RecordTable:
    made = RecordTable(journal, e.FakeSigner("p"))
    await made.merge(e.JOB, [e.core(), e.claim(1)])
    return made


class Unanswered(NoCopies):
    async def write(self, jobs: Sequence[Written], *, wanted: int | None = None) -> list[Copied]:
        await trio.sleep_forever()
        raise AssertionError


async def on_disk(journal: MemoryJournal) -> frozenset[str]:
    return Record(e.JOB, await journal.load(e.JOB)).ids()


async def test_what_is_durable_is_in_memory_though_its_writer_was_cancelled(
    table: RecordTable, journal: MemoryJournal, autojump_clock: MockClock
) -> None:
    table.copies = Unanswered()
    table.note(e.JOB, SCHEDULING)
    with trio.move_on_after(0.5) as impatient:
        await table.append(e.JOB, ASSIGN, RUNNING)
    assert impatient.cancelled_caught
    table.forsake(e.JOB)
    assert await on_disk(journal) == table.record(e.JOB).ids()
    assert len(table.record(e.JOB)) == 5
    assert table.unwritten(e.JOB) == frozenset()


async def test_what_another_copy_told_is_in_memory_though_who_merged_it_was_cancelled(
    table: RecordTable, journal: MemoryJournal, autojump_clock: MockClock
) -> None:
    """A seat that is lost amid a comparison, say (seed 30)."""
    with trio.move_on_after(0.5) as impatient:
        await table.merge(e.JOB, [e.outcome(1, "completed")])
    assert impatient.cancel_called
    await trio.sleep(5)
    assert await on_disk(journal) == table.record(e.JOB).ids()
    assert table.active == ()


async def test_what_could_not_be_written_is_noted_still(table: RecordTable, journal: MemoryJournal, autojump_clock: MockClock) -> None:
    table.note(e.JOB, SCHEDULING)
    journal.disk.full = True
    with pytest.raises(ResourceExhausted):
        await table.append(e.JOB, ASSIGN)
    assert len(table.unwritten(e.JOB)) == 1
    journal.disk.full = False
    await table.append(e.JOB, ASSIGN)
    assert await on_disk(journal) == table.record(e.JOB).ids()


async def test_what_is_only_in_memory_is_written_when_a_copy_brings_it(
    table: RecordTable, journal: MemoryJournal, autojump_clock: MockClock
) -> None:
    """A copy got it, this disk was full: the copy gives it back."""
    table.note(e.JOB, RUNNING)
    assert await table.merge(e.JOB, [e.signed(RUNNING)]) is False
    assert table.unwritten(e.JOB) == frozenset()
    assert await on_disk(journal) == table.record(e.JOB).ids()


async def test_copies_converge_that_differ_by_what_one_has_in_memory_only(autojump_clock: MockClock) -> None:
    async with record_swarm(["p", "q"], "anti_entropy", anti_entropy=QUICK) as swarm:
        p, q = swarm.nodes["p"], swarm.nodes["q"]
        start = [e.core(), e.claim(1)]
        await p.table.merge(e.JOB, start)
        p.table.note(e.JOB, RUNNING)
        await q.table.merge(e.JOB, [*start, e.signed(RUNNING)])
        await trio.sleep(20)
        assert await p.has(e.JOB, [*start, e.signed(RUNNING)])


async def test_an_owner_that_lacks_its_own_job_is_given_it(autojump_clock: MockClock) -> None:
    """Its disk was full when the copies had its claim already; nobody else may drive a job whose owner is there."""
    async with record_swarm(["p", "q"], "anti_entropy", anti_entropy=QUICK) as swarm:
        p, q = swarm.nodes["p"], swarm.nodes["q"]
        start = [e.core(), e.claim(1, "p")]
        await q.table.merge(e.JOB, start)
        await trio.sleep(20)
        assert await p.has(e.JOB, start)
