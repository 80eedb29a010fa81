"""What a task costs the disk: one commit to accept it, one to finish it, both shared. On the real journal."""

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import trio

from dimnode.clock import SystemClock
from dimnode.daemon.execution import Execution
from dimnode.daemon.settings import DaemonSettings
from dimnode.daemon.tasks import Tasks
from dimnode.domain.record import Attempt
from dimnode.state.journal import SqliteJournal, open_journal
from tests.support.daemon_tasks import attempt_of, order
from tests.support.entries import FakeSigner


@asynccontextmanager
async def tasks_on(journal: SqliteJournal, released: trio.Event):
    """Work that waits until it is released; marks are cleared so late that it does not count here."""

    async def work(execution: Execution) -> Attempt:
        task = execution.order
        await released.wait()
        return Attempt(job=task.job, ballot=task.ballot, task=task.task, attempt=1, task_key="k", status="completed", node="node")

    settings = DaemonSettings(slots=1000, tidy_delay=3600.0)
    tasks = Tasks(
        signer=FakeSigner("node"), clock=SystemClock(), journal=journal, settings=settings, work=work,
        refusal=lambda order: None, on_change=lambda: None,
    )  # fmt: skip
    async with trio.open_nursery() as nursery:
        await nursery.start(tasks.run)
        yield tasks
        nursery.cancel_scope.cancel()


async def test_accepting_costs_one_commit_and_those_that_come_together_share_theirs(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "journal.db") as journal:
        released = trio.Event()
        async with tasks_on(journal, released) as tasks:
            commits = lambda: journal.statistics().transactions  # noqa: E731
            async with aclosing(tasks.watch(order("zero"))) as first:
                await anext(first)  # the node's very first one adds rows to the ledger
                before = commits()
                async with aclosing(tasks.watch(order("one"))) as second, aclosing(tasks.watch(order("two", job="job-2"))) as third:
                    await anext(second)
                    assert commits() - before == 1
                    await anext(third)
                    assert commits() - before == 2
                    before = commits()
                    released.set()
                    for updates in (first, second, third):
                        async for update in updates:
                            if update.entry is not None:
                                assert attempt_of(update.entry).status == "completed"
                    await tasks.wait_idle()
                    assert commits() - before <= 2  # the first may not have waited for the others
            await _take(tasks, "first")
            before = commits()
            async with trio.open_nursery() as nursery:
                for n in range(50):
                    nursery.start_soon(_take, tasks, f"t{n}")
            assert commits() - before <= 10  # of 50 accepted and finished
            assert tasks.unfetched() == ()


async def _take(tasks: Tasks, name: str) -> None:
    async with aclosing(tasks.watch(order(name, job="many"))) as updates:
        async for _ in updates:
            pass


async def test_marks_survive_in_the_real_journal(tmp_path: Path) -> None:
    async with (
        open_journal(tmp_path / "journal.db") as journal,
        tasks_on(journal, trio.Event()) as tasks,
        aclosing(tasks.watch(order("interrupted"))) as updates,
    ):
        await anext(updates)
    async with open_journal(tmp_path / "journal.db") as journal, tasks_on(journal, trio.Event()) as tasks:
        with trio.fail_after(10):
            await tasks.wait_unfetched(0)
        (entry,) = tasks.unfetched()
        assert (attempt_of(entry).task, attempt_of(entry).status) == ("interrupted", "failed")
        assert await journal.load("job-1") == (entry,)
