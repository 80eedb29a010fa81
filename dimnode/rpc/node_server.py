"""The node's own API on a Unix socket in its home, for its operator and nobody else."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from dimnode.errors import FailedPrecondition, FieldProblem, InvalidArgument
from dimnode.node_ports import NodeApi
from dimnode.rpc import convert, documents
from dimnode.rpc.bridge import Bridge
from dimnode.rpc.dispatch import Call, Service, closing
from dimnode.rpc.server import RunningServer, ServerSettings, serve
from dimnode.rpc.v1 import node_pb2 as pb

MAX_SOCKET_PATH = 100
"""Bytes; the kernels' limits are 104 (macOS) and 108 (Linux)."""


class NodeService:
    """`dim.v1.Node` over `NodeApi`; runs in trio."""

    def __init__(self, api: NodeApi) -> None:
        self._api = api

    async def Status(self, _request: Any, _call: Call) -> Any:  # noqa: N802 - gRPC's names
        return pb.StatusResponse(status=convert.to_struct(self._api.status()))

    async def Invite(self, _request: Any, _call: Call) -> Any:  # noqa: N802
        return pb.InviteResponse(invite=self._api.invite())

    async def GetElectorate(self, _request: Any, _call: Call) -> Any:  # noqa: N802
        return pb.ElectorateResponse(electorate=convert.to_struct(self._api.electorate()))

    async def ChangeElectorate(self, request: Any, _call: Call) -> Any:  # noqa: N802
        if not request.peer:
            raise _bad("peer", "is missing")
        return pb.ElectorateResponse(electorate=convert.to_struct(await self._api.change_electorate(request.peer, request.action)))

    async def ListNodes(self, _request: Any, _call: Call) -> Any:  # noqa: N802
        return pb.ListRegistryResponse(nodes=[documents.node_to_proto(n) for n in self._api.nodes()])

    async def NodeStats(self, request: Any, _call: Call) -> Any:  # noqa: N802
        return pb.NodeStatsResponse(stats=convert.to_struct(await self._api.node_stats(request.node)))

    async def AddModelFile(self, request: Any, _call: Call) -> Any:  # noqa: N802
        axis = request.batch_axis if request.HasField("batch_axis") else None
        model = await self._api.add_model_file(
            _path(request), id=request.id, licence=request.licence, batch_axis=axis, form=request.form, sign=request.sign
        )
        return pb.AddModelFileResponse(model=documents.model_to_proto(model))

    async def DescribeModel(self, request: Any, _call: Call) -> Any:  # noqa: N802
        return pb.DescribeModelResponse(model=convert.to_struct(await self._api.describe_model(_name(request))))

    async def CheckModel(self, request: Any, _call: Call) -> Any:  # noqa: N802
        return pb.CheckModelResponse(report=convert.to_struct(await self._api.check_model(_name(request))))

    async def RemoveModel(self, request: Any, _call: Call) -> Any:  # noqa: N802
        return pb.RemoveModelResponse(report=convert.to_struct(await self._api.remove_model(_name(request))))

    async def ListSwarmModels(self, _request: Any, _call: Call) -> Any:  # noqa: N802
        return pb.ListLocalModelsResponse(models=[documents.model_to_proto(m) for m in await self._api.models()])

    async def AddCabinet(self, request: Any, _call: Call) -> Any:  # noqa: N802
        cabinet = await self._api.add_cabinet(_name(request), _path(request), request.policy)
        return pb.AddCabinetResponse(cabinet=documents.cabinet_to_proto(cabinet))

    async def ListCabinets(self, _request: Any, _call: Call) -> Any:  # noqa: N802
        return pb.ListCabinetsResponse(cabinets=[documents.cabinet_to_proto(c) for c in self._api.cabinets()])

    async def AddContent(self, request: Any, _call: Call) -> Any:  # noqa: N802
        return _content(await self._api.content.add(_path(request), pin=request.pin, reason=request.reason))

    async def GetContent(self, request: Any, _call: Call) -> Any:  # noqa: N802
        return _content(await self._api.content.get(request.cid, _path(request)))

    async def PinContent(self, request: Any, _call: Call) -> Any:  # noqa: N802
        return _content(await self._api.content.pin(request.cid, direct=request.direct, reason=request.reason))

    async def UnpinContent(self, request: Any, _call: Call) -> Any:  # noqa: N802
        return _content(await self._api.content.unpin(request.cid))

    async def ListPins(self, _request: Any, _call: Call) -> Any:  # noqa: N802
        return _content(await self._api.content.pins())

    async def CollectGarbage(self, _request: Any, _call: Call) -> Any:  # noqa: N802
        return _content(await self._api.content.collect())

    async def ExportArchive(self, request: Any, _call: Call) -> Any:  # noqa: N802
        return _content(await self._api.content.export_archive(tuple(request.cids), _path(request)))

    async def ImportArchive(self, request: Any, _call: Call) -> Any:  # noqa: N802
        return _content(await self._api.content.import_archive(_path(request), pin=request.pin, reason=request.reason))

    async def StoreStatistics(self, _request: Any, _call: Call) -> Any:  # noqa: N802
        return _content(await self._api.content.statistics())

    async def ResolveState(self, request: Any, _call: Call) -> Any:  # noqa: N802
        return _content(await self._api.resolve(request.path, after=request.after, limit=request.limit or 1000))

    async def WatchEvents(self, request: Any, _call: Call) -> AsyncIterator[Any]:  # noqa: N802
        async with closing(self._api.events(tuple(request.kinds), follow=request.follow)) as found:
            async for event in found:
                yield pb.EventResponse(event=convert.to_struct(event))


def _content(document: Mapping[str, Any]) -> Any:
    return pb.ContentResponse(document=convert.to_struct(document))


def _name(request: Any) -> str:
    if not request.name:
        raise _bad("name", "is missing")
    return request.name


def _path(request: Any) -> str:
    if not request.path.startswith("/"):
        raise _bad("path", "must be an absolute path on the node's machine")
    return request.path


def _bad(name: str, rule: str) -> InvalidArgument:
    return InvalidArgument(f"{name} {rule}", fields=(FieldProblem(name, rule),))


@asynccontextmanager
async def serve_node(bridge: Bridge, api: NodeApi, path: Path, settings: ServerSettings | None = None) -> AsyncGenerator[RunningServer]:
    """Serve on the Unix socket ``path`` (mode 0600; its folder, made if missing, 0700) while the block runs. A socket that
    a dead node left is replaced. Raises `FailedPrecondition` if a live node answers there, or the path is too long."""
    await trio.to_thread.run_sync(_prepare, path)
    contract = Service(pb.DESCRIPTOR.services_by_name["Node"], NodeService(api), endless=frozenset({"WatchEvents"}))
    settings = settings or ServerSettings(setting="the node's socket")
    async with serve(bridge, [contract], f"unix:{path}", settings) as running:
        await trio.to_thread.run_sync(path.chmod, 0o600)
        try:
            yield running
        finally:
            with trio.CancelScope(shield=True):
                await trio.Path(path).unlink(missing_ok=True)


def _prepare(path: Path) -> None:
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise FailedPrecondition(
            f"the path of the node's socket is longer than {MAX_SOCKET_PATH} bytes", hint="Choose a --home with a shorter path."
        )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    if _answers(path):
        raise FailedPrecondition("a node is running with this home", hint="Stop it first, or start with another --home.")
    path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    """gRPC would take a living node's socket away without a word."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
