"""A swarm for the orchestrator to work with, in memory and on virtual time: real table, admission,
coordinator and patterns; the nodes run plain functions instead of agents."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import trio

from dimnode.clock import TrioClock
from dimnode.core.record_gate import EntryRules
from dimnode.domain.model import ModelManifest, ModelRef, TensorSpec
from dimnode.domain.node import CabinetInfo, Capabilities, Heartbeat, Load, NodeState
from dimnode.domain.record import Attempt, Ballot, ErrorInfo, Receipt
from dimnode.domain.task import TaskOrder, TaskUpdate
from dimnode.domain.tensors import content_digest, from_npy, from_numpy, to_numpy
from dimnode.errors import DimError, NotFound, Unavailable
from dimnode.orchestrator import Orchestrator, OrchestratorSettings, build_orchestrator
from dimnode.ports import NodeView
from dimnode.records.messages import AttemptsAnswer, AttemptsRequest
from dimnode.records.table import RecordTable, TableSettings
from dimnode.security.signing import sign_entry
from dimnode.state.memory_journal import MemoryJournal
from dimnode.swarm.models import SwarmModels
from p2p.identity import Identity, verify
from p2p.ipfs.memory import MemoryStore
from patterns.reduce import reduce_outputs
from tests.support.fake_daemon import FakeDaemon, answer

Function = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def identity(name: str) -> Identity:
    return Identity(name.encode().ljust(32, b".")[:32])


@dataclass
class FakeNode:
    """A node that runs functions. ``behave`` may raise, sleep or change what a task does."""

    name: str
    price: float = 1.0
    cabinets: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    state: NodeState = "alive"
    slots: int = 4
    loaders: tuple[str, ...] = ("onnx",)
    seconds: float = 0.01
    behave: Callable[[TaskOrder], Any] | None = None
    refuse: Callable[[TaskOrder], DimError | None] | None = None
    """Why a task is not taken, before it is accepted."""
    orders: list[TaskOrder] = field(default_factory=list)
    """All that came, also for what runs already."""
    runs: list[TaskOrder] = field(default_factory=list)
    """What was begun."""
    cancelled: list[str] = field(default_factory=list)
    forge: str | None = None
    """Sign with this name's key instead."""

    def __post_init__(self) -> None:
        self.identity = identity(self.name)

    @property
    def peer(self) -> str:
        return self.identity.peer_id


