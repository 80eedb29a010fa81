from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
import trio.testing

from dimnode.daemon.recorder import HEAD, Recorder
from dimnode.domain.record import Attempt, Ballot, Receipt, SignedEntry
from dimnode.errors import DimError, ResourceExhausted, Unavailable
from dimnode.state.memory_journal import MemoryDisk, MemoryJournal
from tests.support.entries import FakeSigner


class Slow(MemoryJournal):
    """Appends wait at a gate, and fail if told to."""

    gate: trio.Event | None = None
    error: DimError | None = None
    batches = 0

    async def append(self, entries: Sequence[SignedEntry]) -> None:
        self.batches += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        await super().append(entries)


def attempt(task: str, cost: float = 1.0) -> Attempt:
    receipt = Receipt(job="j", task=task, attempt=1, node="n", model_cid="c", inputs={}, outputs={}, started=0.0, ended=1.0, cost=cost)
    return Attempt(job="j", ballot=Ballot(1, "p", "b"), task=task, attempt=1, task_key=task, status="completed", receipt=receipt, node="n")


async def test_attempts_that_finish_together_share_a_write_and_chain_over_restarts() -> None:
    disk = MemoryDisk()
    for start in (0, 5):
        journal = Slow(disk)
        journal.gate = trio.Event()
        recorder = Recorder(FakeSigner("n"), journal)
        async with trio.open_nursery() as nursery:
            await nursery.start(recorder.run)
            async with trio.open_nursery() as callers:
                for n in range(5):
                    callers.start_soon(recorder.record, attempt(f"t{start + n}"))
                await trio.testing.wait_all_tasks_blocked()
                journal.gate.set()
            nursery.cancel_scope.cancel()
        assert journal.batches <= 2
    entries = await journal.load("j")
    assert len(entries) == 10
    previous = [e.body().receipt.previous for e in entries]  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    assert previous == ["", *[e.id for e in entries[:-1]]]
    assert await journal.get(HEAD) == entries[-1].id.encode()


async def test_what_is_not_written_is_not_told() -> None:
    journal = Slow(MemoryDisk())
    recorder = Recorder(FakeSigner("n"), journal)
    failures: list[str] = []

    async def caller() -> None:
        with pytest.raises(Unavailable):
            await recorder.record(attempt("late"))
        failures.append("late")

    async with trio.open_nursery() as callers, trio.open_nursery() as nursery:
        await nursery.start(recorder.run)
        journal.error = ResourceExhausted("the disk is full")
        with pytest.raises(ResourceExhausted, match="disk"):
            await recorder.record(attempt("a"))
        journal.error = None
        with pytest.raises(DimError, match="written down"):
            await recorder.record(attempt("nan", cost=float("nan")))
        first = await recorder.record(attempt("b"))
        body = first.body()
        assert isinstance(body, Attempt)
        assert body.receipt is not None
        assert body.receipt.previous == ""
        journal.gate = trio.Event()
        callers.start_soon(caller)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert failures == ["late"]
    with pytest.raises(Unavailable):
        await recorder.record(attempt("after"))
