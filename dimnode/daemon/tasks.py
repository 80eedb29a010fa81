"""From an order to an attempt that somebody has: accept, queue, run, write down, hand over. No task gets lost on the way.

An accepted task ends with a signed attempt in the journal, whoever watches it: callers may leave and come back. What was
accepted and not finished when the node died ends with a failed attempt at the next start. An attempt that cannot be written
down (the disk is full) is kept in memory and tried again. An attempt that no caller received waits in the outbox.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Hashable, Iterator
from contextlib import aclosing, asynccontextmanager
from functools import partial

import trio

from dimnode.core.ballots import leaps
from dimnode.daemon.execution import Execution, Place, failed_attempt
from dimnode.daemon.job_queue import JobQueue, QueueStatistics
from dimnode.daemon.ledger import Ledger, mark
from dimnode.daemon.orders import check_order, check_task
from dimnode.daemon.outbox import Finished, Outbox
from dimnode.daemon.recorder import Recorder
from dimnode.daemon.resources import NoRoom
from dimnode.daemon.settings import DaemonSettings
from dimnode.daemon.together import together
from dimnode.domain.record import Attempt, Ballot, SignedEntry
from dimnode.domain.task import TaskOrder, TaskReport, TaskUpdate
from dimnode.errors import Cancelled, DeadlineExceeded, DimError, Fenced, InvalidArgument, ResourceExhausted, Unavailable
from dimnode.ports import Clock, Journal, Signer

COUNTED = ("accepted", "completed", "failed", "cancelled", "fenced", "refused", "repeated", "adopted", "interrupted", "unwritten")
_LOWEST = Ballot(0, "", "")
_log = logging.getLogger(__name__)


class Tasks:
    def __init__(
        self,
        *,
        signer: Signer,
        clock: Clock,
        journal: Journal,
        settings: DaemonSettings,
        work: Callable[[Execution], Awaitable[Attempt]],
        refusal: Callable[[TaskOrder], str | None],
        on_change: Callable[[], None],
        company: Callable[[TaskOrder], Hashable | None] = lambda order: None,
    ) -> None:
        """``company``: tasks for which it returns the same can run as one; None: alone. ``work`` runs a task that has its slot; ``refusal`` says why an
        order cannot be taken now, or None."""
        self._peer_id, self._clock, self._journal, self._settings = signer.peer_id, clock, journal, settings
        self._work, self._refusal, self._on_change = work, refusal, on_change
        self._queue: JobQueue[Execution] = JobQueue(capacity=settings.queue_capacity, aging=settings.aging_seconds, slots=settings.slots)
        self._recorder = Recorder(signer, journal)
        self._ledger = Ledger(journal, delay=settings.tidy_delay)
        self._finished = Finished(journal, signer.peer_id, settings.remembered_tasks)
        self._outbox = Outbox(settings.kept_attempts)
        self._here: dict[Place, dict[str, Execution]] = {}
        """What is not finished, by task key within its place."""
        self._accepting: dict[Place, trio.Event] = {}
        self._entering = 0
        """Orders that are being written down."""
        self._cancelled: dict[Place, Ballot] = {}
        """Cancelled before they came: a cancel may overtake its order."""
        self.running = 0
        self.riding = 0
        """Tasks that run beside others, without a slot."""
        self._company = company
        self._nursery: trio.Nursery | None = None
        self._left = trio.Event()
        self.counters = dict.fromkeys(COUNTED, 0)

    # --- life ------------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; `hand_back` comes before that."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._recorder.run)
            nursery.start_soon(self._ledger.run)
            await self._recall(nursery)
            self._nursery = nursery
            task_status.started()

    async def _recall(self, nursery: trio.Nursery) -> None:
        """What an earlier run of this node left: attempts to offer, and tasks that it did not finish."""
        for row, task in (await self._ledger.open()).items():
            entry = await self._finished.find(task.key)
            if entry is not None:
                self._free(self._outbox.keep(entry, row))
            elif task.entry or task.task_key in self._here.get((task.job, task.task, task.attempt), {}):
                self._ledger.release(row)  # finished, and since dropped with its job's record; or marked twice: see `Ledger`
            else:
                execution = Execution(task.order(), task.ballot, row)
                self._here.setdefault(execution.place, {})[task.task_key] = execution
                self.counters["interrupted"] += 1
                error = Unavailable("the node restarted before the task was done", hint="The task can run again.")
                lost = failed_attempt(execution.order, self._peer_id, error, interrupted=True)
                nursery.start_soon(self._execute, execution, lost)

    def close_intake(self) -> None:
        """From now on orders are refused as `Unavailable`; what is here goes on."""
        self._nursery = None

    async def hand_back(self) -> None:
        """Ends what is here with failed, retryable attempts. At most ``stop_grace`` seconds."""
        self.close_intake()
        for execution in list(self._all()):
            execution.cancel("stopping")
        with trio.move_on_after(self._settings.stop_grace):
            await self.wait_idle()
            try:
                await self._ledger.tidy()
            except DimError as e:
                _log.info("task rows stay as they are", extra={"reason": e.message})

    async def wait_idle(self) -> None:
        """Returns when no task is here."""
        while self._here:
            await self._left.wait()

    # --- callers ---------------------------------------------------------------------------------

    async def watch(self, order: TaskOrder) -> AsyncGenerator[TaskUpdate]:
        """See `dimnode.ports.TaskService.run_task`."""
        execution = await self._accept(order)
        execution.watchers += 1
        try:
            async with aclosing(execution.watch()) as updates:
                async for update in updates:
                    yield update
            self._delivered(execution)
        finally:
            execution.watchers -= 1
            self._keep_unwatched(execution)

    async def cancel(self, job: str, task: str, attempt: int, ballot: Ballot) -> bool:
        """See `dimnode.ports.TaskService.cancel_task`."""
        check_task(job, task, attempt)
        place = (job, task, attempt)
        await self._fence(job, ballot)
        while (accepting := self._accepting.get(place)) is not None:
            await accepting.wait()
        found = self._here.get(place)
        if found is None:
            self._cancelled[place] = ballot
            while len(self._cancelled) > self._settings.remembered_tasks:
                del self._cancelled[next(iter(self._cancelled))]
            return False
        for execution in found.values():
            execution.cancel("cancelled")
        return True

    async def attempts_of(self, job: str, ballot: Ballot) -> TaskReport:
        """See `dimnode.ports.TaskService.attempts_of`."""
        check_task(job, "-", 0)
        await self._fence(job, ballot)
        for place, accepting in list(self._accepting.items()):
            if place[0] == job:  # it may have passed the fence before
                await accepting.wait()
        finished = await self._finished.of_job(job)
        running = tuple((task, attempt) for j, task, attempt in self._here if j == job)
        return TaskReport(finished=finished, running=running)

    def unfetched(self) -> tuple[SignedEntry, ...]:
        return self._outbox.entries()

    def fetched(self, entry_ids: Collection[str]) -> None:
        self._free(self._outbox.take(entry_ids))

    async def wait_unfetched(self, since: int) -> int:
        return await self._outbox.wait(since)

    def statistics(self) -> QueueStatistics:
        return self._queue.statistics(self._clock.monotonic())

    def kept(self) -> int:
        return len(self._outbox)

    def waiting(self) -> int:
        return len(self._queue)

    def queued(self) -> Iterator[TaskOrder]:
        """Orders that wait, in no order; of many only some."""
        return (e.order for e in self._queue.waiting())

    # --- acceptance ------------------------------------------------------------------------------

    async def _accept(self, order: TaskOrder) -> Execution:
        """Raises `Unavailable`, `Fenced`, `ResourceExhausted`, `InvalidArgument`."""
        check_order(order)
        execution = Execution(order, order.ballot)
        async with self._alone(execution.place):
            known = self._here.get(execution.place, {}).get(order.task_key)
            entry = await self._finished.find(execution.key) if known is None else None
            if known is None and entry is None:
                await self._enter(execution)
                for other in self._here.setdefault(execution.place, {}).values():
                    other.cancel("cancelled")  # other work under the same number, by an owner that is fenced now
                self._start(execution)
                return execution
        await self._fence(order.job, order.ballot)
        if known is not None:
            self._adopt(known, order)
            return known
        assert entry is not None
        self.counters["repeated"] += 1
        execution.finish(entry)
        return execution

    @asynccontextmanager
    async def _alone(self, place: Place) -> AsyncGenerator[None]:
        """One order for a place at a time: the second finds what became of the first."""
        while (other := self._accepting.get(place)) is not None:
            await other.wait()
        done = self._accepting[place] = trio.Event()
        try:
            yield
        finally:
            del self._accepting[place]
            done.set()

    def _adopt(self, known: Execution, order: TaskOrder) -> None:
        self.counters["adopted"] += 1
        if known.ballot < order.ballot:
            known.ballot = order.ballot
            known.scope.deadline = self._deadline(order)

    async def _enter(self, execution: Execution) -> None:
        """Fenced and accepted in one commit; then it is in the queue."""
        order = execution.order
        self._admit(order)
        self._entering += 1
        try:
            execution.row = await self._ledger.reserve(mark(order))
            await together(partial(self._fence, order.job, order.ballot), partial(self._ledger.write, execution.row))
            if self._nursery is None:
                raise _not_taken()
            execution.ticket = self._queue.push(execution, order.priority, self._clock.monotonic())
        except BaseException:
            if execution.row is not None:
                self._ledger.release(execution.row)
            raise
        finally:
            self._entering -= 1

    def _admit(self, order: TaskOrder) -> None:
        """Raises what keeps this order out, before anything is written for it."""
        if self._nursery is None:
            raise _not_taken()
        s = self._settings
        reason = self._refusal(order)
        try:
            if reason is not None:
                raise ResourceExhausted(reason, hint="Use another node.", retry_after=s.resource_interval)
            self._queue.require(order.priority, self._entering + self.running - s.slots)
        except ResourceExhausted:
            self.counters["refused"] += 1
            raise

    def _start(self, execution: Execution) -> None:
        assert self._nursery is not None
        execution.scope.deadline = self._deadline(execution.order)
        execution.stage("accepted")
        self._here[execution.place][execution.order.task_key] = execution
        self.counters["accepted"] += 1
        if execution.ballot <= self._cancelled.get(execution.place, _LOWEST):
            execution.cancel("cancelled")
        self._nursery.start_soon(self._execute, execution)
        self._dispatch()

    def _deadline(self, order: TaskOrder) -> float:
        return trio.current_time() + (self._settings.default_timeout if order.timeout is None else order.timeout)

    async def _fence(self, job: str, ballot: Ballot) -> None:
        """Raises `Fenced`, `InvalidArgument`."""
        if leaps(ballot, 0):  # never so for honest owners: what is known is asked for only then
            known = await self._journal.raise_ballot(job, _LOWEST)
            if leaps(ballot, known.n):
                raise InvalidArgument("the ballot's number is out of reach", hint="Ballots grow by one with each takeover.")
        highest = await self._journal.raise_ballot(job, ballot)
        if highest != ballot:
            self.counters["fenced"] += 1
            raise Fenced(f"ballot {highest.n} of {highest.peer} owns this job", hint="Merge with its owner.")

    # --- execution -------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Gives free slots to whoever is next."""
        while self.running < self._settings.slots:
            ticket = self._queue.pop()
            if ticket is None:
                return
            self.running += 1
            self._begin(ticket.item)
            self._take_along(ticket.item)

    def _begin(self, execution: Execution) -> None:
        execution.started = self._clock.wall()
        execution.turn.set()

    def _take_along(self, first: Execution) -> None:
        """Waiting tasks that run together with this one cost no slot."""
        most = self._settings.agents.batch.most_requests - 1
        key = self._company(first.order) if most and len(self._queue) else None
        if key is None:
            return
        for ticket in self._queue.pop_like(lambda e: self._company(e.order) == key, most):
            ticket.item.rides = True
            self.riding += 1
            self._begin(ticket.item)

    async def _execute(self, execution: Execution, attempt: Attempt | None = None) -> None:
        """From the queue to the journal, whatever happens in between. ``attempt``: how it ended already."""
        try:
            await self._conclude(execution, attempt or await self._in_turn(execution))
        finally:
            if execution.entry is None and execution.error is None:
                execution.fail(Unavailable("the node is stopping"))
            self._forget(execution)
            self._on_change()

    async def _in_turn(self, execution: Execution) -> Attempt:
        begun = self._clock.monotonic()
        try:
            return await self._attempt(execution)
        finally:
            ticket, execution.ticket = execution.ticket, None  # it holds the execution, too: nobody would free the two
            if ticket is not None and not self._queue.cancel(ticket):
                self.riding -= execution.rides
                self.running -= not execution.rides
                self._queue.finished(self._clock.monotonic() - begun)
            self._dispatch()

    async def _attempt(self, execution: Execution) -> Attempt:
        order, error, stopped = execution.order, None, False
        try:
            with execution.scope:
                await execution.turn.wait()
                return await self._work(execution)
        except DimError as e:
            error = e
        except Exception:  # noqa: BLE001 - a mistake of ours fails one task, never the node; it is logged
            _log.exception("task failed unexpectedly", extra={"job": order.job, "task": order.task})
            error = DimError("the node failed at this task", hint="Its log says more.")
        if error is None and execution.why == "cancelled":
            error = Cancelled("the task was cancelled")
        elif error is None and execution.why == "stopping":
            error, stopped = Unavailable("the node stopped before the task was done", hint="Another node can run it."), True
        elif error is None:
            where = "while it ran" if execution.turn.is_set() else "in the node's queue"
            error = DeadlineExceeded(f"the task's time was up {where}")
        return failed_attempt(order, self._peer_id, error, execution.why, interrupted=stopped, shortage=isinstance(error, NoRoom))

    # --- the end of a task -----------------------------------------------------------------------

    async def _conclude(self, execution: Execution, attempt: Attempt) -> None:
        """Into the journal before anyone hears of it."""
        try:
            attempt, entry = await self._write_down(execution, attempt)
        except DimError as e:
            # its row says "accepted": after a restart it has been interrupted
            _log.warning("an attempt cannot be written down", extra={"job": attempt.job, "task": attempt.task, "reason": e.message})
            execution.fail(e)
        else:
            self.counters[attempt.status] += 1
            self._finished.add(execution.key, entry)
            execution.finish(entry)
            self._keep_unwatched(execution)

    async def _write_down(self, execution: Execution, attempt: Attempt) -> tuple[Attempt, SignedEntry]:
        """Tries as often as it takes. Callers are told at the first failure, so that they can turn elsewhere."""
        assert execution.row is not None
        beside = partial(self._ledger.finished, execution.row)
        while True:
            try:
                return attempt, await self._recorder.record(attempt, beside)
            except (ResourceExhausted, Unavailable) as e:
                if self._recorder.closed:
                    raise
                if execution.error is None:
                    self.counters["unwritten"] += 1
                execution.fail(e)
            except DimError as e:
                if attempt.status != "completed":
                    raise
                # nothing but outputs can be so odd that no record holds them
                attempt = failed_attempt(execution.order, self._peer_id, e)
                continue
            await trio.sleep(self._settings.write_retry)

    def _forget(self, execution: Execution) -> None:
        place = self._here[execution.place]
        del place[execution.order.task_key]
        if not place:
            del self._here[execution.place]
        self._left.set()
        self._left = trio.Event()

    def _delivered(self, execution: Execution) -> None:
        assert execution.entry is not None
        self.fetched((execution.entry.id,))
        if execution.row is not None:
            self._ledger.release(execution.row)
            execution.row = None

    def _keep_unwatched(self, execution: Execution) -> None:
        if execution.entry is not None and execution.row is not None and not execution.watchers:
            row, execution.row = execution.row, None
            self._free(self._outbox.keep(execution.entry, row))

    def _free(self, rows: Collection[int]) -> None:
        for row in rows:
            self._ledger.release(row)

    def _all(self) -> Iterator[Execution]:
        for executions in self._here.values():
            yield from executions.values()


def _not_taken() -> Unavailable:
    return Unavailable("the node takes no new tasks", hint="Use another node.")
