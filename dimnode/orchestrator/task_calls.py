"""One attempt of a task at one node: sent, followed, its answer checked.

A task belongs to the job, not to the caller: a caller that goes away (its seat is lost, another owner came) leaves it
running for the next one, who sends the same attempt again. The node is told to stop only what nobody will want.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import aclosing

import structlog
import trio

from dimnode.core.job_record import EntryRefused
from dimnode.core.job_view import AttemptFact
from dimnode.core.record_gate import EntryRules
from dimnode.domain.record import Assign, Attempt, Ballot, SignedEntry
from dimnode.domain.task import TaskOrder
from dimnode.errors import Code, DimError, Unavailable
from dimnode.orchestrator.selection import Selector
from dimnode.orchestrator.settings import OrchestratorSettings
from dimnode.orchestrator.work import Work
from dimnode.ports import DaemonClient
from dimnode.records.table import RecordTable
from p2p.groups import leaves

log = structlog.get_logger(__name__)


class Call:
    """How one call went so far."""

    def __init__(self, on_heard: Callable[[], None]) -> None:
        """``on_heard``: called whenever the node says something of the task."""
        self.accepted = False
        self.entry: SignedEntry | None = None
        self._on_heard = on_heard

    def heard(self) -> None:
        self.accepted = True
        self._on_heard()


class TaskCalls:
    def __init__(
        self,
        table: RecordTable,
        client: DaemonClient,
        selector: Selector,
        settings: OrchestratorSettings,
        rules: EntryRules,
    ) -> None:
        self._table = table
        self._client = client
        self._selector = selector
        self._settings = settings
        self._rules = rules

    async def follow(self, work: Work, node: str, order: TaskOrder, call: Call, unwanted: Callable[[], bool]) -> SignedEntry:
        """The signed attempt. A node that is seen to die, or that is silent past the deadline, is `Unavailable`. When
        cancelled, the node is told if the job is over or the attempt is ``unwanted``."""
        dead, answered = trio.Event(), False
        grace = math.inf if order.timeout is None else order.timeout + self._settings.deadline_grace
        with trio.move_on_after(grace) as patience:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._leave_when_dead, node, dead, nursery.cancel_scope)
                    await self._receive(work, node, order, call)
                    answered = True
                    nursery.cancel_scope.cancel()
            except BaseExceptionGroup as group:
                refusals, others = group.split(DimError)
                if refusals is None or others is not None:
                    raise
                answered = True
                raise next(leaves(refusals)) from None
            finally:
                given_up = unwanted() or trio.current_time() >= patience.deadline or self._over(work)
                if not answered and not dead.is_set() and given_up:
                    await self.tell_cancelled(node, order, order.ballot)
        if call.entry is None:
            raise Unavailable(f"node {self._selector.name(node)} went silent while it worked on {order.task}")
        return call.entry

    def _over(self, work: Work) -> bool:
        return work.over or not self._table.holds(work.job) or self._table.view(work.job).terminal

    async def _receive(self, work: Work, node: str, order: TaskOrder, call: Call) -> None:
        async with aclosing(self._client.run_task(node, order)) as updates:
            async for update in updates:
                call.heard()
                if update.entry is not None:
                    call.entry = update.entry
                elif update.piece is not None:
                    if work.partial is not None:
                        work.partial(order.task, order.attempt, update.piece)
                elif work.stage is not None:
                    work.stage(update.stage)

    async def _leave_when_dead(self, node: str, dead: trio.Event, scope: trio.CancelScope) -> None:
        known = self._selector.state(node) is not None
        await self._selector.wait_dead(node)
        if known and self._selector.state(node) is None:
            # It said that it leaves: it goes on with what it has, or hands it back, and the call ends with it.
            await trio.sleep(self._settings.leaving_grace)
        dead.set()
        scope.cancel()

    async def tell_cancelled(self, node: str, task: TaskOrder | Assign, ballot: Ballot) -> None:
        with trio.move_on_after(self._settings.cancel_timeout, shield=True):
            try:
                await self._client.cancel_task(node, task.job, task.task, task.attempt, ballot)
            except DimError as e:
                log.debug("task.cancel_not_confirmed", job=task.job, task=task.task, node=node, reason=e.message)

    def judge(self, order: TaskOrder, node: str, entry: SignedEntry) -> AttemptFact:
        """The attempt, however it ended, now in the job's record. Raises `Unavailable` for an answer that is of no use."""
        name = self._selector.name(node)
        try:
            body = self._rules.check(entry)
        except EntryRefused as e:
            raise Unavailable(f"node {name} answered with an unusable receipt: {e}") from e
        if not isinstance(body, Attempt) or (body.job, body.task, body.attempt, body.task_key, body.node) != (
            order.job,
            order.task,
            order.attempt,
            order.task_key,
            node,
        ):
            raise Unavailable(f"node {name} answered for another task")
        self._table.note_signed(order.job, entry)
        return AttemptFact(entry.id, body)


def problem_of(attempt: Attempt) -> DimError:
    """Why an attempt that did not complete did not."""
    error = attempt.error
    code = Code(error.code) if error and error.code in Code.__members__ else Code.INTERNAL
    return DimError(error.message if error else f"the task was {attempt.status}", code=code, hint=error.hint if error else "")
