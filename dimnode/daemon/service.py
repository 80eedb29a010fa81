"""The daemon: takes orders, runs them on agents, answers with signed attempts.

`tasks` sees to it that an accepted order ends with an attempt in the journal; here it gets its model and inputs, an
agent, and what comes out is reduced and published.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Hashable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec
import trio

from dimnode.daemon import cabinet_policy
from dimnode.daemon.admission import Admission
from dimnode.daemon.agents import AgentPool, ModelFile
from dimnode.daemon.cabinets import Cabinets
from dimnode.daemon.execution import Execution
from dimnode.daemon.gpus import Gpu
from dimnode.daemon.model_cache import ModelCache
from dimnode.daemon.model_registration import ModelRegistration
from dimnode.daemon.model_shelf import ModelShelf, Verify
from dimnode.daemon.prewarmer import Known, Prewarmer, Stock
from dimnode.daemon.resources import Look, ResourceMonitor, capabilities, look_around, refusal
from dimnode.daemon.sandbox.report import Confinement
from dimnode.daemon.settings import DaemonSettings
from dimnode.daemon.task_inputs import Gathered, gather
from dimnode.daemon.task_outputs import leave
from dimnode.daemon.tasks import Tasks
from dimnode.domain import tensors
from dimnode.domain.model import TEXT_GENERATION, ModelManifest, ModelRef
from dimnode.domain.node import CabinetInfo, Capabilities, Load
from dimnode.domain.record import Attempt, Ballot, Receipt, SignedEntry
from dimnode.domain.task import TaskOrder, TaskReport, TaskUpdate
from dimnode.errors import DimError, Unavailable
from dimnode.ports import Clock, Journal, Signer
from loaders.devices import built_for
from loaders.registry import available_loaders
from p2p.identity import verify as verify_with_peer_id
from p2p.ipfs.api import ContentStore

Change = Literal["models", "cabinets", "load"]


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
        cards: tuple[Gpu, ...] = (),
        look: Look = look_around,
        on_change: Callable[[Change], None] = lambda change: None,
        verify: Verify = verify_with_peer_id,
    ) -> None:
        """``folder``: the node's home. ``on_change`` is called on the loop and must be quick. ``cards``: the machine's
        graphics processors, as far as they are known; ``look``: how it is looked at. ``verify`` checks the signatures of manifests."""
        self.more_stats: Callable[[], Mapping[str, Any]] = dict
        """What other parts of the node add to `stats`."""
        self.find_model: Callable[[str], tuple[ModelRef, tuple[str, ...]] | None] = lambda name: None
        """A model of the swarm and who has it, by id or CID."""
        self._signer, self._clock, self._store = signer, clock, store
        self._folder, self._settings, self._price, self._boot = folder, settings, price, boot
        self.on_change = on_change
        self._resources = ResourceMonitor(folder, interval=settings.resource_interval, on_change=self._looked, cards=cards, look=look)
        self._loaders = available_loaders()
        self._admission = Admission(settings, latest=lambda: self._resources.latest, built_for=cache(built_for))
        self._pool = AgentPool(
            settings.agents, folder / "agents", private=folder, admit=self._admission.grant, loaded=self._admission.loaded,
            on_change=lambda: self.on_change("models"),
        )  # fmt: skip
        self._cache = ModelCache(
            store, folder / "models", max_bytes=settings.cache_bytes, fetch_timeout=settings.fetch_timeout,
            admit=self._no_disk, pinned=self._is_pinned, on_change=lambda: self.on_change("models"),
        )  # fmt: skip
        self._shelf = ModelShelf(store, folder, fetch_timeout=settings.fetch_timeout, remember=settings.remembered_models, verify=verify)
        self._registration = ModelRegistration(store, self._shelf, self._cache, self._pool, signer, folder / "packing", settings)
        self._cabinets = Cabinets(folder, cache_bytes=settings.cabinet_cache_bytes, on_change=lambda: self.on_change("cabinets"))
        self._tasks = Tasks(
            signer=signer, clock=clock, journal=journal, settings=settings, work=self._work,
            refusal=self._no_room, on_change=lambda: self.on_change("load"), company=self._company,
        )  # fmt: skip
        self._prewarmer = Prewarmer(
            settings.prewarm,
            Stock(
                models=self.models, find=self._found, queued=self._queued, is_here=self._is_here, is_warm=self._pool.is_warm,
                may_warm=self._pool.may_warm, fetch=self._fetch, warm=self._warm,
            ),
        )  # fmt: skip
        self._pool.keep = self._prewarmer.keeps
        self._stop = trio.Event()

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
                await self._registration.open()
                await self._cabinets.open()
                for part in (self._resources.run, self._cache.run, self._pool.run_pool, self._tasks.run, self._prewarmer.run):
                    await nursery.start(part)
                task_status.started()
                await self._stop.wait()
                await self._tasks.hand_back()
                guard.cancel()

    async def wait_idle(self) -> None:
        """Returns when no task is here."""
        await self._tasks.wait_idle()

    def close_intake(self) -> None:
        """From now on orders are refused as `Unavailable`; what is here goes on."""
        self._tasks.close_intake()

    async def hand_back(self) -> None:
        """Closes the intake and ends what is here with failed, retryable attempts, while its callers can still hear of
        them. At most ``stop_grace`` seconds."""
        await self._tasks.hand_back()

    # --- tasks -----------------------------------------------------------------------------------

    def run_task(self, order: TaskOrder, caller: str) -> AsyncGenerator[TaskUpdate, None]:
        """See `dimnode.ports.TaskService`. ``caller`` was authorised by whoever serves the call."""
        return self._tasks.watch(order)

    async def cancel_task(self, job: str, task: str, attempt: int, ballot: Ballot) -> bool:
        return await self._tasks.cancel(job, task, attempt, ballot)

    async def attempts_of(self, job: str, ballot: Ballot) -> TaskReport:
        return await self._tasks.attempts_of(job, ballot)

    def unfetched(self) -> tuple[SignedEntry, ...]:
        return self._tasks.unfetched()

    def fetched(self, entry_ids: Collection[str]) -> None:
        self._tasks.fetched(entry_ids)

    async def wait_unfetched(self, since: int) -> int:
        return await self._tasks.wait_unfetched(since)

    async def _work(self, execution: Execution) -> Attempt:
        order = execution.order
        execution.stage("fetching")
        manifest = await self._shelf.manifest(order.manifest_cid, order.providers, order.model_cid)
        self._check_policy(order, manifest)
        self._prewarmer.used(Known(order.model_cid, order.manifest_cid, tuple(order.providers)))
        gathered = await gather(order, manifest, self._store, self._cabinets, self._settings)
        if order.cabinet is not None:
            cabinet_policy.enforce_content(
                gathered.policy, cabinet=order.cabinet.name, rows=gathered.rows, outputs=[t.name for t in manifest.outputs],
                batched_outputs=manifest.batched_outputs(), reduce=order.reduce,
            )  # fmt: skip
        async with self._file(manifest, order.manifest_cid, order.providers) as file:
            execution.stage("running")
            # a model may mix the rows that it gets: only those of one client, and none of a cabinet, are ever put together
            owner = None if order.cabinet is not None else order.principal
            # what a cabinet's rows lead to leaves the node reduced and checked, or not at all
            tell = execution.partial if manifest.task == TEXT_GENERATION and order.cabinet is None else None
            outputs = await self._pool.run(file, gathered.arrays, owner, tell, self._check_agent(order, gathered.policy))
        values = await leave(order, manifest, outputs, gathered.rows, self._store, self._settings.inline_bytes)
        return self._completed(execution, gathered, values)

    def _company(self, order: TaskOrder) -> Hashable | None:
        """Which tasks may share an inference: see `AgentPool.run`."""
        manifest = self._shelf.known(order.manifest_cid)
        if order.cabinet is not None or manifest is None or not self._pool.batches(self._shelf.said(order.manifest_cid, manifest).key):
            return None
        return (order.model_cid, order.manifest_cid, order.principal)

    def _check_policy(self, order: TaskOrder, manifest: ModelManifest) -> None:
        if order.cabinet is not None:
            cabinet_policy.enforce_access(
                self._cabinets.policy(order.cabinet.name), cabinet=order.cabinet.name, model_cid=manifest.cid, model_id=manifest.id,
                principal=order.principal, reduce=order.reduce, now=self._clock.wall(),
                confined=self._pool.confinement.complete,
            )  # fmt: skip

    @staticmethod
    def _check_agent(order: TaskOrder, policy: cabinet_policy.Policy) -> Callable[[Confinement], None]:
        """What must be true of the very agent that gets the data."""
        name = order.cabinet.name if order.cabinet is not None else ""
        return lambda confinement: cabinet_policy.enforce_sandbox(policy, cabinet=name, confined=confinement.complete)

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

    # --- models and cabinets ---------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _file(self, manifest: ModelManifest, manifest_cid: str, providers: Sequence[str]) -> AsyncGenerator[ModelFile]:
        if manifest.format == "builtin":
            path = self._shelf.builtin_path(manifest.cid)
            if path is None:
                raise Unavailable(f"this node's version of DIM has no step {manifest.id!r} of this kind")
            yield ModelFile(manifest.cid, "builtin", path, manifest.size)
            return
        self._registration.check_size(manifest.size)
        async with self._cache.use(manifest.cid, manifest.format, manifest.size, providers) as path:
            await self._shelf.fetched(manifest, manifest_cid)
            said = self._shelf.said(manifest_cid, manifest)
            yield ModelFile(
                manifest.cid,
                manifest.format,
                path,
                manifest.size,
                batchable=batchable(manifest),
                about=said.about,
                needs=manifest.needs,
            )

    async def prewarm(self, model_cid: str, manifest_cid: str, providers: Sequence[str]) -> bool:
        """Fetches and loads the model and runs it once. False if that cannot be done now."""
        try:
            await self._warm(Known(model_cid, manifest_cid, tuple(providers)))
        except DimError:
            return False
        return True

    async def _warm(self, known: Known) -> None:
        manifest = await self._shelf.manifest(known.manifest_cid, known.providers, known.cid)
        async with self._file(manifest, known.manifest_cid, known.providers) as file:
            await self._pool.warm_up(file)

    async def _fetch(self, known: Known) -> None:
        manifest = await self._shelf.manifest(known.manifest_cid, known.providers, known.cid)
        async with self._file(manifest, known.manifest_cid, known.providers):
            pass

    def _found(self, name: str) -> Known | None:
        found = self.find_model(name)
        return Known(found[0].cid, found[0].manifest_cid, found[1]) if found is not None else None

    def _is_pinned(self, cid: str) -> bool:
        return not self._shelf.names(cid).isdisjoint(self._settings.prewarm.pinned)

    def _is_here(self, cid: str) -> bool:
        """The model's file is on disk, apart from the content store."""
        return cid in self._cache.cids() or self._shelf.builtin_path(cid) is not None

    def _queued(self) -> Mapping[Known, int]:
        return Counter(Known(o.model_cid, o.manifest_cid, tuple(o.providers)) for o in self._tasks.queued())

    def _looked(self) -> None:
        """At what the machine has: idle agents give memory back when it is short, and nobody takes more of a card than was granted."""
        latest = self._resources.latest
        self._admission.looked()
        self._pool.relieve(self._settings.min_free_memory - latest.memory_free)
        self._pool.watch_cards(latest.gpus)
        self.on_change("load")

    async def add_model_file(
        self, path: Path, *, id: str, licence: str, batch_axis: int | None, form: str = "", sign: bool = False,
        check: Callable[[str, str], None] | None = None,
    ) -> tuple[ModelManifest, str]:  # fmt: skip
        """Runs the file (or folder) once in an agent, then stores and pins it; manifest and manifest CID. An empty id becomes
        the file's name. ``form``: JSON, see `dimnode.domain.model_form`. ``check`` gets id and CID before anybody is told,
        and may raise. Raises `InvalidArgument`, `NotFound`, `FailedPrecondition`, `AlreadyExists`, `ResourceExhausted`."""
        added = await self._registration.add_file(path, id=id, licence=licence, batch_axis=batch_axis, form=form, sign=sign, check=check)
        self.on_change("models")
        return added

    async def add_model_cid(
        self, cid: str, *, id: str, format: str, licence: str, batch_axis: int | None, providers: Sequence[str], form: str = ""
    ) -> tuple[ModelManifest, str]:
        """The same for an artifact that is in the swarm. An empty format is found out."""
        added = await self._registration.add_cid(
            cid, id=id, format=format, licence=licence, batch_axis=batch_axis, form=form, providers=providers
        )
        self.on_change("models")
        return added

    async def check_model(self, manifest: ModelManifest, manifest_cid: str, providers: Sequence[str]) -> Mapping[str, Any]:
        """Fetches it if need be, loads it in a fresh agent and runs it once. Raises what `run_task` would fail with."""
        async with self._file(manifest, manifest_cid, providers) as file:
            return await self._registration.trial(file, manifest)

    async def remove_model(self, id: str) -> tuple[ModelRef, ...]:
        """Unpins and forgets what this node has under an id or CID. Raises `NotFound`, `FailedPrecondition`."""
        gone = await self._shelf.remove(id)
        for ref in gone:
            if not self._shelf.owns(ref.cid):
                self._prewarmer.forget(ref.cid)
                self._pool.forget(ref.cid)
                await self._cache.drop(ref.cid)
        self.on_change("models")
        return gone

    async def add_cabinet(self, name: str, path: Path, policy: Mapping[str, Any] | None) -> CabinetInfo:
        return await self._cabinets.add(name, path, policy)

    def cabinets(self) -> tuple[CabinetInfo, ...]:
        return self._cabinets.infos()

    def models(self) -> tuple[ModelRef, ...]:
        """Own, built-in and cached ones."""
        return self._shelf.refs(self._cache.cids(), self._pool.is_warm)

    def needed_blocks(self) -> tuple[str, ...]:
        """CIDs of the models that this node tells others about, and of their manifests."""
        cids = {*self._cache.cids(), *(ref.cid for ref in self.models()), *(ref.manifest_cid for ref in self.models())}
        return tuple(sorted(cids))

    # --- what others may know --------------------------------------------------------------------

    def capabilities(self) -> Capabilities:
        confinement = self._pool.confinement
        kept_from = tuple(name for name in confinement.__struct_fields__ if name not in confinement.missing())
        cards = self._resources.cards
        return capabilities(self._loaders, kept_from, cards, self._admission.gpu_formats(self._loaders, cards))

    def disk_free(self) -> int:
        """Bytes, as of the last look."""
        return self._resources.latest.disk_free

    def load(self) -> Load:
        latest, idle = self._resources.latest, self._pool.idle()
        return Load(
            running=self._tasks.running,
            queued=self._tasks.waiting(),
            slots=self._settings.slots,
            queue_capacity=self._settings.queue_capacity,
            memory_free=self._admission.memory_free(idle),
            gpu_free=self._admission.gpu_free(idle),
            cpu=latest.cpu,
        )

    def stats(self) -> Mapping[str, Any]:
        latest = self._resources.latest
        return {
            "riding": self._tasks.riding,
            "boot": self._boot,
            "running": self._tasks.running,
            "kept": self._tasks.kept(),
            "queue": msgspec.to_builtins(self._tasks.statistics()),
            "agents": self._pool.statistics(),
            "prewarmed": {"models": self._prewarmer.warmed, "failed": self._prewarmer.failed},
            "cache": self._cache.statistics(),
            "resources": msgspec.to_builtins(latest),
            "counters": dict(self._tasks.counters),
            "models": len(self.models()),
            "cabinets": len(self.cabinets()),
            **self.more_stats(),
        }

    def _no_room(self, order: TaskOrder) -> str | None:
        """Asked before an order is accepted. What is not known of its model by then is seen when its agent starts."""
        s = self._settings
        reason = refusal(self._resources.latest, memory=0, disk=0, min_memory=s.min_free_memory, min_disk=s.min_free_disk)
        manifest = self._shelf.known(order.manifest_cid)
        if reason is not None or manifest is None or self._pool.holds(self._shelf.said(order.manifest_cid, manifest).key):
            return reason
        return self._admission.shortage(manifest.format, manifest.size, manifest.needs, self._pool.idle())

    def _no_disk(self, size: int) -> str | None:
        s = self._settings
        return refusal(self._resources.latest, memory=0, disk=size, min_memory=0, min_disk=s.min_free_disk)


def batchable(manifest: ModelManifest) -> bool:
    """Whether rows of several requests could be put together, as far as the manifest tells."""
    numeric = all(t.dtype in tensors.NUMERIC_DTYPES for t in manifest.inputs)
    return (
        numeric
        and len(manifest.batched_inputs()) == len(manifest.inputs) > 0
        and len(manifest.batched_outputs()) == len(manifest.outputs) > 0
    )
