"""Nodes for tests of the swarm's shells: heartbeats, and registry plus elector over the in-memory network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import trio

from dimnode.clock import TrioClock
from dimnode.core.election import ElectionSettings, Start
from dimnode.core.membership import MembershipSettings
from dimnode.domain.model import ModelRef
from dimnode.domain.node import Capabilities, Heartbeat, Load
from dimnode.state.memory_journal import MemoryDisk, MemoryJournal
from dimnode.swarm.elector import SwarmElector
from dimnode.swarm.registry import SwarmRegistry
from p2p.memory import MemoryHub
from tests.support.entries import FakeSigner, fake_verify


def heartbeat(peer: str, **changes: Any) -> Heartbeat:
    made = Heartbeat(
        peer_id=peer,
        name=f"name-of-{peer}",
        swarm="dim",
        protocol=1,
        boot="boot-1",
        incarnation=1,
        seq=1,
        addresses=(f"/memory/{peer}/p2p/{peer}",),
        daemon=":50052",
        capabilities=Capabilities(os="linux", arch="x86_64", cpus=4, memory=8 << 30, loaders=("onnx",)),
        load=Load(slots=2, queue_capacity=8, memory_free=4 << 30),
    )
    return msgspec.structs.replace(made, **changes)


def model(name: str, warm: bool = False) -> ModelRef:
    return ModelRef(id=name, cid=f"cid-{name}", manifest_cid=f"manifest-{name}", format="onnx", size=1, warm=warm)


class SwarmNode:
    """A running node: `crash` it as kill -9 would, `start` another with the same disk."""

    def __init__(
        self, hub: MemoryHub, peer: str, *, boots: int = 1, disk: MemoryDisk | None = None, start: Start = "join", **kw: Any
    ) -> None:
        self.hub = hub
        self.peer = peer
        self.boots = boots
        self.clock = TrioClock()
        self.network = hub.network(peer)
        self.journal = MemoryJournal(disk, sync=0.005)
        eligible = kw.get("eligible", True)
        self.registry = SwarmRegistry(
            self.network,
            FakeSigner(peer),
            self.clock,
            heartbeat(peer, seq=0, boot=f"{peer}-{boots}", incarnation=kw.get("incarnation", boots), eligible=eligible),
            kw.get("membership", MembershipSettings()),
            verify=fake_verify,
        )
        self.elector = SwarmElector(
            self.network,
            self.registry,
            self.journal,
            self.clock,
            kw.get("election", ElectionSettings()),
            boot=f"{peer}-{boots}",
            eligible=eligible,
            start=start,
        )
        self.scope = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.registry.run)
                await nursery.start(self.elector.run)
                task_status.started()

    def crash(self) -> None:
        self.hub.crash(self.peer)
        self.scope.cancel()


async def start_nodes(hub: MemoryHub, nursery: trio.Nursery, peers: Sequence[str], **kw: Any) -> dict[str, SwarmNode]:
    """Fully connected and running."""
    nodes = {p: SwarmNode(hub, p, **kw) for p in peers}
    for node in nodes.values():
        await nursery.start(node.run)
    hub.connect_all()
    return nodes
