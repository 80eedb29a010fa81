"""`ports.DaemonClient` over pooled connections; the own node is called directly."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc

from dimnode.domain import codec
from dimnode.domain.record import Ballot, SignedEntry
from dimnode.domain.task import TaskOrder, TaskUpdate, TextPiece
from dimnode.errors import Code, DimError, Unavailable
from dimnode.ports import TaskService
from dimnode.rpc.channels import ChannelPool, PooledChannel
from dimnode.rpc.convert import from_struct
from dimnode.rpc.dispatch import closing
from dimnode.rpc.errors import from_rpc_error
from dimnode.rpc.v1 import daemon_pb2 as pb
from dimnode.rpc.v1.daemon_pb2_grpc import DaemonStub

STAGES = frozenset({"accepted", "fetching", "running", "partial", "finished"})
_RECONNECT = frozenset({Code.UNAVAILABLE, Code.UNAUTHENTICATED})
"""Failures that a new connection may mend: the node restarted, or a certificate has changed."""


@dataclass(frozen=True, slots=True)
class DaemonClientSettings:
    timeout: float = 10.0
    """Seconds for Health, Stats and CancelTask."""
    prewarm_timeout: float = 600.0
    """Seconds for Prewarm, which fetches the model."""
    reattach: int = 2
    """Times that the stream of an accepted task is taken up again when it breaks."""


class GrpcDaemonClient:
    """Raises `Unavailable` when a node cannot be reached. All calls may be repeated without harm, and are, on a fresh
    connection: a daemon answers the same order with the same attempt."""

    def __init__(self, pool: ChannelPool, own_peer: str, own: TaskService, settings: DaemonClientSettings | None = None) -> None:
        self._pool = pool
        self._own_peer = own_peer
        self._own = own
        self._settings = settings or DaemonClientSettings()

    async def run_task(self, peer: str, order: TaskOrder) -> AsyncGenerator[TaskUpdate]:
        """See `ports.TaskService.run_task`. A stream that breaks is taken up again; each stage is told once, text perhaps twice."""
        if peer == self._own_peer:
            async with closing(self._own.run_task(order, peer)) as updates:
                async for update in updates:
                    yield update
            return
        request = pb.RunTaskRequest(order=codec.encode(order))
        told: set[str] = set()
        fresh, left = False, self._settings.reattach
        while True:
            progress = False
            try:
                async with aclosing(self._run(peer, request, fresh=fresh)) as updates:
                    async for update in updates:
                        progress = True
                        if update.stage not in told or update.piece is not None:
                            told.add(update.stage)
                            yield update
                return
            except DimError as e:
                left -= progress
                # a first failure may be the connection's, a failure of a fresh one is the node's
                if e.code not in _RECONNECT or (fresh and not progress) or left < 0:
                    raise _outside(e) from None
            fresh = True

    async def _run(self, peer: str, request: Any, *, fresh: bool) -> AsyncGenerator[TaskUpdate]:
        async with self._pool.channel(peer, fresh=fresh) as channel:
            stub = channel.stub(DaemonStub)
            messages = self._pool.bridge.stream(lambda: stub.RunTask(request))
            async with aclosing(messages):
                finished = False
                try:
                    async for message in messages:
                        finished = message.stage == "finished"
                        if message.stage in STAGES:  # a newer node may know others
                            yield _update(message)
                except grpc.RpcError as e:
                    raise from_rpc_error(e) from None
                if not finished:
                    raise Unavailable("the node ended the task's stream before its result")

    async def cancel_task(self, peer: str, job: str, task: str, attempt: int, ballot: Ballot) -> bool:
        if peer == self._own_peer:
            return await self._own.cancel_task(job, task, attempt, ballot)
        request = pb.CancelTaskRequest(job_id=job, task=task, attempt=attempt, ballot=codec.encode(ballot))
        answer = await self._call(peer, lambda stub: stub.CancelTask(request, timeout=self._settings.timeout))
        return answer.cancelled

    async def health(self, peer: str) -> Mapping[str, Any]:
        """``{"status", "peer_id", "name", "uptime"}``"""
        if peer == self._own_peer:
            return {"status": "ok", "peer_id": peer}
        answer = await self._call(peer, lambda stub: stub.Health(pb.HealthRequest(), timeout=self._settings.timeout))
        return {"status": answer.status, "peer_id": answer.peer_id, "name": answer.name, "uptime": answer.uptime}

    async def stats(self, peer: str) -> Mapping[str, Any]:
        if peer == self._own_peer:
            return self._own.stats()
        answer = await self._call(peer, lambda stub: stub.Stats(pb.StatsRequest(), timeout=self._settings.timeout))
        return from_struct(answer.stats)

    async def prewarm(self, peer: str, model_cid: str, manifest_cid: str, providers: Sequence[str]) -> bool:
        if peer == self._own_peer:
            return await self._own.prewarm(model_cid, manifest_cid, providers)
        request = pb.PrewarmRequest(model_cid=model_cid, manifest_cid=manifest_cid, providers=providers)
        answer = await self._call(peer, lambda stub: stub.Prewarm(request, timeout=self._settings.prewarm_timeout))
        return answer.warm

    async def _call(self, peer: str, call: Callable[[Any], Awaitable[Any]]) -> Any:
        """A unary call that may be repeated without harm, as all of them here may."""
        try:
            return await self._once(peer, call, fresh=False)
        except DimError as e:
            if e.code not in _RECONNECT:
                raise
        try:
            return await self._once(peer, call, fresh=True)
        except DimError as e:
            raise _outside(e) from None

    async def _once(self, peer: str, call: Callable[[Any], Awaitable[Any]], *, fresh: bool) -> Any:
        async with self._pool.channel(peer, fresh=fresh) as channel:
            try:
                return await self._pool.bridge.aio(_invoke(channel, call))
            except grpc.RpcError as e:
                raise from_rpc_error(e) from None


async def _invoke(channel: PooledChannel, call: Callable[[Any], Awaitable[Any]]) -> Any:
    """In asyncio, where a call must be made."""
    return await call(channel.stub(DaemonStub))


def _update(message: Any) -> TaskUpdate:
    try:
        entry = codec.decode(message.entry, SignedEntry) if message.entry else None
    except codec.CodecError as e:
        raise Unavailable("the node answered with a result that cannot be read") from e
    piece = None
    if message.stage == "partial":
        piece = TextPiece(row=message.piece.row, offset=message.piece.offset, text=message.piece.text)
    return TaskUpdate(stage=message.stage, entry=entry, piece=piece)


def _outside(error: DimError) -> DimError:
    """gRPC's own text on a failed connection holds addresses and library internals: not for people."""
    if error.code is Code.UNAVAILABLE and not error.hint:
        return Unavailable("the node's daemon cannot be reached", hint="Is the node running, and its daemon port reachable?")
    return error
