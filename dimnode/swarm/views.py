"""The swarm as documents: nodes, orchestrators, models, and artifacts in and out.

Serves the client API (on seat holders) and the node's own socket alike.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec

from dimnode.core.participants import READER
from dimnode.domain.model import ModelManifest, ModelRef, TensorSpec
from dimnode.domain.node import Seat
from dimnode.errors import AlreadyExists, DimError, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from dimnode.ports import Elector, Models, NodeView, Registry, TaskService
from p2p.ipfs.api import BadCar, BadCid, BlockMissing, ContentError, ContentStore, DiskFull, TooLarge


class SwarmViews:
    """`dimnode.ports.SwarmApi`."""

    def __init__(
        self,
        swarm: str,
        registry: Registry,
        elector: Elector,
        models: Models,
        store: ContentStore,
        daemon: TaskService,
        *,
        max_artifact_bytes: int,
        fetch_timeout: float,
    ) -> None:
        self._swarm = swarm
        self._registry = registry
        self._elector = elector
        self._models = models
        self._store = store
        self._daemon = daemon
        self._max_artifact = max_artifact_bytes
        self._timeout = fetch_timeout

    def name_of(self, peer: str) -> str:
        found = self._registry.find(peer)
        return found[0].heartbeat.name if found else peer

    def nodes(self) -> list[Mapping[str, Any]]:
        holders = {s.peer for s in self._elector.seats()}
        return [node_document(v, v.heartbeat.peer_id in holders) for v in self._registry.nodes()]

    def cluster(self) -> Mapping[str, Any]:
        return {"swarm": self._swarm, "orchestrators": [self._orchestrator(s) for s in self._elector.seats()]}

    def _orchestrator(self, seat: Seat) -> dict[str, Any]:
        return {
            "peer_id": seat.peer,
            "name": self.name_of(seat.peer),
            "grpc": seat.grpc,
            "term": seat.n,
            "seat": seat.seat,
            "local_only": seat.local_only,
        }

    async def models(self) -> list[Mapping[str, Any]]:
        out: list[Mapping[str, Any]] = []
        for ref in self._models.all():
            try:
                manifest = await self._models.manifest(ref)
            except Unavailable:
                manifest = None  # its only holder is gone: listed without its schema
            out.append(model_document(ref, manifest, self._nodes_with(ref)))
        return out

    def _nodes_with(self, ref: ModelRef) -> list[str]:
        return [self.name_of(p) for p in self._models.holders(ref.cid)]

    async def put_artifact(self, chunks: AsyncIterator[bytes]) -> tuple[str, int]:
        """Raises `InvalidArgument` if it is too large, `ResourceExhausted` if the disk is full."""
        try:
            cid, size = await self._store.add_stream(chunks, max_bytes=self._max_artifact)
            await self._store.pin(cid, reason="artifact")
        except TooLarge as e:
            raise InvalidArgument(f"the artifact is larger than {self._max_artifact} bytes") from e
        except DiskFull as e:
            raise ResourceExhausted("the disk of this node is full", hint="Free space, or use another node.") from e
        return cid, size

    async def get_artifact(self, cid: str) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._store.private_to(READER).iterate(cid, timeout=self._timeout):
                yield chunk
        except ContentError as e:
            raise content_error(cid, e) from e

    async def add_model(self, cid: str, *, id: str, format: str, licence: str, batch_axis: int | None, form: str = "") -> Mapping[str, Any]:
        self._check_free(id, cid)
        manifest, manifest_cid = await self._daemon.add_model_cid(
            cid, id=id, format=format, licence=licence, batch_axis=batch_axis, providers=(), form=form
        )
        return self._published(manifest, manifest_cid)

    def _published(self, manifest: ModelManifest, manifest_cid: str) -> Mapping[str, Any]:
        ref = ModelRef(id=manifest.id, cid=manifest.cid, manifest_cid=manifest_cid, format=manifest.format, size=manifest.size)
        self._registry.announce(models=self._daemon.models())
        return model_document(ref, manifest, self._nodes_with(ref))

    def _check_free(self, model_id: str, cid: str) -> None:
        """An id names one model: another artifact under the same id is refused."""
        if any(r.id == model_id and r.cid != cid for r in self._models.all()):
            raise AlreadyExists(f"the swarm already has another model {model_id!r}", hint="Choose another --id.")


def node_document(view: NodeView, holds_seat: bool) -> dict[str, Any]:
    """``NodeInfo`` of common.proto."""
    beat = view.heartbeat
    return {
        "peer_id": beat.peer_id,
        "name": beat.name,
        "state": view.state,
        "role": "orchestrator" if holds_seat else "node",
        "capabilities": msgspec.to_builtins(beat.capabilities),
        "load": msgspec.to_builtins(beat.load),
        "models": [m.id for m in beat.models],
        "cabinets": [msgspec.to_builtins(c) for c in beat.cabinets],
        "price": beat.price,
        "last_seen": view.last_seen,
    }


def model_document(ref: ModelRef, manifest: ModelManifest | None, nodes: list[str]) -> dict[str, Any]:
    """``ModelInfo`` of common.proto; without a manifest the schema is empty."""
    return {
        "id": ref.id,
        "cid": ref.cid,
        "manifest_cid": ref.manifest_cid,
        "format": ref.format,
        "size": ref.size,
        "inputs": [_tensor(t) for t in manifest.inputs] if manifest else [],
        "outputs": [_tensor(t) for t in manifest.outputs] if manifest else [],
        "licence": manifest.licence if manifest else "",
        "nodes": nodes,
        "batch_axis": manifest.batch_axis if manifest else None,
    }


def manifest_document(manifest: ModelManifest, ref: ModelRef, nodes: list[str]) -> dict[str, Any]:
    """All that a manifest says, without the values of its golden pair. Its signature was checked when it was fetched."""
    golden = manifest.golden
    return {
        **model_document(ref, manifest, nodes),
        "architecture": manifest.architecture,
        "needs": msgspec.to_builtins(msgspec.structs.asdict(manifest.needs)),
        "author": manifest.author,
        "golden": {
            "inputs": {n: {"dtype": t.dtype, "shape": list(t.shape)} for n, t in golden.inputs.items()},
            "outputs": {n: {"dtype": t.dtype, "shape": list(t.shape)} for n, t in golden.outputs.items()},
            "rtol": golden.rtol,
            "atol": golden.atol,
        }
        if golden
        else None,
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": ["?" if n is None else str(n) for n in spec.shape]}


def content_error(cid: str, error: ContentError) -> DimError:
    """What a person is told of a content store's failure."""
    match error:
        case BadCid():
            return InvalidArgument(f"{cid!r} is not a CID that DIM can use")
        case BlockMissing():
            return NotFound(f"no reachable node has {cid}", hint="The node that has it may be down.")
        case TooLarge():
            return InvalidArgument(f"{cid} is larger than allowed")
        case BadCar():
            return InvalidArgument(str(error))
        case DiskFull():
            return ResourceExhausted("the disk of this node is full")
        case _:
            return Unavailable(f"{cid} cannot be read: {error}")
