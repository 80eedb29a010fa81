"""The clients behind the verbs; they are loaded when a verb needs one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dimnode.client import Client
    from dimnode.rpc.clients import NodeClient

CHUNK = 256 * 1024


def orchestrator_client(target: str) -> Client:
    """``target``: host:port, or a gRPC target such as ``unix:/...``."""
    from dimnode.client import Client

    return Client(target)


def node_client(target: str) -> NodeClient:
    from dimnode.rpc.clients import NodeClient

    return NodeClient(target)


def publish(client: Client, path: Path, *, id: str, licence: str, batch_axis: int | None) -> dict[str, Any]:
    """Send a model file to an orchestrator and make it a model; ``ModelInfo``."""
    stored = client.put_artifact(_pieces(path))
    return client.add_model(stored["cid"], id=id, licence=licence, batch_axis=batch_axis)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            yield piece
