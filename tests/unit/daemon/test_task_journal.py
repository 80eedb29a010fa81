"""What the journal keeps of tasks: over restarts, on a full disk, and the marks of what is under way."""

from __future__ import annotations

import random
from contextlib import aclosing
from dataclasses import replace

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from dimnode.daemon.execution import Execution
from dimnode.daemon.ledger import CHUNK, COUNT
from dimnode.domain.record import Attempt, Ballot, SignedEntry
from dimnode.domain.task import TaskOrder, TaskUpdate
from dimnode.errors import ResourceExhausted, Unavailable
from dimnode.state.memory_journal import MemoryDisk
from tests.support.daemon_tasks import SETTINGS, Bench, attempt_of, order, owner, running

# --- restarts -------------------------------------------------------------------------------------


async def test_after_a_crash_what_was_not_done_has_failed_and_what_was_done_is_answered(autojump_clock: MockClock) -> None:
    disk = MemoryDisk()
    async with running(disk) as bench:
        received = await bench.entry(order("received"))
        await bench.leave(order("left"))
        await bench.tasks.wait_idle()
        for name in ("ran", "ran too", "queued"):
            await bench.leave(order(name, seconds=50))
    async with running(disk) as bench:
        for name in ("ran", "ran too", "queued"):
            failed = await bench.take(order(name, seconds=50, n=2))
            assert failed.status == "failed"
            assert failed.retryable
            assert failed.error is not None
            assert (failed.error.code, failed.error.message[:18]) == ("UNAVAILABLE", "the node restarted")
            assert failed.interrupted
        assert bench.ran == []
        assert bench.tasks.counters["interrupted"] == 3
        assert await bench.entry(order("received", n=2)) == received
        assert (await bench.take(order("left", n=2))).status == "completed"
        assert bench.tasks.unfetched() == ()
        assert (await bench.take(order("ran", attempt=2, n=2))).status == "completed"
    async with running(disk) as bench:  # once is enough
        assert bench.tasks.counters["interrupted"] == 0


async def test_interrupted_and_unfetched_attempts_are_offered_after_a_restart_until_they_are_fetched(autojump_clock: MockClock) -> None:
    disk = MemoryDisk()
    async with running(disk) as bench:
        await bench.leave(order("left"))
        await bench.tasks.wait_idle()
        await bench.leave(order("ran", seconds=50))
        await trio.sleep(2)
    for _ in range(2):
        async with running(disk) as bench:
            while len(bench.tasks.unfetched()) < 2:
                await bench.tasks.wait_unfetched(await bench.tasks.wait_unfetched(0))
            offered = {attempt_of(e).task: attempt_of(e).status for e in bench.tasks.unfetched()}
            assert offered == {"left": "completed", "ran": "failed"}
    async with running(disk) as bench:
        bench.tasks.fetched([e.id for e in bench.tasks.unfetched()])
        await trio.sleep(2)
    async with running(disk) as bench:
        assert bench.tasks.unfetched() == ()


async def test_an_attempt_whose_record_was_dropped_is_not_offered(autojump_clock: MockClock) -> None:
    disk = MemoryDisk()
    async with running(disk) as bench:
        await bench.leave(order("a"))
        await bench.tasks.wait_idle()
        await bench.journal.forget(["job-1"])
    async with running(disk) as bench:
        assert bench.tasks.unfetched() == ()
        assert bench.tasks.counters["interrupted"] == 0


