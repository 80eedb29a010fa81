"""What the operator of a node is served, on its own socket; the other interfaces are in `dimnode.ports`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from typing import Any, Protocol

from dimnode.ports import SwarmApi


class ContentApi(Protocol):
    """The node's content store, for its operator: documents of `dimnode ipfs`. Paths are absolute, on the node's machine. CIDs
    that cannot be had raise `NotFound`, bad ones and bad archives `InvalidArgument`, a full disk `ResourceExhausted`."""

    async def add(self, path: str, *, pin: bool, reason: str) -> Mapping[str, Any]: ...

    async def get(self, cid: str, path: str) -> Mapping[str, Any]: ...

    async def pin(self, cid: str, *, direct: bool, reason: str) -> Mapping[str, Any]: ...

    async def unpin(self, cid: str) -> Mapping[str, Any]: ...

    async def pins(self) -> Mapping[str, Any]: ...

    async def collect(self) -> Mapping[str, Any]: ...

    async def export_archive(self, cids: Sequence[str], path: str) -> Mapping[str, Any]: ...

    async def import_archive(self, path: str, *, pin: bool, reason: str) -> Mapping[str, Any]: ...

    async def statistics(self) -> Mapping[str, Any]: ...


class Published(Protocol):
    """The swarm's state as the seats have published it."""

    async def resolve(self, path: str, *, after: str = "", limit: int = 1000) -> Mapping[str, Any]: ...


class EventFeed(Protocol):
    """What was published for listeners, as this node heard it."""

    def watch(self, kinds: Collection[str], *, follow: bool) -> AsyncGenerator[Mapping[str, Any], None]: ...


class NodeApi(SwarmApi, Protocol):
    """The node's own socket."""

    @property
    def content(self) -> ContentApi: ...

    def status(self) -> Mapping[str, Any]: ...

    def invite(self) -> str: ...

    async def resolve(self, path: str, *, after: str, limit: int) -> Mapping[str, Any]:
        """``registry``, ``jobs`` or ``jobs/ID`` as the seats have published them. Raises `InvalidArgument`, `NotFound`, `Unavailable`."""
        ...

    def events(self, kinds: Collection[str], *, follow: bool) -> AsyncGenerator[Mapping[str, Any], None]:
        """Documents of `dimnode events`: the latest that are remembered, and with ``follow`` those that come. ``kinds``: jobs, nodes; empty: both.
        Raises `InvalidArgument`, `ResourceExhausted`."""
        ...

    def electorate(self) -> Mapping[str, Any]: ...

    async def change_electorate(self, peer: str, action: str) -> Mapping[str, Any]: ...

    async def node_stats(self, node: str) -> Mapping[str, Any]: ...

    async def add_model_file(
        self, path: str, *, id: str, licence: str, batch_axis: int | None, form: str = "", sign: bool = False
    ) -> Mapping[str, Any]: ...

    async def describe_model(self, name: str) -> Mapping[str, Any]:
        """The manifest as a document, and who has it. Raises `NotFound`."""
        ...

    async def check_model(self, name: str) -> Mapping[str, Any]:
        """Runs it once on this node. Raises what a task would fail with."""
        ...

    async def remove_model(self, name: str) -> Mapping[str, Any]:
        """This node keeps and lists it no longer. Raises `NotFound`."""
        ...

    async def add_cabinet(self, name: str, path: str, policy: str) -> Mapping[str, Any]: ...

    def cabinets(self) -> list[Mapping[str, Any]]: ...