class FakeSwarm:
    """Registry, models and daemon client in one place."""

    def __init__(self, nodes: Sequence[FakeNode]) -> None:
        self.by_peer = {n.peer: n for n in nodes}
        self.store = MemoryStore()
        self._daemons: dict[str, FakeDaemon] = {}
        self.functions: dict[str, Function] = {}
        self.manifests: dict[str, ModelManifest] = {}
        self.refs: list[ModelRef] = []
        self.version = 1
        self._changed = trio.Event()

    async def add_model(
        self,
        model_id: str,
        function: Function,
        inputs: Mapping[str, tuple[int | str | None, ...]],
        outputs: Mapping[str, tuple[int | str | None, ...]],
        dtype: str = "float32",
        artifact: bytes = b"model",
    ) -> ModelRef:
        cid = await self.store.add_bytes(artifact + f" {model_id}".encode())
        manifest = ModelManifest(
            id=model_id,
            cid=cid,
            format="onnx",
            size=100,
            inputs=tuple(TensorSpec(name=n, dtype=dtype, shape=s) for n, s in inputs.items()),
            outputs=tuple(TensorSpec(name=n, dtype=dtype, shape=s) for n, s in outputs.items()),
        )
        manifest_cid = await self.store.put_dag(_plain(manifest))
        ref = ModelRef(id=model_id, cid=cid, manifest_cid=manifest_cid, format="onnx", size=100)
        self.refs.append(ref)
        self.functions[cid] = function
        self.manifests[cid] = manifest
        self.touch()
        return ref

    # --- registry ---

    def nodes(self) -> tuple[NodeView, ...]:
        return tuple(NodeView(self._beat(n), n.state, 0.0) for n in self.by_peer.values())

    def find(self, name_or_id: str) -> tuple[NodeView, ...]:
        return tuple(v for v in self.nodes() if name_or_id in (v.heartbeat.peer_id, v.heartbeat.name))

    def alive(self) -> tuple[NodeView, ...]:
        return tuple(v for v in self.nodes() if v.state == "alive")

    def changed(self) -> int:
        return self.version

    async def wait_changed(self, since: int) -> int:
        while self.version <= since:
            await self._changed.wait()
        return self.version

    async def wait_gone(self, peer: str) -> None:
        while peer in self.by_peer and self.by_peer[peer].state not in ("dead", "removed"):
            await self._changed.wait()

    def announce(self, **changes: Any) -> None:
        del changes

    def touch(self) -> None:
        self.version += 1
        self._changed.set()
        self._changed = trio.Event()

    def kill(self, name: str) -> None:
        node = next(n for n in self.by_peer.values() if n.name == name)
        node.state = "dead"
        self.daemon(node.peer).die()
        self.touch()

    def revive(self, name: str) -> None:
        node = next(n for n in self.by_peer.values() if n.name == name)
        node.state = "alive"
        self.daemon(node.peer).up = True
        self.touch()

    def _beat(self, node: FakeNode) -> Heartbeat:
        return Heartbeat(
            peer_id=node.peer,
            name=node.name,
            swarm="test",
            protocol=1,
            boot="b",
            incarnation=1,
            seq=1,
            addresses=(),
            daemon="",
            capabilities=Capabilities(os="linux", arch="x", cpus=4, memory=1 << 34, loaders=node.loaders),
            load=Load(slots=node.slots, queue_capacity=100, memory_free=1 << 33),
            models=tuple(self.refs),
            cabinets=tuple(CabinetInfo(name=n, rows=_rows(c), columns={}, format="npz") for n, c in node.cabinets.items()),
            price=node.price,
        )

    # --- daemon client ---

    async def run_task(self, peer: str, order: TaskOrder) -> AsyncGenerator[TaskUpdate, None]:
        if peer not in self.by_peer:
            raise Unavailable("the node cannot be reached")
        node = self.by_peer[peer]
        node.orders.append(order)
        if node.refuse is not None and (error := node.refuse(order)) is not None:
            raise error
        async with aclosing(self.daemon(peer).run_task(order)) as updates:
            async for update in updates:
                yield update

    def daemon(self, peer: str) -> FakeDaemon:
        if peer not in self._daemons:
            node = self.by_peer[peer]
            self._daemons[peer] = FakeDaemon(lambda order: self._run(node, order), lambda order: self._cancelled(node, order))
        return self._daemons[peer]

    async def _run(self, node: FakeNode, order: TaskOrder) -> Any:
        node.runs.append(order)
        error: DimError | None = None
        try:
            if node.behave is not None:
                await node.behave(order)
            await trio.sleep(node.seconds)
        except DimError as e:
            if not getattr(e, "in_attempt", False):
                raise
            error = e
        return await self.sign_attempt(node, order, error)

    def _cancelled(self, node: FakeNode, order: TaskOrder) -> Any:
        attempt = Attempt(
            job=order.job,
            ballot=order.ballot,
            task=order.task,
            attempt=order.attempt,
            task_key=order.task_key,
            node=node.peer,
            status="cancelled",
        )
        return sign_entry(attempt, node.identity)

    async def ask(self, peer: str, request: AttemptsRequest) -> AttemptsAnswer | None:
        """`dimnode.orchestrator.takeover.Ask`"""
        daemon = self.daemon(peer) if peer in self.by_peer else None
        if daemon is None or daemon.deaf or not daemon.up:
            return None
        return AttemptsAnswer(reports=tuple(await answer(daemon, request.jobs)))

    async def sign_attempt(self, node: FakeNode, order: TaskOrder, error: DimError | None = None) -> Any:
        common: dict[str, Any] = {
            "job": order.job,
            "ballot": order.ballot,
            "task": order.task,
            "attempt": order.attempt,
            "task_key": order.task_key,
            "node": node.peer,
        }
        signer = identity(node.forge) if node.forge else node.identity
        if error is not None:
            info = ErrorInfo(code=error.code.value, message=error.message)
            common |= {"retryable": getattr(error, "retryable", True), "interrupted": getattr(error, "interrupted", False)}
            common |= {"shortage": getattr(error, "shortage", False)}
            return sign_entry(Attempt(status="failed", error=info, **common), signer)
        outputs, rows = await self._compute(node, order)
        receipt = Receipt(
            job=order.job,
            task=order.task,
            attempt=order.attempt,
            node=node.peer,
            model_cid=order.model_cid,
            inputs={},
            outputs={n: content_digest(v) for n, v in outputs.items()},
            started=trio.current_time(),
            ended=trio.current_time(),
            cost=node.price,
        )
        return sign_entry(Attempt(status="completed", outputs=outputs, rows=rows, receipt=receipt, **common), signer)

    async def _compute(self, node: FakeNode, order: TaskOrder) -> tuple[dict[str, Any], int]:
        manifest = self.manifests[order.model_cid]
        arrays: dict[str, np.ndarray] = {}
        if order.cabinet is not None:
            arrays.update(node.cabinets[order.cabinet.name])
        for item in order.inputs:
            value = to_numpy(item.value) if item.value.raw is not None else from_npy(await self.store.get_bytes(item.value.cid or ""))
            arrays[item.name] = value[item.rows[0] : item.rows[1]] if item.rows else value
        batched = [arrays[n] for n in manifest.batched_inputs() if n in arrays]
        rows = len(batched[0]) if batched else 1
        out = reduce_outputs(
            dict(self.functions[order.model_cid](arrays)), rows, manifest.batched_outputs(), order.reduce, order.vote_output
        )
        return {order.rename_outputs.get(n, n): from_numpy(np.asarray(a)) for n, a in out.items()}, rows

    async def cancel_task(self, peer: str, job: str, task: str, attempt: int, ballot: Ballot) -> bool:
        if peer not in self.by_peer:
            raise Unavailable("the node cannot be reached")
        found = self.daemon(peer).cancel(job, task, attempt, ballot)
        self.by_peer[peer].cancelled.append(task)
        return found

    async def health(self, peer: str) -> Mapping[str, Any]:
        raise NotFound(peer)

    async def stats(self, peer: str) -> Mapping[str, Any]:
        raise NotFound(peer)

    async def prewarm(self, peer: str, model_cid: str, manifest_cid: str, providers: Sequence[str]) -> bool:
        del peer, model_cid, manifest_cid, providers
        return True

    # --- the orchestrator ---

    def orchestrator(
        self,
        journal: MemoryJournal,
        settings: OrchestratorSettings | None = None,
        boot: str = "boot-1",
        keep: TableSettings | None = None,
        *,
        name: str = "orchestrator",
        table: RecordTable | None = None,
    ) -> Orchestrator:
        return build_orchestrator(
            swarm="test",
            rules=EntryRules(verify),
            boot=boot,
            signer=identity(name),
            table=table or RecordTable(journal, identity(name), settings=keep),
            store=self.store,
            registry=self,
            models=SwarmModels(self, self.store),
            client=self,
            clock=TrioClock(),
            settings=settings or OrchestratorSettings(),
            ask=self.ask,
            compute=in_place,
        )


async def in_place(fn: Callable[..., Any], *args: Any) -> Any:
    """Virtual time may not pass while a thread works, so nothing runs in one."""
    await trio.lowlevel.checkpoint()
    return fn(*args)


def failing(message: str, *, retryable: bool = True, code: str = "INTERNAL", interrupted: bool = False) -> DimError:
    """An error that a node reports in a signed attempt."""
    from dimnode.errors import Code

    e = DimError(message, code=Code(code))
    e.in_attempt = True  # type: ignore[attr-defined]
    e.retryable = retryable  # type: ignore[attr-defined]
    e.interrupted = interrupted  # type: ignore[attr-defined]
    return e


def _rows(cabinet: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(cabinet.values())))


def _plain(manifest: ModelManifest) -> Any:
    from dimnode.domain import codec

    return codec.decode_plain(codec.encode(manifest))