@pytest.mark.parametrize("seed", range(40))
async def test_whenever_it_crashes_every_accepted_task_is_accounted_for_once(autojump_clock: MockClock, seed: int) -> None:
    """Writes take time and tear apart; callers come, stay, leave and cancel."""
    chance = random.Random(seed)
    disk, accepted, received = MemoryDisk(), set[str](), dict[str, SignedEntry]()

    async def caller(bench: Bench, task: TaskOrder, stays: bool) -> None:
        await trio.sleep(chance.uniform(0, 3))
        async with aclosing(bench.tasks.watch(task)) as updates:
            async for update in updates:
                accepted.add(task.task)
                if update.entry is not None:
                    received[task.task] = update.entry
                elif not stays:
                    return

    orders = [order(f"t{n}", seconds=chance.uniform(0, 2), timeout=chance.choice([None, 1.0])) for n in range(15)]
    for _ in range(chance.randint(1, 3)):
        with trio.move_on_after(chance.uniform(0.1, 5)):
            async with running(disk, sync=chance.uniform(0.01, 0.3)) as bench:
                for each in orders:
                    bench.nursery.start_soon(caller, bench, each, chance.random() < 0.5)
                await trio.sleep_forever()
    async with running(disk) as bench:
        await bench.tasks.wait_idle()
        report = await bench.tasks.attempts_of("job-1", owner(2))
        assert report.running == ()
        found = {attempt_of(e).task: e for e in report.finished}
        assert len(found) == len(report.finished)
        assert accepted <= set(found)
        assert received.items() <= found.items()


async def test_a_job_with_more_attempts_than_fit_in_memory_is_not_run_again(autojump_clock: MockClock) -> None:
    disk, settings = MemoryDisk(), replace(SETTINGS, remembered_tasks=3)
    async with running(disk, settings=settings) as bench:
        for n in range(8):
            await bench.take(order(f"t{n}"))
    async with running(disk, settings=settings) as bench:
        for n in (0, 7, 3, 0):
            assert (await bench.take(order(f"t{n}"))).status == "completed"
        assert bench.ran == []


async def test_a_stop_hands_back_to_whoever_adopted_and_keeps_the_rest(autojump_clock: MockClock) -> None:
    disk = MemoryDisk()
    async with running(disk) as bench:
        got: list[TaskUpdate] = []
        for name in ("left", "adopted", "queued"):
            await bench.leave(order(name, seconds=50))
        bench.nursery.start_soon(bench.follow, order("adopted", n=2), got)
        await trio.sleep(1)
        await bench.tasks.hand_back()
        await trio.testing.wait_all_tasks_blocked()
        assert got[-1].entry is not None
        handed = [attempt_of(got[-1].entry), *map(attempt_of, bench.tasks.unfetched())]
        assert [(a.task, a.status, a.retryable) for a in sorted(handed, key=lambda a: a.task)] == [
            (name, "failed", True) for name in ("adopted", "left", "queued")
        ]
        assert {a.error.code for a in handed if a.error} == {"UNAVAILABLE"}
        assert all(a.interrupted for a in handed)
        with pytest.raises(Unavailable, match="no new tasks"):
            await bench.take(order("new", n=2))
    async with running(disk) as bench:
        assert {attempt_of(e).task for e in bench.tasks.unfetched()} >= {"left", "queued"}
        assert bench.tasks.counters["interrupted"] == 0


# --- a full disk ----------------------------------------------------------------------------------


async def test_an_attempt_that_cannot_be_written_is_kept_and_written_when_there_is_room(autojump_clock: MockClock) -> None:
    disk = MemoryDisk()
    async with running(disk) as bench:
        got: list[TaskUpdate] = []

        async def caller() -> None:
            with pytest.raises(ResourceExhausted, match="disk"):
                await bench.follow(order("a", seconds=5), got)
            got.append(TaskUpdate(stage="finished"))

        bench.nursery.start_soon(caller)
        await trio.sleep(1)
        disk.full = True
        await trio.sleep(9)
        assert [u.stage for u in got] == ["accepted", "running", "finished"]
        assert got[-1].entry is None  # it was told that there is none, and can turn elsewhere
        assert bench.tasks.running == 0  # its slot is free
        with pytest.raises(ResourceExhausted, match="disk"):
            await bench.take(order("b"))
        with pytest.raises(ResourceExhausted, match="disk"):
            await bench.take(order("a"))
        assert await bench.journal.load("job-1") == ()
        disk.full = False
        await bench.tasks.wait_unfetched(0)
        assert [attempt_of(e).task for e in bench.tasks.unfetched()] == ["a"]
        assert (await bench.take(order("a"))).status == "completed"
        assert bench.ran == ["a"]
        assert bench.tasks.counters["unwritten"] == 1


