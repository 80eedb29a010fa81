"""Accepted tasks end with an attempt that somebody has, whoever leaves, cancels or adopts them in between."""

from __future__ import annotations

import math
import random
from contextlib import aclosing, suppress
from dataclasses import replace

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from dimnode.core.ballots import MAX_LEAP
from dimnode.daemon.ledger import COUNT
from dimnode.domain.task import TaskUpdate
from dimnode.errors import Fenced, InvalidArgument, ResourceExhausted
from dimnode.state.memory_journal import MemoryDisk
from tests.support.daemon_tasks import SETTINGS, attempt_of, order, owner, running
from tests.support.garbage import left_to_the_collector

# --- callers that leave ---------------------------------------------------------------------------


async def test_a_task_whose_caller_left_runs_to_its_end_and_waits_to_be_fetched(autojump_clock: MockClock) -> None:
    async with running() as bench:
        await bench.leave(order("a"))
        version = await bench.tasks.wait_unfetched(0)
        await bench.tasks.wait_idle()
        (entry,) = bench.tasks.unfetched()
        assert attempt_of(entry).status == "completed"
        assert await bench.journal.load("job-1") == (entry,)
        assert bench.tasks.kept() == 1
        bench.tasks.fetched(["unknown", entry.id])
        assert bench.tasks.unfetched() == ()
        with trio.move_on_after(100) as nothing_new:
            await bench.tasks.wait_unfetched(version)
        assert nothing_new.cancelled_caught


async def test_what_a_caller_received_is_not_offered(autojump_clock: MockClock) -> None:
    async with running() as bench:
        assert (await bench.take(order("a"))).status == "completed"
        with trio.move_on_after(100) as nothing:
            await bench.tasks.wait_unfetched(0)
        assert nothing.cancelled_caught
        assert bench.tasks.unfetched() == ()


async def test_a_caller_that_leaves_before_the_last_update_reached_it_has_not_fetched_it(autojump_clock: MockClock) -> None:
    async with running() as bench:
        async with aclosing(bench.tasks.watch(order("a"))) as updates:
            async for update in updates:
                if update.entry is not None:
                    assert bench.tasks.unfetched() == ()  # it is being delivered
                    break
        assert bench.tasks.unfetched() == (update.entry,)
        assert await bench.entry(order("a")) == update.entry  # ordered again, and stayed
        assert bench.tasks.unfetched() == ()


async def test_of_two_callers_one_that_stays_is_enough(autojump_clock: MockClock) -> None:
    async with running() as bench:
        bench.nursery.start_soon(bench.leave, order("a"))
        await bench.take(order("a"))
        assert bench.tasks.unfetched() == ()
        assert bench.ran == ["a"]


async def test_the_deadline_ends_a_task_that_nobody_watches(autojump_clock: MockClock) -> None:
    async with running() as bench:
        await bench.leave(order("a", seconds=math.inf, timeout=7.0))
        began = trio.current_time()
        await bench.tasks.wait_unfetched(0)
        assert trio.current_time() - began == pytest.approx(7.0)
        error = attempt_of(bench.tasks.unfetched()[0]).error
        assert error is not None
        assert error.code == "DEADLINE_EXCEEDED"


async def test_the_list_of_what_to_offer_is_bounded_and_the_journal_keeps_the_rest(autojump_clock: MockClock) -> None:
    disk = MemoryDisk()
    settings = replace(SETTINGS, kept_attempts=3)
    async with running(disk, settings=settings) as bench:
        for n in range(5):
            await bench.leave(order(f"t{n}"))
            await bench.tasks.wait_idle()
        assert [attempt_of(e).task for e in bench.tasks.unfetched()] == ["t2", "t3", "t4"]
        report = await bench.tasks.attempts_of("job-1", owner(2))
        assert sorted(attempt_of(e).task for e in report.finished) == [f"t{n}" for n in range(5)]
        await trio.sleep(2)  # the marks of the dropped ones are cleared
    async with running(disk, settings=settings) as bench:
        assert sorted(attempt_of(e).task for e in bench.tasks.unfetched()) == ["t2", "t3", "t4"]


# --- cancelling -----------------------------------------------------------------------------------


async def test_only_an_explicit_cancel_by_the_owner_cancels(autojump_clock: MockClock) -> None:
    async with running() as bench:
        await bench.leave(order("a", seconds=50, n=2))
        with pytest.raises(Fenced):
            await bench.tasks.cancel("job-1", "a", 1, owner(1))
        assert await bench.tasks.cancel("job-1", "a", 1, owner(2))
        assert (await bench.take(order("a", n=2))).status == "cancelled"
        assert not await bench.tasks.cancel("job-1", "a", 1, owner(2))
        assert bench.tasks.running == 0


async def test_a_queued_task_can_be_cancelled_and_never_runs(autojump_clock: MockClock) -> None:
    async with running() as bench:
        for name in "abc":
            await bench.leave(order(name, seconds=50))
        assert bench.tasks.waiting() == 1
        assert await bench.tasks.cancel("job-1", "c", 1, owner(1))
        assert (await bench.take(order("c"))).status == "cancelled"
        assert bench.ran == ["a", "b"]


