"""The loop of one job: from its plan to its outcome.

The pattern engine decides, this shell acts: it starts the tasks the engine asks for, writes seals,
has rounds aggregated in a thread, and records the outcome. Everything it needs to know is a view of
the record, so a job that was interrupted anywhere, here or at another owner, is driven on by the same loop. Who owns
a job may end at any moment: then the drive stops at once and leaves the nodes at their work, for the new owner.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import structlog
import trio

from dimnode.core.job_view import AttemptFact, JobView, SealFact
from dimnode.domain import codec
from dimnode.domain.job_form import JobForm, from_plain
from dimnode.domain.model import ModelManifest
from dimnode.domain.record import Attempt, Checkpoint, ErrorInfo, OutcomeEntry, PlanEntry, SealEntry, Void
from dimnode.domain.tensors import TensorValue
from dimnode.errors import Code, DimError, Fenced, NotFound, Unavailable
from dimnode.orchestrator.checkpoints import Checkpoints
from dimnode.orchestrator.checkpoints import Place as CheckpointPlace
from dimnode.orchestrator.documents import result_plain, with_names
from dimnode.orchestrator.job_end import JobEnds
from dimnode.orchestrator.job_errors import error_of_failure
from dimnode.orchestrator.nodes import gather_facts, model_facts, models_of
from dimnode.orchestrator.ownership import Held
from dimnode.orchestrator.partials import PartialOutputs
from dimnode.orchestrator.places import Place
from dimnode.orchestrator.selection import Selector
from dimnode.orchestrator.settings import OrchestratorSettings
from dimnode.orchestrator.statuses import Statuses
from dimnode.orchestrator.task_runner import TaskRunner
from dimnode.orchestrator.values import Compute, Values
from dimnode.orchestrator.warming import WarmAhead
from dimnode.orchestrator.work import OutputGone, Work
from dimnode.ports import Clock, Models, Registry
from dimnode.records.table import RecordTable
from p2p.groups import leaves
from p2p.ipfs.api import BlockCorrupt, BlockMissing, ContentError, ContentStore
from p2p.ipfs.cid import DAG_CBOR, compute
from patterns.api import (
    Array,
    Conclusion,
    Engine,
    Fail,
    Finish,
    PatternError,
    Plan,
    Progress,
    Run,
    Seal,
    TaskPlan,
    TaskResult,
    TaskState,
    Wait,
)
from patterns.engines import make_engine, make_plan, plan_from_plain, plan_to_plain

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Parts:
    """What all drives of an orchestrator share."""

    table: RecordTable
    runner: TaskRunner
    selector: Selector
    models: Models
    registry: Registry
    store: ContentStore
    values: Values
    clock: Clock
    settings: OrchestratorSettings
    compute: Compute
    ends: JobEnds
    ahead: WarmAhead | None
    partials: PartialOutputs


class Drive:
    """One job, under one claim."""

    def __init__(self, parts: Parts, held: Held, place: Place) -> None:
        self._place = place
        self._p = parts
        self._job = held.job
        self._ballot = held.ballot
        self._held = held
        view = parts.table.view(held.job)
        assert view.core is not None
        self._timeout = view.core.timeout
        self._form: JobForm = from_plain(codec.decode_plain(view.core.spec))
        self._statuses = Statuses(held, parts.table, parts.clock)
        self._work = Work(
            job=held.job, form=self._form, ballot=held.ballot, place=place, findings=held.findings, stage=self._statuses.stage,
            partial=partial(parts.partials.tell, held.job),
        )  # fmt: skip
        self._started: set[str] = set()
        self._lost: Counter[str] = Counter()
        """Task key -> how often its output was lost."""
        self._plan_id = ""
        """Of the plan that this drive goes on with, as with the seals: what comes later does not change it."""
        self._seals: dict[int, SealFact] = {}
        """By round."""
        self._checkpoints = Checkpoints(parts.store, parts.values, parts.settings.probe_timeout)
        self._changed = trio.Event()
        self._first_model = models_of(self._form.config)[0]
        self._models_by_key: dict[str, str] = {}
        """Of round 0; later rounds run the job's one model."""
        self._done = False
        """The result is there, and its blocks go to the copies."""
        self.timed_out: OutcomeEntry | None = None

    def elapsed(self) -> float:
        return self._held.elapsed(self._p.clock.monotonic())

    def left(self) -> float:
        """Seconds of life that the job has left."""
        return max(0.0, self._timeout - self.elapsed())

    def _view(self) -> JobView:
        return self._p.table.view(self._job)

    async def run(self) -> None:
        if self.left() <= 0:
            self.timed_out = self._expired()
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._expire, nursery.cancel_scope)
            nursery.start_soon(self._watch, nursery.cancel_scope)
            with self._ending():
                await self._loop(nursery)
            nursery.cancel_scope.cancel()

    async def _expire(self, scope: trio.CancelScope) -> None:
        await trio.sleep(self.left())
        if self._done:  # in time: now its end is written without waiting for the copies any longer
            return
        self.timed_out = self._expired()
        self._work.over = True
        scope.cancel()

    async def _watch(self, scope: trio.CancelScope) -> None:
        """Stops the drive as soon as the record shows another owner, or the end; attempts may also come from elsewhere."""
        version = 0
        while True:
            try:
                version = await self._p.table.wait_changed(self._job, version)
                view = self._view()
            except NotFound:  # ended, and no longer in memory
                break
            if view.terminal or view.owner != self._ballot:
                break
            self._p.runner.look(self._work, view)
        scope.cancel()

    @contextmanager
    def _ending(self) -> Generator[None]:
        """An error that ends the job ends its tasks, too; one that says that the job is another's does not."""
        try:
            yield
        except Exception as e:
            self._work.over = not any(isinstance(c, Fenced) for c in leaves(e))
            raise

    async def _loop(self, nursery: trio.Nursery) -> None:
        engine = await self._plan(nursery)
        tasks = trio.CapacityLimiter(self._p.settings.max_tasks_per_job)
        while not self._view().terminal:
            await trio.lowlevel.checkpoint()
            self._changed = trio.Event()
            try:
                await self._step(engine, nursery, tasks)
            except OutputGone as gone:
                self._lose(gone)

    async def _step(self, engine: Engine, nursery: trio.Nursery, tasks: trio.CapacityLimiter) -> None:
        decision = engine.decide(self._progress())
        match decision:
            case Run():
                if await self._fed(engine, decision.tasks):
                    self._start(nursery, decision.tasks, tasks)
                    await self._changed.wait()
            case Wait():
                await self._changed.wait()
            case Seal():
                self._seal(decision)
            case Finish():
                await self._finish(engine, decision)
            case Fail():
                await self.fail(error_of_failure(decision, self._work))

    def _lose(self, gone: OutputGone) -> None:
        """What counted as done is not: its attempt is void, and so is what was sealed with it. Raises `Unavailable` if
        that happened too often."""
        retries = self._form.form.retries if self._form.form.retries is not None else self._p.settings.retries
        log.info("task.output_gone", job=self._job, task=gone.task, reason=gone.reason)
        self._lost[gone.task] += 1
        if self._lost[gone.task] > retries:
            raise Unavailable(gone.reason, hint="The nodes that keep intermediate results may be down.")
        fact = self._work.done.pop(gone.task, None) or self._sealed(gone.task)
        if fact is not None:
            self._p.table.note(self._job, Void(job=self._job, ballot=self._ballot, attempt_id=fact.id, reason=gone.reason))
            for round_ in [r for r, s in self._seals.items() if fact.id in s.seal.attempts.values()]:
                del self._seals[round_]
                self._work.aggregates.pop(round_, None)
        self._started.discard(gone.task)
        self._changed.set()

    async def _plan(self, nursery: trio.Nursery) -> Engine:
        """The engine on the plan in the record, or on one made now and recorded. Waits while the swarm
        has not what the job needs."""
        manifests = await self._manifests()
        stored = self._view().plan
        if stored is None:
            plan = await self._new_plan(manifests)
            self._work.waiting.pop("plan", None)
            # Durable with the first assignment, which goes alone: that is before anything follows from it.
            self._p.table.note(self._job, PlanEntry(job=self._job, ballot=self._ballot, plan=plan_to_plain(plan)))
            self._work.pending = True
            stored = self._view().plan
        assert stored is not None
        self._plan_id = self._view().plan_id
        await self._place.retake()
        plan = plan_from_plain(stored)
        if self._p.ahead is not None:
            self._p.ahead.begin(nursery, plan)
        self._models_by_key = {t.key: t.model for t in plan.tasks}
        return make_engine(self._form.pattern, self._form.config, plan, {name: model_facts(name, m) for name, m in manifests.items()})

    async def _new_plan(self, manifests: dict[str, ModelManifest]) -> Plan:
        """Nodes that the form names were known when the job was accepted: they are waited for, too."""
        while True:
            version = self._p.registry.changed()
            try:
                plan = make_plan(self._form.pattern, self._form.config, gather_facts(self._form, manifests, self._p.registry))
            except (PatternError, NotFound) as e:
                if e.code not in (Code.UNAVAILABLE, Code.NOT_FOUND):
                    raise
                await self._wait(version, e.message)
                continue
            if self._place.held:
                return plan
            await self._place.retake()  # which may take a while: the swarm is looked at again

    async def _manifests(self) -> dict[str, ModelManifest]:
        out: dict[str, ModelManifest] = {}
        for name in models_of(self._form.config):
            while True:
                version = self._p.registry.changed()
                try:
                    out[name] = await self._p.models.manifest(self._p.models.resolve(name))
                    break
                except (NotFound, DimError) as e:
                    if e.code not in (Code.NOT_FOUND, Code.UNAVAILABLE):
                        raise
                    await self._wait(version, f"model {name}: {e.message}")
        return out

    async def _wait(self, version: int, what: str) -> None:
        """For a change of the swarm since ``version``, without a place among the jobs that are driven."""
        self._work.waiting["plan"] = what
        self._place.lend()
        await self._p.registry.wait_changed(version)
        await trio.sleep(self._place.lent * self._p.settings.replan_cost)

    def _progress(self) -> Progress:
        work = self._work
        states: dict[str, TaskState] = {}
        for key in self._started:
            if (found := work.done.get(key)) is not None:
                states[key] = TaskState(key, "completed", found.attempt.node, found.attempt.rows)
            elif key in work.failures:
                states[key] = TaskState(key, "failed", error=work.failures[key].message)
            else:
                states[key] = TaskState(key, "running")
        for round_, seal in self._intact_seals().items():
            self._seals.setdefault(round_, seal)
        return Progress(states, {r: tuple(s.seal.attempts) for r, s in self._seals.items()})

    def _intact_seals(self) -> dict[int, SealFact]:
        """By round the seal with the lowest (ballot, id) of those that are of this plan and whose attempts are all there and not void."""
        record = self._p.table.record(self._job)
        there = {f.id for facts in self._view().completed.values() for f in facts}
        found: dict[int, SealFact] = {}
        for key, body in record.items():
            if isinstance(body, SealEntry) and body.plan == self._plan_id and there.issuperset(body.attempts.values()):
                known = found.get(body.round)
                if known is None or (body.ballot, key) < (known.seal.ballot, known.id):
                    found[body.round] = SealFact(key, body)
        return found

    def _sealed(self, task: str) -> AttemptFact | None:
        for seal in self._seals.values():
            if task in seal.seal.attempts:
                body = self._p.table.record(self._job).body(seal.seal.attempts[task])
                return AttemptFact(seal.seal.attempts[task], body) if isinstance(body, Attempt) else None
        return None

    def _start(self, nursery: trio.Nursery, plans: Sequence[TaskPlan], limit: trio.CapacityLimiter) -> None:
        for plan in plans:
            if plan.key not in self._started:
                self._started.add(plan.key)
                nursery.start_soon(self._run_task, plan, limit)

    async def _run_task(self, plan: TaskPlan, limit: trio.CapacityLimiter) -> None:
        async with limit:
            with self._ending():
                try:
                    await self._p.runner.run(self._work, plan)
                except OutputGone as gone:
                    self._started.discard(plan.key)
                    self._lose(gone)
        self._changed.set()

    def _seal(self, seal: Seal) -> None:
        attempts = {key: self._work.done[key].id for key in seal.keys}
        entry = SealEntry(job=self._job, ballot=self._ballot, round=seal.round, attempts=attempts, plan=self._plan_id)
        # Nothing follows from a seal before the next round's assignments, or the outcome, are durable, and it with them.
        self._p.table.note(self._job, entry)
        self._work.pending = True

    async def _fed(self, engine: Engine, tasks: Sequence[TaskPlan]) -> bool:
        """Makes sure that the aggregate which feeds these tasks is in memory: made now from the sealed attempts,
        whether this owner sealed them or one before it. False if the job failed over that."""
        rounds = {int(s.ref) for t in tasks for s in t.sources if s.kind == "aggregate"}
        for round_ in sorted(rounds - set(self._work.aggregates)):
            await self._aggregate(engine, round_)
        return not self._view().terminal

    async def _aggregate(self, engine: Engine, before: int) -> None:
        place = CheckpointPlace(self._job, self._plan_id, self._seals[before])
        found = await self._checkpoints.load(place, self._p.table.record(self._job))
        if found is None:
            conclusion = await self._conclude(engine, before, place.seal.seal)
            if isinstance(conclusion, Fail):
                await self.fail(error_of_failure(conclusion, self._work))
                return
            outputs = {n: await self._p.values.write(a, self._job) for n, a in conclusion.outputs.items()}
            cid = await self._checkpoint(place, outputs, conclusion)
        else:
            cid, outputs = found
        self._work.aggregates.clear()  # a round reads the one before it only
        self._work.aggregates[before] = outputs
        if cid is not None:
            await self._keep_checkpoint(cid)

    async def _checkpoint(self, place: CheckpointPlace, outputs: Mapping[str, TensorValue], conclusion: Conclusion) -> str | None:
        """For whoever takes the job over; durable with the next round's assignments."""
        cid = await self._checkpoints.save(place, outputs, conclusion.details)
        if cid is not None:
            seal = place.seal
            self._p.table.note(self._job, Checkpoint(job=self._job, ballot=self._ballot, round=seal.seal.round, seal=seal.id, cid=cid))
        return cid

    async def _keep_checkpoint(self, cid: str) -> None:
        """In place of the one before, here and on the copies."""
        before, self._work.checkpoint = self._work.checkpoint, cid
        self._p.table.pass_on(self._job, (cid,))
        if before and before != cid:
            await self._checkpoints.let_go(before)

    async def _conclude(self, engine: Engine, round_: int, seal: SealEntry) -> Conclusion | Fail:
        """Over exactly the sealed attempts, in an order that every owner finds again."""
        record = self._p.table.record(self._job)
        sealed = [(key, record.body(entry_id)) for key, entry_id in sorted(seal.attempts.items())]
        results = [await self._result_of(engine, key, attempt) for key, attempt in sealed if isinstance(attempt, Attempt)]
        if not engine.needs_values:
            return engine.conclude(round_, results)
        return await self._p.compute(engine.conclude, round_, results)

    async def _result_of(self, engine: Engine, key: str, attempt: Attempt) -> TaskResult:
        """Raises `OutputGone`."""
        outputs: dict[str, Array] = {}
        if engine.needs_values:
            try:
                outputs = await self._p.values.read_all(attempt.outputs, self._job, (attempt.node,))
            except Unavailable as e:
                raise OutputGone(key, e.message) from e
        return TaskResult(
            key=key, model=self._models_by_key.get(key, self._first_model), node=attempt.node, rows=attempt.rows, outputs=outputs
        )

    async def _finish(self, engine: Engine, finish: Finish) -> None:
        self._statuses.enter("aggregating")
        seal = self._seals[finish.round].seal
        conclusion = await self._conclude(engine, finish.round, seal)
        if isinstance(conclusion, Fail):
            await self.fail(error_of_failure(conclusion, self._work))
            return
        outputs = await self._outputs(conclusion, seal)
        await self._complete(outputs, conclusion.details)

    async def _outputs(self, conclusion: Conclusion, seal: SealEntry) -> dict[str, TensorValue]:
        """The job's outputs: large ones as blocks that this node keeps. Raises `OutputGone`."""
        if conclusion.passthrough is None:
            return {n: await self._p.values.write(a, self._job) for n, a in conclusion.outputs.items()}
        attempt = self._p.table.record(self._job).body(seal.attempts[conclusion.passthrough])
        assert isinstance(attempt, Attempt)
        store = self._p.store.private_to(self._job)
        for value in attempt.outputs.values():
            if value.cid is not None:
                try:
                    await store.fetch(value.cid, providers=(attempt.node,), timeout=self._p.settings.fetch_timeout)
                    await store.pin(value.cid, reason=f"result of {self._job}")
                except (BlockMissing, BlockCorrupt) as e:
                    raise OutputGone(conclusion.passthrough, f"the result's tensor {value.cid} cannot be fetched: {e}") from e
                except ContentError as e:
                    raise DimError(f"the result's tensor {value.cid} cannot be fetched: {e}", code=Code.UNAVAILABLE) from e
        return dict(attempt.outputs)

    async def _complete(self, outputs: Mapping[str, TensorValue], details: Mapping[str, Any]) -> None:
        """A small result document is kept in the outcome itself, a large one as a durable block."""
        if self._view().terminal:
            return
        record = self._p.table.record(self._job)
        cost = sum(f.attempt.receipt.cost for facts in self._view().completed.values() for f in facts if f.attempt.receipt)
        data = codec.encode(result_plain(record, outputs, details, cost, self._p.selector.name))
        keep = len(data) <= self._p.settings.inline_result_bytes
        cid = compute(DAG_CBOR, data).text
        if not keep:
            await self._p.store.private_to(self._job).put_dag_bytes(data, durable=True)
        outcome = OutcomeEntry(
            job=self._job, ballot=self._ballot, status="completed", at=self._p.clock.wall(), result_cid=cid, result=data if keep else None
        )
        await self._end(outcome, [*(v.cid for v in outputs.values() if v.cid is not None), *([] if keep else [cid])])

    async def fail(self, error: ErrorInfo) -> None:
        details = with_names(error.details, self._p.table.record(self._job), self._p.selector.name)
        error = msgspec.structs.replace(error, details=details)
        await self._end(self._p.ends.failed(self._job, self._ballot, error))

    async def _end(self, outcome: OutcomeEntry, blocks: Sequence[str] = ()) -> None:
        """Raises `Fenced`: there is nothing more to do here then."""
        self._done = bool(blocks)
        if not await self._p.ends.end(outcome, blocks, self.left()):
            raise Fenced(f"job {self._job} has a new owner", hint="It goes on there.")

    def _expired(self) -> OutcomeEntry:
        waited = "; ".join(f"{k} waited for {v}" if k != "plan" else f"it waited for {v}" for k, v in sorted(self._work.waiting.items()))
        message = f"the job was not done within its timeout of {self._timeout:g} s"
        error = ErrorInfo(
            code=Code.DEADLINE_EXCEEDED.value,
            message=f"{message}; {waited}" if waited else message,
            hint="Raise the job's `timeout`, or bring the missing nodes back.",
        )
        return OutcomeEntry(job=self._job, ballot=self._ballot, status="expired", at=self._p.clock.wall(), error=error)
