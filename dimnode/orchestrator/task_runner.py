"""One task: place it, send it, follow it, try again elsewhere.

Each decision (assign) is in the job's record before it takes effect; each attempt is signed by its
executor and added to the record as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

import structlog
import trio

from dimnode.core.job_record import EntryRefused, check_entry
from dimnode.domain.job_form import JobForm
from dimnode.domain.model import ModelManifest, ModelRef
from dimnode.domain.record import Assign, Attempt, Ballot, SignedEntry
from dimnode.domain.task import TaskInput, TaskOrder
from dimnode.domain.tensors import TensorValue
from dimnode.errors import Code, DimError, Fenced, InvalidArgument, NotFound, PermissionDenied, ResourceExhausted, TaskFailed, Unavailable
from dimnode.orchestrator.inputs import cabinet_of, inputs_of, task_key
from dimnode.orchestrator.places import Place
from dimnode.orchestrator.selection import Selector
from dimnode.orchestrator.settings import OrchestratorSettings
from dimnode.ports import Clock, DaemonClient, Models
from dimnode.records.table import RecordTable
from p2p.groups import leaves
from p2p.identity import verify
from patterns.api import TaskPlan

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Work:
    """What the tasks of one job share while it is driven."""

    job: str
    form: JobForm
    ballot: Ballot
    place: Place
    active: int = 0
    """Tasks that are not done."""
    stuck: int = 0
    """Those of them that no node can run now."""
    aggregates: dict[int, Mapping[str, TensorValue]] = field(default_factory=dict)
    """round -> outputs of its conclusion, for feedback."""
    failures: dict[str, DimError] = field(default_factory=dict)
    """Task key -> why it failed for good."""
    waiting: dict[str, str] = field(default_factory=dict)
    """Task key -> what it waits for."""
    placed: dict[str, str] = field(default_factory=dict[str, str])
    """Task key -> the node that it was given to last, while it is not done."""
    stage: Callable[[str], None] | None = None

    def lend_if_stuck(self) -> None:
        """A job whose tasks all wait for the swarm needs no place among those that are driven."""
        if self.active and self.stuck == self.active:
            self.place.lend()


@dataclass(slots=True)
class _Tries:
    """What was tried for one task so far."""

    number: int
    failed_nodes: list[str] = field(default_factory=list)
    last: DimError | None = None
    refusals: int = 0
    unwilling: set[str] = field(default_factory=set[str])
    """Nodes that do not believe that this one holds a seat: one that just won it is not known everywhere yet."""


class TaskRunner:
    def __init__(
        self,
        table: RecordTable,
        client: DaemonClient,
        models: Models,
        selector: Selector,
        clock: Clock,
        settings: OrchestratorSettings,
    ) -> None:
        self._table = table
        self._client = client
        self._models = models
        self._selector = selector
        self._clock = clock
        self._settings = settings

    async def run(self, work: Work, plan: TaskPlan) -> None:
        """Returns when the task is completed (an attempt is in the record) or has failed for good
        (``work.failures`` says why). Cancelling it tells the node. Raises `Fenced` if another owner drives the job."""
        view = self._table.view(work.job)
        tries = _Tries(number=view.last_attempt.get(plan.key, 0), failed_nodes=[f.attempt.node for f in view.failed.get(plan.key, ())])
        limit = plan.timeout if plan.timeout is not None else math.inf
        started = trio.current_time()
        work.active += 1
        with trio.move_on_after(limit) as scope:
            try:
                await self._until_done(work, plan, tries, started + limit)
            except Fenced:
                raise
            except DimError as e:
                work.failures[plan.key] = e
        if scope.cancelled_caught:
            waiting = work.waiting.get(plan.key)
            what = f"; it waited for {waiting}" if waiting else ""
            work.failures[plan.key] = DimError(
                f"task {plan.key} was not done within its timeout of {limit:g} s{what}",
                code=Code.DEADLINE_EXCEEDED,
                hint="Raise the step's timeout, or free the node.",
            )
        work.waiting.pop(plan.key, None)
        work.placed.pop(plan.key, None)
        work.active -= 1
        work.lend_if_stuck()

    async def _until_done(self, work: Work, plan: TaskPlan, tries: _Tries, deadline: float) -> None:
        ref, manifest = await self._model(work, plan)
        inputs = inputs_of(plan, manifest, work.form, lambda key: self._done(work.job, key), work.aggregates)
        retries = work.form.form.retries if work.form.form.retries is not None else self._settings.retries
        while True:
            node = await self._place(work, plan, ref, manifest, tries)
            error = await self._attempt(work, plan, ref, manifest, inputs, node, tries, deadline)
            if error is None:
                return
            tries.last = error
            if isinstance(error, Fenced):
                raise error
            if isinstance(error, (ResourceExhausted, PermissionDenied)):
                tries.refusals += 1
                why = "is busy" if isinstance(error, ResourceExhausted) else "does not take tasks from this orchestrator"
                work.waiting[plan.key] = f"node {self._selector.name(node)}, which {why}"
                if isinstance(error, PermissionDenied):
                    tries.unwilling.add(node)
            else:
                tries.failed_nodes.append(node)
                log.info("task.attempt_failed", job=work.job, task=plan.key, node=node, code=error.code.value, reason=error.message)
                if len(tries.failed_nodes) > retries:
                    raise _given_up(plan, tries)
            await trio.sleep(self._backoff(len(tries.failed_nodes) + tries.refusals))

    def _backoff(self, count: int) -> float:
        s = self._settings
        return min(s.retry_backoff_max, s.retry_backoff * 2 ** max(0, min(count, 16) - 1))

    async def _model(self, work: Work, plan: TaskPlan) -> tuple[ModelRef, ModelManifest]:
        """Waits while no live node has the model: it was known when the job was accepted."""
        while True:
            version = self._selector.version()
            try:
                ref = self._models.resolve(plan.model)
                return ref, await self._models.manifest(ref)
            except (NotFound, Unavailable) as e:
                work.waiting[plan.key] = f"model {plan.model}: {e.message}"
            await self._wait(work, version)

    async def _place(self, work: Work, plan: TaskPlan, ref: ModelRef, manifest: ModelManifest, tries: _Tries) -> str:
        """The best node now; waits for one to appear. The tasks of one job go to different nodes where there are
        enough; a node that failed this task is taken again only if there is no other."""
        gone_since = math.inf
        while True:
            version = self._selector.version()
            budget = self._selector.budget_left(work.form, self._table.view(work.job), _others(work.placed, plan.key))
            no_good = {*tries.failed_nodes, *tries.unwilling}
            taken = set(_others(work.placed, plan.key).values()) - no_good
            choice = self._selector.choose(plan, ref, manifest, budget, avoid=no_good | taken)
            if choice.node in no_good and taken:
                choice = self._selector.choose(plan, ref, manifest, budget, avoid=no_good)
            if choice.node is not None and not work.place.held:
                await work.place.retake()  # which may take a while: the swarm is looked at again
                continue
            if choice.node is not None:
                work.waiting.pop(plan.key, None)
                work.placed[plan.key] = choice.node
                return choice.node
            work.waiting[plan.key] = choice.reason
            patience = math.inf
            if plan.optional and self._selector.gone(plan.nodes):
                gone_since = min(gone_since, trio.current_time())
                patience = gone_since + self._settings.optional_wait - trio.current_time()
                if patience <= 0:
                    raise Unavailable(f"every node that could run task {plan.key} is gone")
            else:
                gone_since = math.inf
            with trio.move_on_after(patience):
                await self._wait(work, version)

    async def _wait(self, work: Work, version: int) -> None:
        work.stuck += 1
        work.lend_if_stuck()
        try:
            await self._selector.wait_changed(version)
            await trio.sleep(work.place.lent * self._settings.replan_cost)
        finally:
            work.stuck -= 1

    async def _assign(self, work: Work, assign: Assign) -> None:
        """Durable before the node hears of it. While this node's disk is full the task waits."""
        tried = 0
        while True:
            try:
                await self._table.append(work.job, assign)
            except ResourceExhausted as e:
                work.waiting[assign.task] = f"room for the job's record: {e.message}"
            else:
                work.waiting.pop(assign.task, None)
                return
            tried += 1
            await trio.sleep(self._backoff(tried))

    async def _attempt(
        self,
        work: Work,
        plan: TaskPlan,
        ref: ModelRef,
        manifest: ModelManifest,
        inputs: tuple[TaskInput, ...],
        node: str,
        tries: _Tries,
        deadline: float,
    ) -> DimError | None:
        """None on success, else why not. Raises errors that no other node could mend."""
        key = task_key(plan, ref.cid, inputs, node)
        tries.number += 1
        assign = Assign(
            job=work.job,
            ballot=work.ballot,
            task=plan.key,
            attempt=tries.number,
            node=node,
            task_key=key,
            model_cid=ref.cid,
            at=self._clock.wall(),
        )
        await self._assign(work, assign)
        order = self._order(work, plan, ref, inputs, assign, deadline)
        try:
            with self._selector.sent(node):
                entry = await self._follow(work, node, order)
        except (Unavailable, ResourceExhausted, Fenced, PermissionDenied) as e:
            return e
        except DimError as e:
            if e.code in (Code.INTERNAL, Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.ABORTED):
                return e
            raise
        return self._judge(work, order, node, entry)

    def _order(
        self, work: Work, plan: TaskPlan, ref: ModelRef, inputs: tuple[TaskInput, ...], assign: Assign, deadline: float
    ) -> TaskOrder:
        left = deadline - trio.current_time()
        return TaskOrder(
            job=work.job,
            task=plan.key,
            attempt=assign.attempt,
            ballot=work.ballot,
            task_key=assign.task_key,
            model_id=ref.id,
            model_cid=ref.cid,
            manifest_cid=ref.manifest_cid,
            inputs=inputs,
            cabinet=cabinet_of(plan),
            reduce=plan.reduce,
            vote_output=plan.vote_output,
            rename_outputs=dict(plan.rename_outputs),
            priority=work.form.form.priority,
            timeout=left if math.isfinite(left) else None,
            providers=self._selector.providers(ref, self._producers(work, plan)),
            principal=self._principal(work.job),
        )

    async def _follow(self, work: Work, node: str, order: TaskOrder) -> SignedEntry:
        """The signed attempt. A node that is seen to die, or that is silent past the deadline, is
        `Unavailable`. When cancelled, the node is told."""
        received: list[SignedEntry] = []
        dead = trio.Event()
        grace = math.inf if order.timeout is None else order.timeout + self._settings.deadline_grace
        answered = False
        try:
            with trio.move_on_after(grace):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._cancel_when_dead, node, dead, nursery.cancel_scope)
                    await self._receive(work, node, order, received)
                    answered = True
                    nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            refusals, others = group.split(DimError)
            if refusals is None or others is not None:
                raise
            answered = True
            raise next(leaves(refusals)) from None
        finally:
            if not answered and not dead.is_set():
                await self._tell_cancelled(node, order)
        if not received:
            raise Unavailable(f"node {self._selector.name(node)} went silent while it worked on {order.task}")
        return received[-1]

    async def _receive(self, work: Work, node: str, order: TaskOrder, received: list[SignedEntry]) -> None:
        async with aclosing(self._client.run_task(node, order)) as updates:
            async for update in updates:
                if update.entry is not None:
                    received.append(update.entry)
                elif work.stage is not None:
                    work.stage(update.stage)

    async def _cancel_when_dead(self, node: str, dead: trio.Event, scope: trio.CancelScope) -> None:
        await self._selector.wait_dead(node)
        dead.set()
        scope.cancel()

    async def _tell_cancelled(self, node: str, order: TaskOrder) -> None:
        with trio.move_on_after(self._settings.cancel_timeout, shield=True):
            try:
                await self._client.cancel_task(node, order.job, order.task, order.attempt, order.ballot)
            except DimError as e:
                log.debug("task.cancel_not_confirmed", job=order.job, task=order.task, node=node, reason=e.message)

    def _judge(self, work: Work, order: TaskOrder, node: str, entry: SignedEntry) -> DimError | None:
        try:
            body = check_entry(entry, verify)
        except EntryRefused as e:
            return Unavailable(f"node {self._selector.name(node)} answered with an unusable receipt: {e}")
        if not isinstance(body, Attempt) or (body.job, body.task, body.attempt, body.task_key, body.node) != (
            order.job,
            order.task,
            order.attempt,
            order.task_key,
            node,
        ):
            return Unavailable(f"node {self._selector.name(node)} answered for another task")
        self._table.note_signed(work.job, entry)
        if body.status == "completed":
            return None
        error = body.error
        code = Code(error.code) if error and error.code in Code.__members__ else Code.INTERNAL
        problem = DimError(error.message if error else f"the task was {body.status}", code=code, hint=error.hint if error else "")
        if body.retryable or body.status == "cancelled":
            return problem
        raise problem

    def _done(self, job: str, key: str) -> Attempt:
        found = self._table.view(job).attempts.get(key)
        if found is None:
            raise InvalidArgument(f"task {key} has no output yet")
        return found.attempt

    def _producers(self, work: Work, plan: TaskPlan) -> tuple[str, ...]:
        """Nodes that made the tensors this task reads, and this node, which has the client's."""
        view = self._table.view(work.job)
        found = [view.attempts[s.ref].attempt.node for s in plan.sources if s.kind == "task" and s.ref in view.attempts]
        return (*found, work.ballot.peer)

    def _principal(self, job: str) -> str:
        core = self._table.view(job).core
        return core.principal if core else ""


def _others(placed: Mapping[str, str], task: str) -> dict[str, str]:
    return {t: peer for t, peer in placed.items() if t != task}


def _given_up(plan: TaskPlan, tries: _Tries) -> DimError:
    last = tries.last
    nodes = len(set(tries.failed_nodes))
    return TaskFailed(
        f"task {plan.key} failed {len(tries.failed_nodes)} times on {nodes} node{'s' if nodes != 1 else ''}; last: {last.message if last else ''}",
        hint=(last.hint if last else "") or "`dimnode describe JOB` lists every attempt.",
    )