async def test_a_cancel_that_meets_or_overtakes_its_order_counts(autojump_clock: MockClock) -> None:
    async with running(sync=1.0) as bench:
        bench.nursery.start_soon(bench.leave, order("meets", seconds=50))
        await trio.testing.wait_all_tasks_blocked()
        assert await bench.tasks.cancel("job-1", "meets", 1, owner(1))
        assert not await bench.tasks.cancel("job-1", "overtakes", 1, owner(1))
        assert (await bench.take(order("meets", seconds=50))).status == "cancelled"
        assert not await bench.tasks.cancel("job-1", "overtakes too", 1, owner(1))
        assert (await bench.take(order("overtakes", seconds=50))).status == "cancelled"
        assert (await bench.take(order("overtakes", attempt=2))).status == "completed"
        assert (await bench.take(order("overtakes too", n=2))).status == "completed"  # the new owner's word counts


# --- adoption -------------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [0, 2], ids=["running", "queued"])
async def test_a_new_owner_adopts_a_task_it_runs_once_and_both_hear_all(autojump_clock: MockClock, others: int) -> None:
    async with running() as bench:
        for n in range(others):
            await bench.leave(order(f"before{n}", seconds=5))
        old: list[TaskUpdate] = []
        new: list[TaskUpdate] = []
        bench.nursery.start_soon(bench.follow, order("a", seconds=10), old)
        await trio.sleep(1)
        await bench.follow(order("a", seconds=10, n=2), new)
        assert [u.stage for u in new] == ["accepted", "running", "finished"]
        await trio.testing.wait_all_tasks_blocked()
        assert old == new
        assert bench.ran.count("a") == 1
        assert bench.tasks.counters["adopted"] == 1
        with pytest.raises(Fenced):
            await bench.take(order("a"))


async def test_the_time_that_the_new_owner_gives_counts(autojump_clock: MockClock) -> None:
    async with running() as bench:
        await bench.leave(order("a", seconds=math.inf, timeout=10))
        await bench.leave(order("a", seconds=math.inf, timeout=100))  # the same owner again changes nothing
        await trio.sleep(5)
        began = trio.current_time()
        done = await bench.take(order("a", n=2, timeout=20))
        assert done.error is not None
        assert done.error.code == "DEADLINE_EXCEEDED"
        assert trio.current_time() - began == pytest.approx(20)


async def test_other_work_under_the_same_number_is_not_adopted_but_replaced(autojump_clock: MockClock) -> None:
    async with running() as bench:
        await bench.leave(order("a", seconds=100, task_key="theirs"))
        mine = await bench.take(order("a", seconds=1, n=2, task_key="mine"))
        assert (mine.status, mine.task_key) == ("completed", "mine")
        await bench.tasks.wait_idle()
        assert [(attempt_of(e).task_key, attempt_of(e).status) for e in bench.tasks.unfetched()] == [("theirs", "cancelled")]


async def test_orders_for_one_attempt_that_come_at_once_are_one_task(autojump_clock: MockClock) -> None:
    async with running(sync=0.5) as bench:
        got: list[list[TaskUpdate]] = [[] for _ in range(8)]
        async with trio.open_nursery() as nursery:
            for each in got:
                nursery.start_soon(bench.follow, order("a", seconds=10), each)
        assert all(each == got[0] for each in got)
        assert bench.ran == ["a"]
        assert bench.tasks.counters["accepted"] == 1


async def test_a_caller_that_goes_during_acceptance_spoils_nothing_for_the_next(autojump_clock: MockClock) -> None:
    async with running(sync=1.0) as bench:
        with trio.move_on_after(0.5):
            await bench.take(order("a"))
        assert (await bench.take(order("a"))).status == "completed"
        assert bench.ran == ["a"]
        assert bench.tasks.counters["accepted"] == 1


# --- ballots --------------------------------------------------------------------------------------


async def test_ballots_that_no_honest_owner_can_have_are_refused_and_raise_no_fence(autojump_clock: MockClock) -> None:
    async with running() as bench:
        for n in (MAX_LEAP + 1, 1 << 62, (1 << 64) - 1, -1):
            with pytest.raises(InvalidArgument, match="ballot"):
                await bench.take(order("a", n=n))
            with pytest.raises(InvalidArgument, match="ballot"):
                await bench.tasks.attempts_of("job-1", owner(n))
            with pytest.raises(InvalidArgument, match="ballot"):
                await bench.tasks.cancel("job-1", "a", 1, owner(n))
        assert (await bench.take(order("a", n=MAX_LEAP))).status == "completed"
        assert (await bench.take(order("b", n=2 * MAX_LEAP))).status == "completed"
        with pytest.raises(InvalidArgument):
            await bench.take(order("c", n=3 * MAX_LEAP + 1))
        with pytest.raises(Fenced):
            await bench.take(order("c", n=MAX_LEAP))


