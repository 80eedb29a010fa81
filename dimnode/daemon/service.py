"""The daemon: takes orders, runs them on agents, answers with signed attempts.

An order is fenced, queued, gets a slot, its model and inputs, an agent; what comes out is reduced, published,
signed and written to the journal before anyone hears of it. The same attempt ordered twice runs once.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import trio

from dimnode.daemon import cabinet_policy, model_formats
from dimnode.daemon.agents import AgentPool, ModelFile
from dimnode.daemon.cabinets import Cabinets
from dimnode.daemon.execution import Execution, Key, failed_attempt
from dimnode.daemon.job_queue import JobQueue
from dimnode.daemon.model_cache import ModelCache
from dimnode.daemon.model_shelf import ModelShelf
from dimnode.daemon.recorder import Recorder
from dimnode.daemon.resources import ResourceMonitor, capabilities, estimate_memory, refusal
from dimnode.daemon.settings import DaemonSettings
from dimnode.daemon.store_errors import store_errors
from dimnode.daemon.task_inputs import Gathered, gather
from dimnode.daemon.task_outputs import leave
from dimnode.domain import tensors
from dimnode.domain.model import ModelManifest, ModelRef
from dimnode.domain.node import CabinetInfo, Capabilities, Load
from dimnode.domain.record import Attempt, Ballot, Receipt, SignedEntry
from dimnode.domain.task import TaskOrder, TaskUpdate
from dimnode.errors import (
    Cancelled,
    DeadlineExceeded,
    DimError,
    FailedPrecondition,
    Fenced,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from dimnode.ports import Clock, Journal, Signer
from loaders.registry import available_loaders
from p2p.ipfs.api import ContentStore

Change = Literal["models", "cabinets", "load"]
_log = logging.getLogger(__name__)


class Daemon:
    """`dimnode.ports.TaskService`. Nothing works before `run` has started."""

    def __init__(
        self,
        *,
        signer: Signer,
        clock: Clock,
        journal: Journal,
        store: ContentStore,
        folder: Path,
        settings: DaemonSettings,
        price: float = 1.0,
        boot: str = "",
        on_change: Callable[[Change], None] = lambda change: None,
    ) -> None:
        """``folder``: the node's home. ``on_change`` is called on the loop and must be quick."""
        self._signer, self._clock, self._journal, self._store = signer, clock, journal, store
        self._folder, self._settings, self._price, self._boot = folder, settings, price, boot
        self.on_change = on_change
        self._queue: JobQueue[Execution] = JobQueue(capacity=settings.queue_capacity, aging=settings.aging_seconds, slots=settings.slots)
        self._resources = ResourceMonitor(folder, interval=settings.resource_interval, on_change=lambda: self.on_change("load"))
        self._pool = AgentPool(settings.agents, folder / "agents", admit=self._no_memory, on_change=lambda: self.on_change("models"))
        self._cache = ModelCache(
            store, folder / "models", max_bytes=settings.cache_bytes, fetch_timeout=settings.fetch_timeout,
            admit=self._no_disk, on_change=lambda: self.on_change("models"),
        )  # fmt: skip
        self._shelf = ModelShelf(store, folder, fetch_timeout=settings.fetch_timeout, remember=settings.remembered_models)
        self._cabinets = Cabinets(folder, cache_bytes=settings.cabinet_cache_bytes, on_change=lambda: self.on_change("cabinets"))
        self._recorder = Recorder(signer, journal)
        self._executions: dict[Key, Execution] = {}
        self._finished: dict[Key, SignedEntry] = {}
        self._known_jobs: dict[str, None] = {}
        self._running = 0
        self._nursery: trio.Nursery | None = None
        self._stop = trio.Event()
        self._idle = trio.Event()
        self._counters = dict.fromkeys(("accepted", "completed", "failed", "cancelled", "fenced", "refused", "repeated"), 0)

    # --- life ------------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Then nothing new is taken, and what runs is handed back: its callers get a failed,
        retryable attempt; at most ``stop_grace`` seconds."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._guarded)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._stop.set()

    async def _guarded(self, task_status: trio.TaskStatus[None]) -> None:
        """Not touched by the cancellation that stops the daemon, so that tasks can be handed back."""
        with trio.CancelScope(shield=True) as guard:
            async with trio.open_nursery() as nursery:
                await trio.to_thread.run_sync(lambda: self._folder.mkdir(parents=True, exist_ok=True))
                await self._shelf.open()
                await self._cabinets.open()
                for part in (self._resources.run, self._cache.run, self._pool.run_pool, self._recorder.run):
                    await nursery.start(part)
                self._nursery = nursery
                task_status.started()
                await self._stop.wait()
                self._nursery = None
                await self._hand_back()
                guard.cancel()

    async def _hand_back(self) -> None:
        for execution in [*self._executions.values()]:
            execution.cancel("stopping")
        with trio.move_on_after(self._settings.stop_grace):
            await self.wait_idle()

    async def wait_idle(self) -> None:
        """Returns when no task is here."""
        while self._executions:
            self._idle = trio.Event()
            await self._idle.wait()

    def close_intake(self) -> None:
        """From now on orders are refused as `Unavailable`; what is here goes on."""
        self._nursery = None

    # --- tasks -----------------------------------------------------------------------------------

    def run_task(self, order: TaskOrder, caller: str) -> AsyncGenerator[TaskUpdate, None]:
        """See `dimnode.ports.TaskService`. ``caller`` was authorised by whoever serves the call."""
        return self._run_task(order)

    async def _run_task(self, order: TaskOrder) -> AsyncGenerator[TaskUpdate]:
        execution = await self._accept(order)
        async with contextlib.aclosing(execution.watch()) as updates:
            async for update in updates:
                yield update

    async def _accept(self, order: TaskOrder) -> Execution:
        """Raises `Unavailable`, `Fenced`, `ResourceExhausted`, `InvalidArgument`."""
        await self._fence(order.job, order.ballot)
        execution = Execution(order)
        entry = await self._stored(execution.key)
        repeated = self._executions.get(execution.key)
        if repeated is not None:
            self._counters["repeated"] += 1
            return repeated
        if entry is not None:
            self._counters["repeated"] += 1
            execution.finish(entry)
            return execution
        if self._nursery is None:
            raise Unavailable("the node takes no new tasks", hint="Use another node.")
        self._admit(execution)
        execution.scope.deadline = trio.current_time() + (order.timeout or self._settings.default_timeout)
        execution.stage("accepted")
        self._executions[execution.key] = execution
        self._counters["accepted"] += 1
        self._nursery.start_soon(self._execute, execution)
        self._dispatch()
        return execution

    def _admit(self, execution: Execution) -> None:
        """Into the queue. Raises `ResourceExhausted`, `InvalidArgument`."""
        s = self._settings
        reason = refusal(self._resources.latest, memory=0, disk=0, min_memory=s.min_free_memory, min_disk=s.min_free_disk)
        if reason is not None:
            self._counters["refused"] += 1
            raise ResourceExhausted(reason, hint="Use another node.", retry_after=s.resource_interval)
        try:
            execution.ticket = self._queue.push(execution, execution.order.priority, self._clock.monotonic())
        except ResourceExhausted:
            self._counters["refused"] += 1
            raise

    async def _fence(self, job: str, ballot: Ballot) -> None:
        highest = await self._journal.raise_ballot(job, ballot)
        if highest != ballot:
            self._counters["fenced"] += 1
            raise Fenced(f"ballot {highest.n} of {highest.peer} owns this job", hint="Merge with its owner.")

    async def _stored(self, key: Key) -> SignedEntry | None:
        """The attempt, if it has finished before: from memory, or after a restart from the journal."""
        if key in self._finished or key[0] in self._known_jobs:
            return self._finished.get(key)
        for entry in await self._journal.load(key[0]):
            body = entry.body()
            if entry.author == self._signer.peer_id and isinstance(body, Attempt):
                self._remember((body.job, body.task, body.attempt), entry)
        self._known_jobs[key[0]] = None
        while len(self._known_jobs) > self._settings.remembered_tasks:
            del self._known_jobs[next(iter(self._known_jobs))]
        return self._finished.get(key)

    def _remember(self, key: Key, entry: SignedEntry) -> None:
        self._finished[key] = entry
        while len(self._finished) > self._settings.remembered_tasks:
            old = next(iter(self._finished))
            del self._finished[old]
            # its job is looked up in the journal again
            self._known_jobs.pop(old[0], None)

    def _dispatch(self) -> None:
        """Gives free slots to whoever is next."""
        while self._running < self._settings.slots:
            ticket = self._queue.pop()
            if ticket is None:
                return
            self._running += 1
            ticket.item.started = self._clock.wall()
            ticket.item.turn.set()

    async def _execute(self, execution: Execution) -> None:
        """From the queue to the journal, whatever happens in between."""
        begun = self._clock.monotonic()
        try:
            attempt = await self._attempt(execution)
        finally:
            if execution.ticket is not None and not self._queue.cancel(execution.ticket):
                self._running -= 1
                self._queue.finished(self._clock.monotonic() - begun)
        self._dispatch()
        try:
            entry = await self._recorder.record(attempt)
        except DimError as e:
            execution.fail(e)
        else:
            self._remember(execution.key, entry)
            execution.finish(entry)
        finally:
            del self._executions[execution.key]
            self._idle.set()
            self._counters[attempt.status] += 1
            self.on_change("load")

    async def _attempt(self, execution: Execution) -> Attempt:
        order, error = execution.order, None
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
            error = Unavailable("the node stopped before the task was done", hint="Another node can run it.")
        elif error is None:
            where = "while it ran" if execution.turn.is_set() else "in the node's queue"
            error = DeadlineExceeded(f"the task's time was up {where}")
        return failed_attempt(order, self._signer.peer_id, error, execution.why)

    async def _work(self, execution: Execution) -> Attempt:
        order = execution.order
        execution.stage("fetching")
        manifest = await self._shelf.manifest(order.manifest_cid, order.providers, order.model_cid)
        self._check_policy(order, manifest)
        gathered = await gather(order, manifest, self._store, self._cabinets, self._settings)
        if order.cabinet is not None:
            cabinet_policy.enforce_content(
                gathered.policy, cabinet=order.cabinet.name, rows=gathered.rows, outputs=[t.name for t in manifest.outputs],
                batched_outputs=manifest.batched_outputs(), reduce=order.reduce,
            )  # fmt: skip
        async with self._file(manifest, order.manifest_cid, order.providers) as file:
            execution.stage("running")
            outputs = await self._pool.run(file, gathered.arrays)
        values = await leave(order, manifest, outputs, gathered.rows, self._store, self._settings.inline_bytes)
        return self._completed(execution, gathered, values)

    def _check_policy(self, order: TaskOrder, manifest: ModelManifest) -> None:
        if order.cabinet is not None:
            cabinet_policy.enforce_access(
                self._cabinets.policy(order.cabinet.name), cabinet=order.cabinet.name, model_cid=manifest.cid, model_id=manifest.id,
                principal=order.principal, reduce=order.reduce, now=self._clock.wall(),
            )  # fmt: skip

    def _completed(self, execution: Execution, gathered: Gathered, values: dict[str, tensors.TensorValue]) -> Attempt:
        order = execution.order
        receipt = Receipt(
            job=order.job,
            task=order.task,
            attempt=order.attempt,
            node=self._signer.peer_id,
            model_cid=order.model_cid,
            inputs=gathered.digests,
            outputs={name: tensors.content_digest(v) for name, v in values.items()},
            started=execution.started,
            ended=self._clock.wall(),
            cost=self._price,
        )
        return Attempt(
            job=order.job,
            ballot=order.ballot,
            task=order.task,
            attempt=order.attempt,
            task_key=order.task_key,
            status="completed",
            outputs=values,
            rows=gathered.rows,
            receipt=receipt,
            node=self._signer.peer_id,
        )

    async def cancel_task(self, job: str, task: str, attempt: int, ballot: Ballot) -> bool:
        """Whether there was something to cancel. Raises `Fenced`."""
        await self._fence(job, ballot)
        execution = self._executions.get((job, task, attempt))
        if execution is None:
            return False
        execution.cancel("cancelled")
        return True

    # --- models and cabinets ---------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _file(self, manifest: ModelManifest, manifest_cid: str, providers: Sequence[str]) -> AsyncGenerator[ModelFile]:
        if manifest.format == "builtin":
            path = self._shelf.builtin_path(manifest.cid)
            if path is None:
                raise Unavailable(f"this node's version of DIM has no step {manifest.id!r} of this kind")
            yield ModelFile(manifest.cid, "builtin", path, manifest.size)
            return
        self._check_size(manifest.size)
        async with self._cache.use(manifest.cid, manifest.format, manifest.size, providers) as path:
            await self._shelf.fetched(manifest, manifest_cid)
            yield ModelFile(manifest.cid, manifest.format, path, manifest.size)

    async def prewarm(self, model_cid: str, manifest_cid: str, providers: Sequence[str]) -> bool:
        """Fetches and loads the model and runs it once. False if that cannot be done now."""
        try:
            manifest = await self._shelf.manifest(manifest_cid, providers, model_cid)
            async with self._file(manifest, manifest_cid, providers) as file:
                await self._pool.warm_up(file)
        except DimError:
            return False
        return True

    async def add_model_file(
        self, path: Path, *, id: str, licence: str, batch_axis: int | None, check: Callable[[str, str], None] | None = None
    ) -> tuple[ModelManifest, str]:
        """Loads the file in an agent, then stores and pins it; manifest and manifest CID. An empty id becomes the
        file's name. ``check`` gets id and CID before anybody is told, and may raise. Raises `InvalidArgument`,
        `NotFound`, `FailedPrecondition`, `AlreadyExists`, `ResourceExhausted`."""
        name = id or path.stem
        self._shelf.check_id(name)
        path = Path(os.path.abspath(path))  # noqa: ASYNC240 - touches no file
        kind = await trio.to_thread.run_sync(model_formats.recognise, path)
        size = (await trio.to_thread.run_sync(path.stat)).st_size
        self._check_size(size)
        schema = await self._pool.inspect(ModelFile(f"file:{path}", kind, path, size))
        with store_errors("the model"):
            cid, size = await self._store.add_file(path)
        if check is not None:
            check(name, cid)
        manifest = ModelManifest(
            id=name, cid=cid, format=kind, inputs=schema.inputs, outputs=schema.outputs, size=size, licence=licence, batch_axis=_axis(batch_axis)
        )  # fmt: skip
        return await self._add(manifest)

    async def add_model_cid(
        self, cid: str, *, id: str, format: str, licence: str, batch_axis: int | None, providers: Sequence[str]
    ) -> tuple[ModelManifest, str]:
        """The same for an artifact that is in the swarm. An empty format is found out."""
        self._shelf.check_id(id, cid)
        if format not in ("", "onnx", "pt2"):
            raise InvalidArgument(f"format {format!r} is not known", hint="Use onnx or pt2.")
        with store_errors("the model"):
            size = await self._store.fetch(cid, providers=providers, timeout=self._settings.fetch_timeout)
        self._check_size(size)
        async with self._cache.use(cid, format or "onnx", size, providers) as path:
            kind = await trio.to_thread.run_sync(model_formats.recognise, path)
            if format and format != kind:
                raise InvalidArgument(f"the artifact is {kind}, not {format}")
            schema = await self._pool.inspect(ModelFile(cid, kind, path, size))
        manifest = ModelManifest(
            id=id, cid=cid, format=kind, inputs=schema.inputs, outputs=schema.outputs, size=size, licence=licence, batch_axis=_axis(batch_axis)
        )  # fmt: skip
        return await self._add(manifest)

    def _check_size(self, size: int) -> None:
        most = self._settings.model_bytes
        if size > most:
            raise FailedPrecondition(
                f"the model has {size} bytes and this node takes at most {most}", hint="Raise daemon.model_bytes, or use another node."
            )

    async def _add(self, manifest: ModelManifest) -> tuple[ModelManifest, str]:
        manifest_cid = await self._shelf.add(manifest)
        self.on_change("models")
        return manifest, manifest_cid

    async def add_cabinet(self, name: str, path: Path, policy: Mapping[str, Any] | None) -> CabinetInfo:
        return await self._cabinets.add(name, path, policy)

    def cabinets(self) -> tuple[CabinetInfo, ...]:
        return self._cabinets.infos()

    def models(self) -> tuple[ModelRef, ...]:
        """Own, built-in and cached ones."""
        return self._shelf.refs(self._cache.cids(), self._pool.is_warm)

    # --- what others may know --------------------------------------------------------------------

    def capabilities(self) -> Capabilities:
        return capabilities(available_loaders())

    def load(self) -> Load:
        latest = self._resources.latest
        return Load(
            running=self._running,
            queued=len(self._queue),
            slots=self._settings.slots,
            queue_capacity=self._settings.queue_capacity,
            memory_free=latest.memory_free,
            cpu=latest.cpu,
        )

    def stats(self) -> Mapping[str, Any]:
        latest = self._resources.latest
        return {
            "boot": self._boot,
            "running": self._running,
            "queue": msgspec.to_builtins(self._queue.statistics(self._clock.monotonic())),
            "agents": self._pool.statistics(),
            "cache": self._cache.statistics(),
            "resources": msgspec.to_builtins(latest),
            "counters": dict(self._counters),
            "models": len(self.models()),
            "cabinets": len(self.cabinets()),
        }

    def _no_memory(self, format: str, size: int) -> str | None:
        s = self._settings
        return refusal(self._resources.latest, memory=estimate_memory(format, size), disk=0, min_memory=s.min_free_memory, min_disk=0)

    def _no_disk(self, size: int) -> str | None:
        s = self._settings
        return refusal(self._resources.latest, memory=0, disk=size, min_memory=0, min_disk=s.min_free_disk)


def _axis(batch_axis: int | None) -> int | None:
    if batch_axis not in (None, 0):
        raise InvalidArgument("batch_axis must be 0 or left out")
    return batch_axis
