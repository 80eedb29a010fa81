"""Running tasks in a simulation: the daemon's real tasks, fences, ledger and recorder; a plain function in place of agents,
and calls over the simulated wire in place of gRPC."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import trio

from dimnode.daemon.execution import Execution
from dimnode.daemon.settings import DaemonSettings
from dimnode.daemon.task_inputs import gather
from dimnode.daemon.task_outputs import leave
from dimnode.daemon.tasks import Tasks
from dimnode.domain import codec, tensors
from dimnode.domain.record import Attempt, Ballot, Receipt
from dimnode.domain.task import TaskOrder, TaskUpdate
from dimnode.errors import Code, DimError, PermissionDenied, Unavailable, error_of
from dimnode.ports import Clock
from p2p.api import NetworkError, RemoteFault
from p2p.ipfs.api import ContentStore
from p2p.memory import MemoryHub, MemoryNetwork
from tests.support.simulated_jobs import CATALOGUE, run_model

CANCEL = "simulation/cancel-task"
CONNECT = 2.0
"""Seconds until a connection counts as failed."""
RESEND = 0.2
KEEPALIVE = 5.0
"""Seconds between looks whether a silent connection still carries anything."""


@dataclass(slots=True)
class Worker:
    """Work that takes a while and goes wrong at times. ``ran``: (job, task key) -> how often it was run to its end."""

    peer: str
    rng: random.Random
    clock: Clock
    store: ContentStore
    settings: DaemonSettings
    seconds: tuple[float, float]
    failures: float
    ran: Counter[tuple[str, str]]

    async def work(self, execution: Execution) -> Attempt:
        order = execution.order
        execution.stage("fetching")
        manifest = CATALOGUE[order.model_cid][1]
        gathered = await gather(order, manifest, self.store, None, self.settings)  # type: ignore[arg-type]  # no cabinets here
        execution.stage("running")
        await trio.sleep(self.rng.uniform(*self.seconds))
        if self.rng.random() < self.failures:
            raise Unavailable("the simulated agent died")
        self.ran[order.job, order.task_key] += 1
        outputs = run_model(order.model_cid, gathered.arrays)
        values = await leave(order, manifest, outputs, gathered.rows, self.store, self.settings.inline_bytes)
        receipt = Receipt(
            job=order.job,
            task=order.task,
            attempt=order.attempt,
            node=self.peer,
            model_cid=order.model_cid,
            inputs=gathered.digests,
            outputs={name: tensors.content_digest(v) for name, v in values.items()},
            started=execution.started,
            ended=self.clock.wall(),
            cost=1.0,
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
            node=self.peer,
        )


@dataclass(slots=True, eq=False)
class Call:
    """A stream of updates under way from a daemon to its caller."""

    asker: str
    order: TaskOrder
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    updates: list[TaskUpdate] = field(default_factory=list[TaskUpdate])
    ended: bool = False
    error: DimError | None = None
    more: trio.Event = field(default_factory=trio.Event)

    def tell(self) -> None:
        self.more.set()
        self.more = trio.Event()

    def end(self, error: DimError | None = None) -> None:
        if not self.ended:
            self.ended, self.error = True, error
            self.tell()


class TaskServer:
    """The daemon's side of the wire."""

    def __init__(self, hub: MemoryHub, network: MemoryNetwork, tasks: Tasks, authorized: Callable[[str], bool]) -> None:
        self._hub, self._network, self.tasks, self._authorized = hub, network, tasks, authorized
        self._calls: set[Call] = set()
        network.serve(CANCEL, self._cancel)

    def crashed(self) -> None:
        """Whoever was connected sees the connection break."""
        for call in self._calls:
            call.end(Unavailable("the connection to the node broke"))

    def accept(self, call: Call) -> None:
        if self._network.alive:
            assert self._hub.nursery is not None
            self._calls.add(call)
            self._network.context.copy().run(self._hub.nursery.start_soon, self._serve, call)

    async def _serve(self, call: Call) -> None:
        error: DimError | None = None
        try:
            with call.scope:
                try:
                    if not self._authorized(call.asker):
                        raise PermissionDenied("tasks come from seat holders")
                    async with aclosing(self.tasks.watch(call.order)) as updates:
                        async for update in updates:
                            await self._carry(call.asker)
                            call.updates.append(update)
                            call.tell()
                except DimError as e:
                    error = e
                await self._carry(call.asker)
                call.end(error)
        finally:
            self._calls.discard(call)

    async def _carry(self, asker: str) -> None:
        """A stream loses nothing: what does not get through is sent again, until it does or the stream is given up."""
        await trio.sleep(self._hub.delay(self._network.peer_id, asker))
        while not self._hub.passes(self._network.peer_id, asker):
            await trio.sleep(RESEND)

    async def _cancel(self, peer: str, data: bytes) -> bytes:
        job, task, attempt, ballot = codec.decode(data, tuple[str, str, int, Ballot])
        try:
            if not self._authorized(peer):
                raise PermissionDenied("tasks come from seat holders")
            return codec.encode(await self.tasks.cancel(job, task, attempt, ballot))
        except DimError as e:
            raise RemoteFault(e.code.value, e.message) from e


class SimulatedDaemonClient:
    """`dimnode.ports.DaemonClient`. ``find``: the server of a node that is up."""

    def __init__(self, hub: MemoryHub, network: MemoryNetwork, own: Tasks, find: Callable[[str], TaskServer | None]) -> None:
        self._hub, self._network, self._own, self._find = hub, network, own, find

    async def run_task(self, peer: str, order: TaskOrder) -> AsyncGenerator[TaskUpdate, None]:
        me = self._network.peer_id
        if peer == me:
            async with aclosing(self._own.watch(order)) as updates:
                async for update in updates:
                    yield update
            return
        server: TaskServer | None = None
        with trio.move_on_after(CONNECT):
            await self._hub.travel(me, peer)
            server = self._find(peer)
        if server is None or not self._network.alive:
            raise Unavailable("the node's daemon cannot be reached")
        call = Call(me, order)
        server.accept(call)
        seen = 0
        try:
            while True:
                while seen < len(call.updates):
                    seen += 1
                    yield call.updates[seen - 1]
                if call.ended:
                    break
                with trio.move_on_after(KEEPALIVE) as silence:
                    await call.more.wait()
                if silence.cancelled_caught and not self._hub.well(me, peer):
                    raise Unavailable("the connection to the node is dead")
        finally:
            if self._hub.passes(me, peer):
                call.scope.cancel()
        if call.error is not None:
            raise call.error
        if not call.updates or call.updates[-1].entry is None:
            raise Unavailable("the node ended the task's stream before its result")

    async def cancel_task(self, peer: str, job: str, task: str, attempt: int, ballot: Ballot) -> bool:
        if peer == self._network.peer_id:
            return await self._own.cancel(job, task, attempt, ballot)
        try:
            return bool(
                codec.decode_plain(await self._network.request(peer, CANCEL, codec.encode((job, task, attempt, ballot)), timeout=5.0))
            )
        except RemoteFault as e:
            raise error_of(Code(e.code) if e.code in Code.__members__ else Code.INTERNAL, e.message) from e
        except NetworkError as e:
            raise Unavailable("the node's daemon cannot be reached") from e

    async def health(self, peer: str) -> Mapping[str, Any]:
        raise Unavailable(peer)

    async def stats(self, peer: str) -> Mapping[str, Any]:
        raise Unavailable(peer)

    async def prewarm(self, peer: str, model_cid: str, manifest_cid: str, providers: Sequence[str]) -> bool:
        del peer, model_cid, manifest_cid, providers
        await trio.lowlevel.checkpoint()
        return True