async def test_a_report_says_what_there_is_and_fences_the_former_owner(autojump_clock: MockClock) -> None:
    async with running(sync=0.1) as bench:
        done = await bench.entry(order("done"))
        for name in ("runs", "runs too", "waits"):
            await bench.leave(order(name, seconds=50))
        await bench.leave(order("other", job="job-2"))
        bench.nursery.start_soon(bench.leave, order("comes"))  # its fence is passed when the report is asked for
        await trio.testing.wait_all_tasks_blocked()
        report = await bench.tasks.attempts_of("job-1", owner(2))
        assert report.finished == (done,)
        assert sorted(report.running) == [("comes", 1), ("runs", 1), ("runs too", 1), ("waits", 1)]
        with pytest.raises(Fenced):
            await bench.take(order("late"))
        with pytest.raises(Fenced):
            await bench.tasks.attempts_of("job-1", owner(1))
        assert await bench.tasks.attempts_of("unknown", owner(1)) == type(report)()


# --- nothing leaks --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"timeout": math.nan}, {"timeout": math.inf}, {"job": ""}, {"task": ""}, {"job": "x" * 2000}, {"task_key": "x" * 2000},
        {"attempt": -1}, {"attempt": 1 << 63}, {"priority": "urgent"},
    ],
    ids=str,
)  # fmt: skip
async def test_a_bad_order_is_refused_and_takes_nothing(autojump_clock: MockClock, bad: dict) -> None:
    async with running() as bench:
        for _ in range(5):
            with pytest.raises(InvalidArgument):
                await bench.take(order(**{"task": "bad", **bad}))
        assert [(await bench.take(order(n))).status for n in "abc"] == ["completed"] * 3
        assert (bench.tasks.running, bench.tasks.waiting()) == (0, 0)
        assert set(bench.journal.disk.meta) <= {COUNT, "daemon.task.0"}


@pytest.mark.parametrize("seed", range(20))
async def test_after_any_storm_slots_queue_and_rows_are_free(autojump_clock: MockClock, seed: int) -> None:
    chance = random.Random(seed)
    disk = MemoryDisk()
    async with running(disk, sync=0.05) as bench:

        async def one(n: int) -> None:
            await trio.sleep(chance.uniform(0, 10))
            task = order(f"t{n}", seconds=chance.uniform(0, 1), timeout=chance.choice([None, 0.0, 0.5, 3.0]), job=f"job-{n % 7}")
            with trio.move_on_after(chance.uniform(0, 2)):
                with suppress(ResourceExhausted):
                    await bench.take(task)
            if chance.random() < 0.3:
                with suppress(ResourceExhausted):
                    await bench.tasks.cancel(task.job, task.task, 1, task.ballot)

        async with trio.open_nursery() as nursery:
            for n in range(150):
                nursery.start_soon(one, n)
            await trio.sleep(4)
            disk.full = chance.random() < 0.5
            await trio.sleep(1)
            disk.full = False
        await bench.tasks.wait_idle()
        assert (bench.tasks.running, bench.tasks.waiting()) == (0, 0)
        counters = bench.tasks.counters
        assert counters["accepted"] == counters["completed"] + counters["failed"] + counters["cancelled"]
        bench.tasks.fetched([e.id for e in bench.tasks.unfetched()])
        await trio.sleep(2)
        marks = {k: v for k, v in disk.meta.items() if k.startswith("daemon.task.")}
        assert set(marks.values()) == {b""}
        assert bench.tasks.waiting() == 0
        for n in range(10):
            assert (await bench.take(order(f"after{n}", job="after"))).status == "completed"


async def test_a_full_queue_refuses_and_counts_those_on_their_way_in(autojump_clock: MockClock) -> None:
    settings = replace(SETTINGS, slots=1, queue_capacity=2)
    async with running(sync=1.0, settings=settings) as bench:
        refused: list[str] = []

        async def one(n: int) -> None:
            try:
                await bench.leave(order(f"t{n}", seconds=50))
            except ResourceExhausted as e:
                refused.append(f"t{n}" if e.retry_after else "without a time")

        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for n in range(5):
                    nursery.start_soon(one, n)
            assert len(refused) == 2
            assert (bench.tasks.running, bench.tasks.waiting()) == (1, 2)
            accepted = {f"t{n}" for n in range(5)} - set(refused)
            refused.clear()
            assert accepted == {e.order.task for e in bench.tasks._all()}
            assert len([k for k in bench.journal.disk.meta if k.startswith("daemon.task.")]) == 3  # nothing is written for the refused


# --- what stays behind ----------------------------------------------------------------------------


async def test_what_ended_tasks_leave_needs_no_garbage_collection(autojump_clock: MockClock) -> None:
    async with running() as bench:
        with left_to_the_collector() as garbage:
            for n in range(10):
                assert (await bench.take(order("a", job=f"job-{n}"))).status == "completed"
            await bench.tasks.wait_idle()
        assert garbage == {}
