"""Drives one job from acceptance to its outcome.

The pattern engine decides, this shell acts: it starts the tasks the engine asks for, writes seals,
has rounds aggregated in a thread, and records the outcome. Everything it needs to know is a view of
the record, so a job that was interrupted anywhere is driven on by the same loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import structlog
import trio

from dimnode.core.job_view import JobView
from dimnode.domain import codec
from dimnode.domain.job_form import JobForm, from_plain
from dimnode.domain.model import ModelManifest
from dimnode.domain.record import Ballot, ErrorInfo, JobStatus, OutcomeEntry, PlanEntry, SealEntry, StatusEntry
from dimnode.domain.tensors import TensorValue
from dimnode.errors import Code, DimError, Fenced, NotFound
from dimnode.orchestrator.documents import finite, result_plain, with_names
from dimnode.orchestrator.nodes import gather_facts, model_facts, models_of
from dimnode.orchestrator.places import Place
from dimnode.orchestrator.selection import Selector
from dimnode.orchestrator.settings import OrchestratorSettings
from dimnode.orchestrator.task_runner import TaskRunner, Work
from dimnode.orchestrator.values import Compute, Values, in_thread
from dimnode.ports import Clock, Models, Registry
from dimnode.records.table import RecordTable
from p2p.groups import leaves
from p2p.ipfs.api import ContentError, ContentStore, DiskFull
from p2p.ipfs.cid import DAG_CBOR, compute
from patterns.api import Conclusion, Engine, Fail, Finish, PatternError, Plan, Progress, Run, Seal, TaskPlan, TaskResult, TaskState, Wait
from patterns.engines import make_engine, make_plan, plan_from_plain, plan_to_plain

log = structlog.get_logger(__name__)


class Coordinator:
    def __init__(
        self,
        table: RecordTable,
        runner: TaskRunner,
        selector: Selector,
        models: Models,
        registry: Registry,
        store: ContentStore,
        values: Values,
        clock: Clock,
        settings: OrchestratorSettings,
        compute: Compute = in_thread,
    ) -> None:
        self._compute = compute
        self._table = table
        self._runner = runner
        self._selector = selector
        self._models = models
        self._registry = registry
        self._store = store
        self._values = values
        self._clock = clock
        self._settings = settings

    async def drive(self, job: str, ballot: Ballot, since: float, place: Place) -> None:
        """Returns when the job is terminal, or when another owner fenced this one. If it is cancelled
        the job stays as it is, for the next owner. ``since``: when this owner took it (`Clock.monotonic`); from
        then on its timeout runs. Whatever goes wrong in a job ends this job and nothing else."""
        try:
            drive = _Drive(self, job, ballot, since, place)
            with trio.move_on_after(drive.left()) as life:
                await drive.run()
            if life.cancelled_caught:
                await self.end(drive.expired())
        except Exception as e:  # noqa: BLE001 - told to the client as the job's error, and logged
            causes = list(leaves(e))
            if fenced := next((c for c in causes if isinstance(c, Fenced)), None):
                log.info("job.fenced", job=job, reason=fenced.message)
                return
            await self.end(self.failed(job, ballot, _error_info(job, causes[0])))

    def failed(self, job: str, ballot: Ballot, error: ErrorInfo) -> OutcomeEntry:
        return OutcomeEntry(job=job, ballot=ballot, status="failed", at=self._clock.wall(), error=error)

    async def publish(self, job: str, data: bytes) -> None:
        """A copy of what the journal has, as an IPFS block; a short write that a job's end does not interrupt."""
        try:
            with trio.CancelScope(shield=True):
                await self._store.put_dag_bytes(data, durable=False)
        except (ContentError, OSError) as e:
            log.warning("job.block_not_published", job=job, reason=str(e))

    async def end(self, outcome: OutcomeEntry) -> None:
        """Writes the job's outcome; while that is impossible (a full disk) tries again, for as long as it takes."""
        delay = self._settings.retry_backoff
        while True:
            try:
                seen = await self._table.conclude(outcome.job, outcome)
            except NotFound:  # finished, by a cancel, and no longer in memory
                return
            except DimError as e:
                log.error("job.outcome_not_written", job=outcome.job, code=e.code.value, reason=e.message)
            else:
                log.info("job.finished", job=outcome.job, status=seen.status, code=seen.error.code if seen.error else None)
                return
            await trio.sleep(delay)
            delay = min(2 * delay, self._settings.retry_backoff_max)


