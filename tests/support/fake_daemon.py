"""A node's daemon in memory, with the promises of the real one: a task outlives its caller, runs once for each attempt
number, is fenced by the highest ballot, and its attempt is kept and given to whoever asks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import trio

from dimnode.domain.record import Ballot, SignedEntry
from dimnode.domain.task import TaskOrder, TaskReport, TaskUpdate, TextPiece
from dimnode.errors import DimError, Fenced, Unavailable

Place = tuple[str, str, int]


class _Execution:
    def __init__(self, order: TaskOrder) -> None:
        self.order = order
        self.scope = trio.CancelScope()
        self.cancelled = False
        self.entry: SignedEntry | None = None
        self.error: BaseException | None = None
        self.done = trio.Event()
        self.pieces: list[TextPiece] = []
        self.changed = trio.Event()

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class FakeDaemon:
    """``work`` returns the signed attempt, or raises what the caller gets instead (then nothing is kept)."""

    def __init__(self, work: Callable[[TaskOrder], Awaitable[Any]], cancelled: Callable[[TaskOrder], Any]) -> None:
        self._work = work
        self._cancelled_attempt = cancelled
        self._tasks: dict[Place, _Execution] = {}
        self._ballots: dict[str, Ballot] = {}
        self.up = True
        self.deaf = False
        """Answers no `attempts_of`, as if the request got lost."""

    async def run_task(self, order: TaskOrder) -> AsyncGenerator[TaskUpdate, None]:
        self.require_up()
        self._fence(order.job, order.ballot)
        place = (order.job, order.task, order.attempt)
        execution = self._tasks.get(place)
        if execution is None or execution.order.task_key != order.task_key:
            if execution is not None:
                execution.scope.cancel()
            execution = self._tasks[place] = _Execution(order)
            # Nobody's child, as on a node of its own; it ends with the test at the latest.
            trio.lowlevel.spawn_system_task(self._execute, place, execution)
        yield TaskUpdate(stage="accepted")
        yield TaskUpdate(stage="running")
        told = 0
        while told < len(execution.pieces) or not execution.done.is_set():
            if told < len(execution.pieces):
                told += 1
                yield TaskUpdate(stage="partial", piece=execution.pieces[told - 1])
            else:
                await execution.changed.wait()
        if execution.error is not None:
            raise execution.error
        yield TaskUpdate(stage="finished", entry=execution.entry)

    async def _execute(self, place: Place, execution: _Execution) -> None:
        try:
            with execution.scope:
                execution.entry = await self._work(execution.order)
            if execution.cancelled:
                execution.entry = self._cancelled_attempt(execution.order)
        except Exception as e:  # noqa: BLE001 - the caller gets it
            execution.error = e
        if execution.entry is None:
            execution.error = execution.error or Unavailable("the node died")
            if self._tasks.get(place) is execution:
                del self._tasks[place]
        execution.done.set()
        execution.wake()

    def say(self, order: TaskOrder, offset: int, text: str) -> None:
        """A piece of the task's text, to all who watch it."""
        execution = self._tasks[(order.job, order.task, order.attempt)]
        execution.pieces.append(TextPiece(row=0, offset=offset, text=text))
        execution.wake()

    def cancel(self, job: str, task: str, attempt: int, ballot: Ballot) -> bool:
        self.require_up()
        self._fence(job, ballot)
        execution = self._tasks.get((job, task, attempt))
        if execution is None or execution.done.is_set():
            return False
        execution.cancelled = True
        execution.scope.cancel()
        return True

    def attempts_of(self, job: str, ballot: Ballot) -> TaskReport:
        self.require_up()
        self._fence(job, ballot)
        mine = [(p, e) for p, e in self._tasks.items() if p[0] == job]
        return TaskReport(
            finished=tuple(e.entry for _, e in mine if e.entry is not None),
            running=tuple((p[1], p[2]) for p, e in mine if e.entry is None),
        )

    def kept(self) -> list[SignedEntry]:
        """Attempts that it has."""
        return [e.entry for e in self._tasks.values() if e.entry is not None]

    def die(self) -> None:
        """As kill -9: what runs is lost, what has finished is on disk."""
        self.up = False
        for execution in self._tasks.values():
            if execution.entry is None:
                execution.scope.cancel()

    def require_up(self) -> None:
        if not self.up:
            raise Unavailable("the node cannot be reached")

    def _fence(self, job: str, ballot: Ballot) -> None:
        highest = self._ballots[job] = max(ballot, self._ballots.get(job, ballot))
        if highest != ballot:
            raise Fenced(f"ballot {highest.n} of {highest.peer} owns this job")


async def answer(daemon: FakeDaemon, jobs: tuple[tuple[str, Ballot], ...]) -> list[TaskReport | None]:
    """As `dimnode.records.questions` answers ATTEMPTS."""
    await trio.lowlevel.checkpoint()
    reports: list[TaskReport | None] = []
    for job, ballot in jobs:
        try:
            reports.append(daemon.attempts_of(job, ballot))
        except Fenced:
            reports.append(None)
        except DimError:
            return []
    return reports