async def test_with_a_full_disk_at_the_start_the_interrupted_follow_later(autojump_clock: MockClock) -> None:
    disk = MemoryDisk()
    async with running(disk) as bench:
        await bench.leave(order("a", seconds=50))
    disk.full = True
    async with running(disk) as bench:
        await trio.sleep(10)
        assert bench.tasks.unfetched() == ()
        disk.full = False
        await bench.tasks.wait_unfetched(0)
        assert attempt_of(bench.tasks.unfetched()[0]).status == "failed"


async def test_an_attempt_that_no_record_can_hold_becomes_a_failed_one(autojump_clock: MockClock) -> None:
    async with running() as bench:

        async def odd(execution: Execution) -> Attempt:
            o = execution.order
            return Attempt(job=o.job, ballot=o.ballot, task=o.task, attempt=1, task_key=o.task_key, status="completed", rows=1 << 70)

        bench.tasks._work = odd
        done = await bench.take(order("a"))
        assert done.status == "failed"
        assert done.error is not None
        assert "written down" in done.error.message
        assert bench.tasks.counters["failed"] == 1


# --- marks of what is under way -------------------------------------------------------------------


async def test_rows_grow_by_chunks_and_are_used_again(autojump_clock: MockClock) -> None:
    disk, settings = MemoryDisk(), replace(SETTINGS, queue_capacity=1000, slots=1000)
    async with running(disk, settings=settings) as bench:
        for wave in range(3):
            async with trio.open_nursery() as nursery:
                for n in range(CHUNK + 6):
                    nursery.start_soon(bench.take, order(f"t{n}", attempt=wave))
        assert int(disk.meta[COUNT]) == 2 * CHUNK
        assert len([k for k in disk.meta if k.startswith("daemon.task.")]) == CHUNK + 6
        for n in range(CHUNK + 6):
            await bench.leave(order(f"t{n}", attempt=9, seconds=50))
    async with running(disk, settings=settings) as bench:
        assert bench.tasks.counters["interrupted"] == CHUNK + 6


async def test_clearing_old_marks_never_clears_a_new_one(autojump_clock: MockClock) -> None:
    disk = MemoryDisk()
    async with running(disk, sync=0.7) as bench:
        for n in range(12):  # rows become free and are taken while others are being cleared
            await bench.take(order(f"quick{n}", seconds=0.1))
            await bench.leave(order(f"slow{n}", seconds=0.1 if n < 10 else 500, timeout=900))
            await trio.sleep(0.3)
        await trio.sleep(3)
        running_now = {e.order.task for e in bench.tasks._all()}
        kept = {attempt_of(e).task for e in bench.tasks.unfetched()}
    assert running_now == {"slow10", "slow11"}
    async with running(disk) as bench:
        await bench.tasks.wait_idle()
        assert {attempt_of(e).task for e in bench.tasks.unfetched()} == running_now | kept


async def test_a_task_that_is_marked_twice_is_interrupted_once(autojump_clock: MockClock) -> None:
    disk = MemoryDisk()
    async with running(disk) as bench:
        await bench.leave(order("a", seconds=50))
    disk.meta["daemon.task.1"] = disk.meta["daemon.task.0"]
    async with running(disk) as bench:
        await bench.tasks.wait_idle()
        assert [attempt_of(e).status for e in bench.tasks.unfetched()] == ["failed"]
        assert bench.tasks.counters["interrupted"] == 1
        await trio.sleep(2)
    assert disk.meta["daemon.task.1"] == b""


async def test_an_unknown_mark_of_a_later_version_is_left_out(autojump_clock: MockClock) -> None:
    disk = MemoryDisk()
    disk.meta |= {COUNT: b"64", "daemon.task.0": b"\xa1\x61x\x01"}
    async with running(disk) as bench:
        assert bench.tasks.counters["interrupted"] == 0
        assert (await bench.take(order("a", ballot=Ballot(1, "p", "b")))).status == "completed"