class _Drive:
    """The loop of one job."""

    def __init__(self, parts: Coordinator, job: str, ballot: Ballot, since: float, place: Place) -> None:
        self._place = place
        self._p = parts
        self._job = job
        self._ballot = ballot
        view = parts._table.view(job)
        assert view.core is not None
        self._elapsed_before = view.elapsed
        self._since = since
        self._timeout = view.core.timeout
        self._form: JobForm = from_plain(codec.decode_plain(view.core.spec))
        self._work = Work(job=job, form=self._form, ballot=ballot, place=place, stage=self._stage)
        self._started: set[str] = set()
        self._changed = trio.Event()
        self._first_model = models_of(self._form.config)[0]
        self._models_by_key: dict[str, str] = {}
        """Of round 0; later rounds run the job's one model."""

    def elapsed(self) -> float:
        return self._elapsed_before + self._p._clock.monotonic() - self._since

    def left(self) -> float:
        """Seconds of life that the job has left."""
        return max(0.0, self._timeout - self.elapsed())

    def _view(self) -> JobView:
        return self._p._table.view(self._job)

    async def run(self) -> None:
        engine = await self._plan()
        core = self._view().core
        async with trio.open_nursery() as nursery:
            if core is not None:
                nursery.start_soon(self._p.publish, self._job, core.spec)
            tasks = trio.CapacityLimiter(self._p._settings.max_tasks_per_job)
            while not self._view().terminal:
                self._changed = trio.Event()
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
                        await self.fail(_error_of(decision, self._work))
            nursery.cancel_scope.cancel()

    async def _plan(self) -> Engine:
        """The engine on the plan in the record, or on one made now and recorded. Waits while the swarm
        has not what the job needs."""
        manifests = await self._manifests()
        stored = self._view().plan
        if stored is None:
            plan = await self._new_plan(manifests)
            self._work.waiting.pop("plan", None)
            # Durable with the first assignment, which is before anything follows from it.
            self._p._table.note(self._job, PlanEntry(job=self._job, ballot=self._ballot, plan=plan_to_plain(plan)))
            stored = self._view().plan
        assert stored is not None
        await self._place.retake()
        plan = plan_from_plain(stored)
        self._models_by_key = {t.key: t.model for t in plan.tasks}
        return make_engine(self._form.pattern, self._form.config, plan, {name: model_facts(name, m) for name, m in manifests.items()})

    async def _new_plan(self, manifests: dict[str, ModelManifest]) -> Plan:
        """Nodes that the form names were known when the job was accepted: they are waited for, too."""
        while True:
            version = self._p._registry.changed()
            try:
                plan = make_plan(self._form.pattern, self._form.config, gather_facts(self._form, manifests, self._p._registry))
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
                version = self._p._registry.changed()
                try:
                    out[name] = await self._p._models.manifest(self._p._models.resolve(name))
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
        await self._p._registry.wait_changed(version)
        await trio.sleep(self._place.lent * self._p._settings.replan_cost)

    def _progress(self) -> Progress:
        view = self._view()
        states: dict[str, TaskState] = {}
        for key in self._started | set(view.attempts):
            found = view.attempts.get(key)
            if found is not None:
                states[key] = TaskState(key, "completed", found.attempt.node, found.attempt.rows)
            elif key in self._work.failures:
                states[key] = TaskState(key, "failed", error=self._work.failures[key].message)
            else:
                states[key] = TaskState(key, "running")
        return Progress(states, {r: tuple(s.seal.attempts) for r, s in view.seals.items()})

    def _start(self, nursery: trio.Nursery, plans: Sequence[TaskPlan], limit: trio.CapacityLimiter) -> None:
        done = self._view().attempts
        for plan in plans:
            if plan.key not in self._started and plan.key not in done:
                self._started.add(plan.key)
                nursery.start_soon(self._run_task, plan, limit)

    async def _run_task(self, plan: TaskPlan, limit: trio.CapacityLimiter) -> None:
        async with limit:
            await self._p._runner.run(self._work, plan)
        self._changed.set()

    def _seal(self, seal: Seal) -> None:
        view = self._view()
        attempts = {key: view.attempts[key].id for key in seal.keys}
        entry = SealEntry(job=self._job, ballot=self._ballot, round=seal.round, attempts=attempts)
        # Nothing follows from a seal before the next round's assignments, or the outcome, are durable, and it with them.
        self._p._table.note(self._job, entry)

    async def _fed(self, engine: Engine, tasks: Sequence[TaskPlan]) -> bool:
        """Makes sure that the aggregate which feeds these tasks is in memory: made now from the sealed attempts,
        whether this owner sealed them or one before it. False if the job failed over that."""
        rounds = {int(s.ref) for t in tasks for s in t.sources if s.kind == "aggregate"}
        for round_ in sorted(rounds - set(self._work.aggregates)):
            await self._aggregate(engine, round_)
        return not self._view().terminal

    async def _aggregate(self, engine: Engine, before: int) -> None:
        conclusion = await self._conclude(engine, before, tuple(self._view().seals[before].seal.attempts))
        if isinstance(conclusion, Fail):
            await self.fail(_error_of(conclusion, self._work))
            return
        written = {n: await self._p._values.write(a) for n, a in conclusion.outputs.items()}
        self._work.aggregates.clear()  # a round reads the one before it only
        self._work.aggregates[before] = written

    async def _conclude(self, engine: Engine, round_: int, keys: tuple[str, ...]) -> Conclusion | Fail:
        results = [await self._result_of(engine, key) for key in keys]
        if not engine.needs_values:
            return engine.conclude(round_, results)
        return await self._p._compute(engine.conclude, round_, results)

    async def _result_of(self, engine: Engine, key: str) -> TaskResult:
        """The sealed attempt of a task (the view prefers it) with its values."""
        attempt = self._view().attempts[key].attempt
        outputs = await self._p._values.read_all(attempt.outputs, (attempt.node,)) if engine.needs_values else {}
        return TaskResult(
            key=key, model=self._models_by_key.get(key, self._first_model), node=attempt.node, rows=attempt.rows, outputs=outputs
        )

    async def _finish(self, engine: Engine, finish: Finish) -> None:
        self._enter("aggregating")
        conclusion = await self._conclude(engine, finish.round, finish.keys)
        if isinstance(conclusion, Fail):
            await self.fail(_error_of(conclusion, self._work))
            return
        outputs = await self._outputs(conclusion)
        await self._complete(outputs, conclusion.details)

    async def _outputs(self, conclusion: Conclusion) -> dict[str, TensorValue]:
        """The job's outputs: large ones as blocks that this node keeps."""
        if conclusion.passthrough is None:
            return {n: await self._p._values.write(a) for n, a in conclusion.outputs.items()}
        attempt = self._view().attempts[conclusion.passthrough].attempt
        for value in attempt.outputs.values():
            if value.cid is not None:
                try:
                    await self._p._store.fetch(value.cid, providers=(attempt.node,), timeout=self._p._settings.fetch_timeout)
                    await self._p._store.pin(value.cid, reason=f"result of {self._job}")
                except ContentError as e:
                    raise DimError(f"the result's tensor {value.cid} cannot be fetched: {e}", code=Code.UNAVAILABLE) from e
        return dict(attempt.outputs)

    async def _complete(self, outputs: Mapping[str, TensorValue], details: Mapping[str, Any]) -> None:
        """A small result document is kept in the outcome itself, a large one as a durable block."""
        if self._view().terminal:
            return
        record = self._p._table.record(self._job)
        cost = sum(f.attempt.receipt.cost for facts in self._view().completed.values() for f in facts if f.attempt.receipt)
        data = codec.encode(result_plain(record, outputs, details, cost, self._p._selector.name))
        keep = len(data) <= self._p._settings.inline_result_bytes
        cid = compute(DAG_CBOR, data).text
        if not keep:
            await self._p._store.put_dag_bytes(data, durable=True)
        await self._p.end(
            OutcomeEntry(
                job=self._job,
                ballot=self._ballot,
                status="completed",
                at=self._p._clock.wall(),
                result_cid=cid,
                result=data if keep else None,
            )
        )
        if keep:  # the outcome has it durably: the block is for those who ask by CID
            await self._p.publish(self._job, data)

    async def fail(self, error: ErrorInfo) -> None:
        details = with_names(error.details, self._p._table.record(self._job), self._p._selector.name)
        error = msgspec.structs.replace(error, details=details)
        await self._p.end(self._p.failed(self._job, self._ballot, error))

    def expired(self) -> OutcomeEntry:
        waited = "; ".join(f"{k} waited for {v}" if k != "plan" else f"it waited for {v}" for k, v in sorted(self._work.waiting.items()))
        message = f"the job was not done within its timeout of {self._timeout:g} s"
        error = ErrorInfo(
            code=Code.DEADLINE_EXCEEDED.value,
            message=f"{message}; {waited}" if waited else message,
            hint="Raise the job's `timeout`, or bring the missing nodes back.",
        )
        return OutcomeEntry(job=self._job, ballot=self._ballot, status="expired", at=self._p._clock.wall(), error=error)

    def _stage(self, stage: str) -> None:
        """A task told its stage: the job is at least there."""
        status: JobStatus | None = "fetching" if stage == "fetching" else "running" if stage == "running" else None
        if status is not None:
            self._enter(status)

    def _enter(self, status: JobStatus) -> None:
        """Statuses only go forward."""
        view = self._view()
        if view.terminal or (_ORDER.index(status) <= _ORDER.index(view.status) and status != "scheduling"):
            return
        if view.status == status:
            return
        entry = StatusEntry(job=self._job, ballot=self._ballot, status=status, at=self._p._clock.wall(), elapsed=self.elapsed())
        self._p._table.note(self._job, entry)


