"""Synchronous clients for programs without an event loop: this one speaks to a node's own socket; `dimnode.client` to
orchestrators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dimnode.rpc import documents
from dimnode.rpc.convert import from_struct
from dimnode.rpc.links import ClientTls
from dimnode.rpc.roaming import ClientSettings, Connection
from dimnode.rpc.v1 import node_pb2 as npb
from dimnode.rpc.v1.node_pb2_grpc import NodeStub

TRANSFER = 3600.0
"""Seconds for a file of any size."""
__all__ = ["ClientSettings", "ClientTls", "NodeClient"]


class NodeClient:
    """The node's own socket. ``target``: ``unix:PATH``. All methods raise `DimError`."""

    def __init__(self, target: str, settings: ClientSettings | None = None) -> None:
        self._connection = Connection([target], NodeStub, settings or ClientSettings(retry_for=0.0))

    def __enter__(self) -> NodeClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def status(self) -> dict[str, Any]:
        return from_struct(self._connection.call("Status", npb.StatusRequest()).status)

    def invite(self) -> str:
        return self._connection.call("Invite", npb.InviteRequest()).invite

    def electorate(self) -> dict[str, Any]:
        return from_struct(self._connection.call("GetElectorate", npb.GetElectorateRequest()).electorate)

    def change_electorate(self, peer: str, action: str, timeout: float = 60.0) -> dict[str, Any]:
        """``action``: add or remove. ``timeout`` covers the wait for the version before and for this one."""
        request = npb.ChangeElectorateRequest(peer=peer, action=action)
        return from_struct(self._connection.call("ChangeElectorate", request, timeout=timeout).electorate)

    def nodes(self) -> list[dict[str, Any]]:
        answer = self._connection.call("ListNodes", npb.ListRegistryRequest())
        return [documents.node_from_proto(n) for n in answer.nodes]

    def stats(self, node: str = "") -> dict[str, Any]:
        """Of this node, or of another by name or peer id."""
        return from_struct(self._connection.call("NodeStats", npb.NodeStatsRequest(node=node)).stats)

    def add_model_file(
        self, path: str, *, id: str = "", licence: str = "", batch_axis: int | None = None, form: str = "", sign: bool = False,
        timeout: float = 600.0,
    ) -> dict[str, Any]:  # fmt: skip
        """``path``: absolute, on the node's machine; a file or a folder. ``form``: what the author says of it, JSON.
        ``timeout`` covers the trial run in an agent."""
        request = npb.AddModelFileRequest(path=path, id=id, licence=licence, batch_axis=batch_axis, form=form, sign=sign)
        return documents.model_from_proto(self._connection.call("AddModelFile", request, timeout=timeout).model)

    def describe_model(self, name: str) -> dict[str, Any]:
        return from_struct(self._connection.call("DescribeModel", npb.DescribeModelRequest(name=name)).model)

    def check_model(self, name: str, timeout: float = 600.0) -> dict[str, Any]:
        """Runs it once on the node: ``{"id", "cid", "format", "signed", "golden", "schema", "memory"}``."""
        return from_struct(self._connection.call("CheckModel", npb.CheckModelRequest(name=name), timeout=timeout).report)

    def remove_model(self, name: str) -> dict[str, Any]:
        return from_struct(self._connection.call("RemoveModel", npb.RemoveModelRequest(name=name)).report)

    def models(self) -> list[dict[str, Any]]:
        answer = self._connection.call("ListSwarmModels", npb.ListLocalModelsRequest())
        return [documents.model_from_proto(m) for m in answer.models]

    def add_cabinet(self, name: str, path: str, policy: str = "", timeout: float = 600.0) -> dict[str, Any]:
        """``policy``: the policy file's content, JSON; empty for the default policy."""
        request = npb.AddCabinetRequest(name=name, path=path, policy=policy)
        return documents.cabinet_from_proto(self._connection.call("AddCabinet", request, timeout=timeout).cabinet)

    def cabinets(self) -> list[dict[str, Any]]:
        answer = self._connection.call("ListCabinets", npb.ListCabinetsRequest())
        return [documents.cabinet_from_proto(c) for c in answer.cabinets]

    # --- the content store; paths as above, ``timeout`` covers all of a transfer

    def add_content(self, path: str, *, pin: bool = True, reason: str = "", timeout: float = TRANSFER) -> dict[str, Any]:
        return self._content("AddContent", npb.AddContentRequest(path=path, pin=pin, reason=reason), timeout)

    def get_content(self, cid: str, path: str, timeout: float = TRANSFER) -> dict[str, Any]:
        return self._content("GetContent", npb.GetContentRequest(cid=cid, path=path), timeout)

    def pin_content(self, cid: str, *, direct: bool = False, reason: str = "", timeout: float = TRANSFER) -> dict[str, Any]:
        return self._content("PinContent", npb.PinContentRequest(cid=cid, direct=direct, reason=reason), timeout)

    def unpin_content(self, cid: str) -> dict[str, Any]:
        return self._content("UnpinContent", npb.UnpinContentRequest(cid=cid))

    def pins(self) -> dict[str, Any]:
        return self._content("ListPins", npb.ListPinsRequest())

    def collect_garbage(self, timeout: float = TRANSFER) -> dict[str, Any]:
        return self._content("CollectGarbage", npb.CollectGarbageRequest(), timeout)

    def export_archive(self, cids: Sequence[str], path: str, timeout: float = TRANSFER) -> dict[str, Any]:
        return self._content("ExportArchive", npb.ExportArchiveRequest(cids=cids, path=path), timeout)

    def import_archive(self, path: str, *, pin: bool = True, reason: str = "", timeout: float = TRANSFER) -> dict[str, Any]:
        return self._content("ImportArchive", npb.ImportArchiveRequest(path=path, pin=pin, reason=reason), timeout)

    def store_statistics(self) -> dict[str, Any]:
        return self._content("StoreStatistics", npb.StoreStatisticsRequest())

    def resolve(self, path: str, *, after: str = "", limit: int = 1000, timeout: float = 120.0) -> dict[str, Any]:
        """``registry``, ``jobs`` (ids above ``after``, ``limit`` of them) or ``jobs/ID``, as the seats have published them."""
        return self._content("ResolveState", npb.ResolveStateRequest(path=path, after=after, limit=limit), timeout)

    def events(self, kinds: Sequence[str] = (), *, follow: bool = False) -> Iterator[dict[str, Any]]:
        """Of jobs and nodes, or of one ``kinds``: the latest that the node remembers, with ``follow`` those that come, until the iteration
        is left."""
        request = npb.WatchEventsRequest(kinds=kinds, follow=follow)
        for _, answer in self._connection.follow("WatchEvents", request, self._connection.attempts(), endless=False):
            yield from_struct(answer.event)

    def _content(self, method: str, request: Any, timeout: float | None = None) -> dict[str, Any]:
        answer = self._connection.call(method, request) if timeout is None else self._connection.call(method, request, timeout=timeout)
        return from_struct(answer.document)
