"""The work API of a node: mutual TLS, and tasks only from those who may give them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from dimnode.domain import codec
from dimnode.domain.record import Ballot
from dimnode.domain.task import TaskOrder
from dimnode.errors import Code as ErrorCode
from dimnode.errors import DimError, FieldProblem, InvalidArgument, PermissionDenied
from dimnode.ports import TaskService
from dimnode.rpc import convert, documents
from dimnode.rpc.bridge import Bridge
from dimnode.rpc.dispatch import Call, Service, closing
from dimnode.rpc.server import RunningServer, ServerSettings, serve
from dimnode.rpc.v1 import daemon_pb2 as pb
from dimnode.security.certificates import CertificateStore

Authorize = Callable[[str], bool]
"""Whether a peer may give this node tasks: it holds a seat as far as we believe, or is on the allow-list."""


@dataclass(frozen=True, slots=True)
class DaemonServerSettings:
    server: ServerSettings = field(default_factory=lambda: ServerSettings(setting="daemon.listen", max_message_bytes=64 * 1024 * 1024))
    max_order_bytes: int = 32 * 1024 * 1024
    """Largest task order, inline tensors included."""


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """What Health tells."""

    peer_id: str
    name: str
    uptime: Callable[[], float]
    """Seconds."""


class DaemonService:
    """`dim.v1.Daemon` over `TaskService`; runs in trio."""

    def __init__(
        self,
        tasks: TaskService,
        certificates: CertificateStore,
        authorize: Authorize,
        identity: NodeIdentity,
        settings: DaemonServerSettings,
    ) -> None:
        self._tasks = tasks
        self._certificates = certificates
        self._authorize = authorize
        self._identity = identity
        self._settings = settings

    def _peer(self, call: Call) -> str:
        """The peer whose exchanged certificate the connection shows. The names in it are not looked at: any root
        could have signed them."""
        pem = call.certificate
        peer = self._certificates.peer_of(pem) if pem is not None else None
        if peer is None:
            raise DimError(
                "the certificate is not one that a peer has exchanged, or it has expired",
                code=ErrorCode.UNAUTHENTICATED,
                hint="Exchange certificates and connect again.",
            )
        return peer

    def _worker_for(self, call: Call) -> str:
        peer = self._peer(call)
        if not self._authorize(peer):
            raise PermissionDenied(
                "this node takes tasks only from nodes that hold a seat or are on its allow-list",
                hint="Add the peer id to election.allow if it should be trusted.",
            )
        return peer

    async def RunTask(self, request: Any, call: Call) -> AsyncIterator[Any]:  # noqa: N802 - gRPC's names
        """A stream that ends early leaves the task running."""
        caller = self._worker_for(call)
        if len(request.order) > self._settings.max_order_bytes:
            raise _bad("order", f"must not be larger than {self._settings.max_order_bytes} bytes")
        order = _decode(request.order, TaskOrder, "order")
        async with closing(self._tasks.run_task(order, caller)) as updates:
            async for update in updates:
                entry = b"" if update.entry is None else codec.encode(update.entry)
                p = update.piece
                piece = None if p is None else pb.TextPiece(row=p.row, offset=p.offset, text=p.text)
                yield pb.TaskUpdate(stage=update.stage, entry=entry, piece=piece)

    async def CancelTask(self, request: Any, call: Call) -> Any:  # noqa: N802
        self._worker_for(call)
        ballot = _decode(request.ballot, Ballot, "ballot")
        return pb.CancelTaskResponse(cancelled=await self._tasks.cancel_task(request.job_id, request.task, request.attempt, ballot))

    async def Prewarm(self, request: Any, call: Call) -> Any:  # noqa: N802
        self._worker_for(call)
        for name in ("model_cid", "manifest_cid"):
            if not getattr(request, name):
                raise _bad(name, "is missing")
        warm = await self._tasks.prewarm(request.model_cid, request.manifest_cid, tuple(request.providers))
        return pb.PrewarmResponse(warm=warm)

    async def Health(self, _request: Any, call: Call) -> Any:  # noqa: N802
        self._peer(call)
        me = self._identity
        return pb.HealthResponse(status="ok", peer_id=me.peer_id, name=me.name, uptime=me.uptime())

    async def Stats(self, _request: Any, call: Call) -> Any:  # noqa: N802
        self._peer(call)
        return pb.StatsResponse(stats=convert.to_struct(self._tasks.stats()))

    async def ListModels(self, _request: Any, call: Call) -> Any:  # noqa: N802
        self._peer(call)
        models = (
            {"id": m.id, "cid": m.cid, "manifest_cid": m.manifest_cid, "format": m.format, "size": m.size} for m in self._tasks.models()
        )
        return pb.ListModelsResponse(models=[documents.model_to_proto(m) for m in models])


def _decode(data: bytes, kind: Any, field_name: str) -> Any:
    try:
        return codec.decode(data, kind)
    except codec.CodecError:
        raise _bad(field_name, f"must be the canonical DAG-CBOR of a {kind.__name__}") from None


def _bad(name: str, rule: str) -> InvalidArgument:
    return InvalidArgument(f"{name} {rule}", fields=(FieldProblem(name, rule),))


@asynccontextmanager
async def serve_daemon(
    bridge: Bridge,
    tasks: TaskService,
    certificates: CertificateStore,
    authorize: Authorize,
    identity: NodeIdentity,
    listen: str,
    settings: DaemonServerSettings | None = None,
) -> AsyncGenerator[RunningServer]:
    """Serve the work API on ``listen`` while the block runs. Raises `FailedPrecondition` naming the setting if the
    address cannot be used."""
    settings = settings or DaemonServerSettings()
    service = Service(pb.DESCRIPTOR.services_by_name["Daemon"], DaemonService(tasks, certificates, authorize, identity, settings))
    async with serve(bridge, [service], listen, settings.server, certificates.server_credentials()) as running:
        yield running