_ORDER: tuple[str, ...] = ("queued", "scheduling", "fetching", "running", "aggregating", "completed", "failed", "cancelled", "expired")


def _error_of(fail: Fail, work: Work) -> ErrorInfo:
    details: dict[str, Any] = finite(fail.details)
    if work.failures:
        details["tasks"] = {k: {"code": e.code.value, "message": e.message, "hint": e.hint} for k, e in sorted(work.failures.items())}
    if len(work.failures) == 1 and fail.code in (Code.TASK_FAILED.value,):
        only = next(iter(work.failures.values()))
        return ErrorInfo(code=only.code.value, message=only.message, hint=only.hint or fail.hint, details=details)
    return ErrorInfo(code=fail.code, message=fail.message, hint=fail.hint, details=details)


def _error_info(job: str, error: BaseException) -> ErrorInfo:
    """What a client is told: of what nobody foresaw nothing but that it happened, the rest is in the log."""
    match error:
        case PatternError():
            return ErrorInfo(code=error.code, message=error.message, hint=error.hint, details=finite(error.details))
        case DimError():
            return ErrorInfo(code=error.code.value, message=error.message, hint=error.hint)
        case DiskFull():
            return ErrorInfo(code=Code.RESOURCE_EXHAUSTED.value, message="the disk of the orchestrator is full", hint="Free space there.")
        case _:
            log.error("job.internal_error", job=job, exc_info=error)
            return ErrorInfo(
                code=Code.INTERNAL.value,
                message="an internal error of the orchestrator ended this job",
                hint=f"The orchestrator's log has the reason; look for {job}.",
            )
