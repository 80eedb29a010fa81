"""One task: found, or placed, sent, followed, tried again elsewhere.

Each decision (assign) is in the job's record before it takes effect; each attempt is signed by its
executor and added to the record as it is. What is done is not done again: a finished attempt with the same task key
counts whoever ordered it, and a node that has an assignment which it has not answered gets that very attempt
again, not a new one: it goes on with it, answers it, or starts it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import structlog
import trio

from dimnode.core.job_view import AttemptFact, JobView
from dimnode.domain.model import ModelManifest, ModelRef
from dimnode.domain.record import Assign, Attempt, Ballot, SignedEntry, Void
from dimnode.domain.task import TaskOrder
from dimnode.errors import Code, DimError, Fenced, InvalidArgument, NotFound, PermissionDenied, ResourceExhausted, Unavailable
from dimnode.orchestrator.inputs import cabinet_of, inputs_of
from dimnode.orchestrator.selection import Choice, Selector
from dimnode.orchestrator.settings import OrchestratorSettings
from dimnode.orchestrator.takeover import unanswered
from dimnode.orchestrator.task_calls import Call, TaskCalls, problem_of
from dimnode.orchestrator.tries import Failed, Refused, Short, Tries, Unreached, given_up
from dimnode.orchestrator.values import Values
from dimnode.orchestrator.work import OutputGone, Seek, Work
from dimnode.ports import Clock, Models
from dimnode.records.table import RecordTable
from patterns.api import TaskPlan

log = structlog.get_logger(__name__)

_MENDABLE = frozenset({Code.UNAVAILABLE, Code.INTERNAL, Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.ABORTED})
"""Failures of a call that another node, or another try, may not have."""
_INPUT_GONE = frozenset({Code.UNAVAILABLE, Code.DATA_LOSS, Code.NOT_FOUND})
"""What a node says that could not get an input."""


class TaskRunner:
    def __init__(
        self,
        table: RecordTable,
        calls: TaskCalls,
        models: Models,
        selector: Selector,
        values: Values,
        clock: Clock,
        settings: OrchestratorSettings,
    ) -> None:
        self._table = table
        self._calls = calls
        self._models = models
        self._selector = selector
        self._values = values
        self._clock = clock
        self._settings = settings

    async def run(self, work: Work, plan: TaskPlan) -> None:
        """Returns when the task is completed (``work.done`` has the attempt) or has failed for good (``work.failures`` says
        why). Raises `Fenced` if another owner drives the job, `OutputGone` if an input must be made again first."""
        limit = plan.timeout if plan.timeout is not None else math.inf
        started = trio.current_time()
        work.active += 1
        try:
            with trio.move_on_after(limit) as scope:
                try:
                    work.done[plan.key] = await self._seek(work, plan, started + limit)
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
        finally:
            work.waiting.pop(plan.key, None)
            work.placed.pop(plan.key, None)
            work.sought.pop(plan.key, None)
            work.active -= 1
        work.lend_if_stuck()

    async def _seek(self, work: Work, plan: TaskPlan, deadline: float) -> AttemptFact:
        ref, manifest = await self._model(work, plan)
        inputs = inputs_of(plan, manifest, work.form, lambda key: _done(work, key), work.aggregates)
        seek = Seek(plan, ref, manifest, inputs)
        if (found := await self._found(work, seek)) is not None:
            return found
        work.sought[plan.key] = seek
        with seek.scope:
            seek.fact = await self._until_done(work, seek, deadline)
        assert seek.fact is not None  # its scope is cancelled only once it has one
        return seek.fact

    # --- what is done already ---

    async def _found(self, work: Work, seek: Seek) -> AttemptFact | None:
        """A finished attempt of a former owner, if its output can still be had; else it is void."""
        for fact in self._table.view(work.job).completed.get(seek.plan.key, ()):
            if seek.answered_by(fact):
                gone = await self._output_gone(fact)
                if gone is None:
                    return fact
                log.info("task.output_gone", job=work.job, task=seek.plan.key, node=fact.attempt.node, reason=gone)
                self._table.note(work.job, Void(job=work.job, ballot=work.ballot, attempt_id=fact.id, reason=gone))
        return None

    async def _output_gone(self, fact: AttemptFact) -> str | None:
        """Why the output cannot be had. A node that lives is taken to have what it made: who needs it will see."""
        node = fact.attempt.node
        if await self._values.here(fact.attempt.outputs):
            return None
        await self._wait_known(node)
        return None if self._selector.state(node) == "alive" else await self._values.gone(fact.attempt.outputs, fact.attempt.job, (node,))

    async def _wait_known(self, node: str) -> None:
        """A node that this one does not know yet, having just come up itself, is waited for a little."""
        with trio.move_on_after(self._settings.adopt_wait):
            while self._selector.state(node) is None:
                await self._selector.wait_changed(self._selector.version())

    def look(self, work: Work, view: JobView) -> None:
        """The record grew: an attempt that is being sought may have come by another way."""
        for key, seek in list(work.sought.items()):
            if seek.fact is None:
                seek.fact = next((f for f in view.completed.get(key, ()) if seek.answered_by(f)), None)
                if seek.fact is not None:
                    seek.scope.cancel()

    async def call_off(self, assigns: Sequence[Assign], ballot: Ballot) -> None:
        """Tells the nodes of these assignments to stop; one that does not hear it in time goes on."""
        async with trio.open_nursery() as nursery:
            for assign in assigns:
                if self._there(assign.node):
                    nursery.start_soon(self._calls.tell_cancelled, assign.node, assign, ballot)

    # --- trying ---

    async def _until_done(self, work: Work, seek: Seek, deadline: float) -> AttemptFact:
        plan = seek.plan
        tries = self._tries(work, seek)
        retries = work.form.form.retries if work.form.form.retries is not None else self._settings.retries
        spared = (self._settings.interruptions, self._settings.shortages)
        if tries.failures(*spared) > retries:
            raise given_up(plan, tries)
        while True:
            assign = await self._adoptable(work, seek, tries)
            node = assign.node if assign is not None else await self._place(work, seek, tries)
            try:
                with self._selector.sent(node, seek.ref):
                    return await self._attempt(work, seek, node, tries, deadline)
            except Failed as failed:
                error = tries.last = failed.error
                tries.failed_nodes.append(node)
                tries.interrupted += failed.interrupted
                log.info("task.attempt_failed", job=work.job, task=plan.key, node=node, code=error.code.value, reason=error.message)
                if tries.failures(*spared) > retries:
                    raise given_up(plan, tries) from None
            except Refused as refused:
                tries.shortages += isinstance(refused, Short)
                self._note_wait(work, plan, node, tries, refused)
                if tries.failures(*spared) > retries:
                    raise given_up(plan, tries) from None
            await trio.sleep(self._backoff(len(tries.failed_nodes) + tries.refusals))

    def _note_wait(self, work: Work, plan: TaskPlan, node: str, tries: Tries, refused: Refused) -> None:
        """The model has not run: the task waits, for as long as its job may. One that the job can do without waits less for nodes
        out of reach: raises `Unavailable` then."""
        tries.last = refused.error
        tries.refusals += 1
        busy, unreached = refused.error.code == Code.RESOURCE_EXHAUSTED, isinstance(refused, Unreached)
        said = f"has no room for it now ({refused.error.message})"
        why = said if busy else "cannot be reached" if unreached else "does not take tasks from this orchestrator"
        work.waiting[plan.key] = f"node {self._selector.name(node)}, which {why}"
        tries.unwilling.pop(node, None)
        tries.unwilling[node] = None
        if not unreached:
            tries.unreached_since = None
            return
        now = trio.current_time()
        tries.unreached_since = now if tries.unreached_since is None else tries.unreached_since
        if plan.optional and now - tries.unreached_since >= self._settings.optional_wait:
            raise Unavailable(f"no node that could run task {plan.key} can be reached")

    def _tries(self, work: Work, seek: Seek) -> Tries:
        key = seek.plan.key
        failed = [f.attempt for f in self._table.view(work.job).failed.get(key, ()) if f.id not in work.excused]
        adopt = [
            *work.findings.unbegun.get(key, ()),
            *(a for a in work.findings.silent.get(key, ()) if self._selector.state(a.node) in ("alive", None)),
            *work.findings.running.get(key, ()),
        ]
        return Tries(
            failed_nodes=[a.node for a in failed if not a.shortage],
            shortages=sum(a.shortage for a in failed),
            interrupted=sum(a.interrupted for a in failed),
            adopt=[a for a in adopt if a.task_key == seek.key(a.node)],
            last=problem_of(failed[-1]) if failed else None,
        )

    async def _adoptable(self, work: Work, seek: Seek, tries: Tries) -> Assign | None:
        """The next assignment of a former owner to go on with."""
        while tries.adopt:
            assign = tries.adopt.pop()
            work.waiting[seek.plan.key] = f"node {self._selector.name(assign.node)}, which may run it already"
            await self._wait_known(assign.node)
            if not self._there(assign.node):
                continue
            await work.place.retake()
            work.waiting.pop(seek.plan.key, None)
            work.placed[seek.plan.key] = assign.node
            return assign
        return None

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

    async def _place(self, work: Work, seek: Seek, tries: Tries) -> str:
        """The best node now; waits for one to appear. The tasks of one job go to different nodes where there are
        enough; a node that failed this task is taken again only if there is no other."""
        plan, ref, manifest = seek.plan, seek.ref, seek.manifest
        gone_since = math.inf
        while True:
            version = self._selector.version()
            budget = self._selector.budget_left(work.form, self._table.view(work.job), _others(work.placed, plan.key))
            no_good = {*tries.failed_nodes, *tries.unwilling}
            taken = set(_others(work.placed, plan.key).values()) - no_good
            choice = self._selector.choose(plan, ref, manifest, budget, avoid=no_good | taken)
            if choice.node in no_good and taken:
                choice = self._selector.choose(plan, ref, manifest, budget, avoid=no_good)
            if choice.node in tries.unwilling:
                choice = self._in_turn(seek, tries, budget) or choice
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

    def _in_turn(self, seek: Seek, tries: Tries, budget: float | None) -> Choice | None:
        """No node is left that has not refused: the one that did so longest ago. The best of them, which a full disk makes idle, may
        be the last to change its mind."""
        no_good = {*tries.failed_nodes, *tries.unwilling}
        for node in tries.unwilling:
            choice = self._selector.choose(seek.plan, seek.ref, seek.manifest, budget, avoid=no_good - {node})
            if choice.node == node:
                return choice
        return None

    async def _wait(self, work: Work, version: int) -> None:
        work.stuck += 1
        work.lend_if_stuck()
        try:
            await self._selector.wait_changed(version)
            await trio.sleep(work.place.lent * self._settings.replan_cost)
        finally:
            work.stuck -= 1

    # --- one attempt ---

    async def _attempt(self, work: Work, seek: Seek, node: str, tries: Tries, deadline: float) -> AttemptFact:
        """Raises `Refused`, `Failed`, `OutputGone`, or what no other node could mend."""
        assign_id, assign = await self._assigned(work, seek, node, tries)
        order = self._order(work, seek, assign, deadline)
        call = Call(lambda: self._note_heard(work, tries, assign_id, assign))
        try:
            entry = await self._answer(work, seek, node, order, call)
            fact = self._calls.judge(order, node, entry)
        except (ResourceExhausted, PermissionDenied) as e:
            self._note_refusal(work, tries, assign_id, e)
            raise Refused(e) from None
        except DimError as e:
            if isinstance(e, Fenced) or e.code not in _MENDABLE:
                raise
            if isinstance(e, Unavailable) and not call.accepted and self._there(node):
                raise Unreached(e) from None
            tries.closed.add((node, assign.attempt))
            raise Failed(e) from None
        if fact.attempt.status == "completed":
            return fact
        problem = problem_of(fact.attempt)
        if not (fact.attempt.retryable or fact.attempt.status == "cancelled"):
            raise problem
        if fact.attempt.shortage:
            raise Short(problem)
        await self._check_inputs(work, seek, fact, problem)
        raise Failed(problem, interrupted=fact.attempt.interrupted)

    async def _answer(self, work: Work, seek: Seek, node: str, order: TaskOrder, call: Call) -> SignedEntry:
        """If the connection breaks while a node works on the task, it still does: it is asked again until it answers, or is
        known to be dead."""

        def unwanted() -> bool:
            return seek.fact is not None or self._past(order, sent)

        sent = trio.current_time()
        broken = 0
        while True:
            try:
                return await self._calls.follow(work, node, order, call, unwanted)
            except Unavailable:
                if not call.accepted or not self._there(node) or self._past(order, sent):
                    raise
            broken += 1
            work.waiting[order.task] = f"node {self._selector.name(node)}, which works on it and cannot be reached"
            await trio.sleep(self._backoff(broken))

    def _there(self, node: str) -> bool:
        """Whether the node may well be alive."""
        return self._selector.state(node) in ("alive", "suspect")

    @staticmethod
    def _past(order: TaskOrder, sent: float) -> bool:
        """Whether the task's own time is up."""
        return order.timeout is not None and trio.current_time() >= sent + order.timeout

    async def _assigned(self, work: Work, seek: Seek, node: str, tries: Tries) -> tuple[str, Assign]:
        """The assignment of this task to this node, durable: the one that the node has not answered yet, or a new one."""
        view = self._table.view(work.job)
        task, key = seek.plan.key, seek.key(node)
        same = [
            (i, a)
            for i, a in unanswered(self._table.record(work.job))
            if (a.task, a.node, a.task_key) == (task, node, key) and (a.node, a.attempt) not in tries.closed
        ]
        current = [(i, a) for i, a in same if a.ballot == work.ballot]
        if current and not work.pending:
            return current[-1]
        assign = Assign(
            job=work.job,
            ballot=work.ballot,
            task=task,
            attempt=same[-1][1].attempt if same else view.last_attempt.get(task, 0) + 1,
            node=node,
            task_key=key,
            model_cid=seek.ref.cid,
            at=self._clock.wall(),
        )
        await self._append(work, assign)
        return next((i for i, a in self._table.record(work.job).items() if a == assign), ""), assign

    async def _append(self, work: Work, assign: Assign) -> None:
        """Durable before the node hears of it. While this node's disk is full the task waits. Raises `Fenced`."""
        tried = 0
        while True:
            try:
                async with work.first:
                    if work.pending:
                        await self._take_along(work, assign)
                        break
                self._still_mine(work)
                await self._table.append(work.job, assign)
                break
            except ResourceExhausted as e:
                work.waiting[assign.task] = f"room for the job's record: {e.message}"
            tried += 1
            await trio.sleep(self._backoff(tried))
        work.waiting.pop(assign.task, None)
        self._still_mine(work)

    async def _take_along(self, work: Work, assign: Assign) -> None:
        self._still_mine(work)
        durable = False
        work.pending = False  # what is noted from now on waits for the next assignment
        try:
            await self._table.append(work.job, assign)
            durable = True
        finally:
            work.pending = work.pending or not durable

    def _still_mine(self, work: Work) -> None:
        owner = self._table.view(work.job).owner
        if owner != work.ballot:
            raise Fenced(f"job {work.job} has a new owner", hint="It goes on there.")

    def _note_heard(self, work: Work, tries: Tries, assign_id: str, assign: Assign) -> None:
        work.waiting.pop(assign.task, None)
        if assign_id in tries.refused:
            tries.refused.discard(assign_id)
            self._table.note(work.job, msgspec.structs.replace(assign, at=self._clock.wall()))

    def _note_refusal(self, work: Work, tries: Tries, assign_id: str, why: DimError) -> None:
        """For people, who would think that the node works on it; once is enough."""
        if assign_id not in tries.refused:
            tries.refused.add(assign_id)
            entry = Void(job=work.job, ballot=work.ballot, attempt_id=assign_id, reason=f"{why.code.value}: {why.message}")
            self._table.note(work.job, entry)

    async def _check_inputs(self, work: Work, seek: Seek, failed: AttemptFact, problem: DimError) -> None:
        """A task that failed for want of what another one made cannot succeed anywhere before that is made again."""
        if problem.code not in _INPUT_GONE:
            return
        for source in seek.plan.sources:
            if source.kind == "task" and source.ref in work.done:
                made = work.done[source.ref].attempt
                gone = await self._values.gone(made.outputs, work.job, (made.node,))
                if gone is not None:
                    work.excused.add(failed.id)
                    raise OutputGone(source.ref, gone)

    def _order(self, work: Work, seek: Seek, assign: Assign, deadline: float) -> TaskOrder:
        plan, ref = seek.plan, seek.ref
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
            inputs=seek.inputs,
            cabinet=cabinet_of(plan),
            reduce=plan.reduce,
            vote_output=plan.vote_output,
            rename_outputs=dict(plan.rename_outputs),
            priority=work.form.form.priority,
            timeout=left if math.isfinite(left) else None,
            providers=self._selector.providers(ref, self._producers(work, plan)),
            principal=self._principal(work.job),
        )

    def _producers(self, work: Work, plan: TaskPlan) -> tuple[str, ...]:
        """Nodes that made the tensors this task reads, and this node, which has the client's."""
        found = [work.done[s.ref].attempt.node for s in plan.sources if s.kind == "task" and s.ref in work.done]
        return (*found, work.ballot.peer)

    def _principal(self, job: str) -> str:
        core = self._table.view(job).core
        return core.principal if core else ""


def _done(work: Work, key: str) -> Attempt:
    found = work.done.get(key)
    if found is None:
        raise InvalidArgument(f"task {key} has no output yet")
    return found.attempt


def _others(placed: Mapping[str, str], task: str) -> dict[str, str]:
    return {t: peer for t, peer in placed.items() if t != task}
