"""The clients behind the verbs; they are loaded when a verb needs one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dimnode.client import Client
    from dimnode.rpc.clients import NodeClient


def orchestrator_client(targets: Sequence[str]) -> Client:
    """``targets``: ``host:port`` or ``unix:PATH``."""
    from dimnode.client import Client

    return Client(targets)


def node_client(target: str) -> NodeClient:
    from dimnode.rpc.clients import NodeClient

    return NodeClient(target)


def publish(client: Client, path: Path, *, id: str, licence: str, batch_axis: int | None, form: str = "") -> dict[str, Any]:
    """Send a model file to an orchestrator and make it a model; ``ModelInfo``."""
    stored = client.put_file(path)
    return client.add_model(stored["cid"], id=id, licence=licence, batch_axis=batch_axis, form=form)
