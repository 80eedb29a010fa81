"""What placement makes of a heartbeat."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from dimnode.core.needs import GPU_CONTEXT
from dimnode.core.placement import Candidate
from dimnode.domain import codec
from dimnode.domain.model import ModelManifest, ModelRef, Needs
from dimnode.domain.node import SANDBOX, CabinetInfo, Capabilities, Heartbeat, Load
from dimnode.orchestrator.selection import Selector, candidate
from dimnode.ports import NodeView
from patterns.api import TaskPlan
from tests.support.orchestration import FakeNode, FakeSwarm

GIB = 1 << 30
CAN: dict[str, Any] = {"os": "linux", "arch": "x", "cpus": 4, "memory": 8 * GIB, "loaders": ("onnx",)}


def beat(can: dict[str, Any], load: dict[str, Any], **more: Any) -> Heartbeat:
    return Heartbeat(
        peer_id="p", name="n", swarm="s", protocol=1, boot="b", incarnation=1, seq=1, addresses=(), daemon="",
        capabilities=Capabilities(**CAN, **can), load=Load(**load), **more,
    )  # fmt: skip


def seen(can: dict[str, Any] | None = None, load: dict[str, Any] | None = None, **more: Any) -> Candidate:
    return candidate(NodeView(beat(can or {}, load or {}, **more), "alive", 0.0))


class OlderLoad(msgspec.Struct, frozen=True, kw_only=True):
    """As it was before cards were told."""

    running: int = 0
    queued: int = 0
    slots: int = 1
    queue_capacity: int = 0
    memory_free: int = 0
    cpu: float = 0.0


def test_a_node_without_any_free_memory_has_none() -> None:
    assert seen(load={"memory_free": 0}).memory_free == 0
    assert seen(load={"memory_free": 5}).memory_free == 5
    assert seen().memory_free == 8 * GIB, "not told yet"


def test_a_node_cannot_have_less_than_no_work() -> None:
    assert seen(load={"running": -1000, "queued": 3}).busy == 3
    assert seen(load={"running": 2, "queued": -1000}).busy == 2


def test_cards_with_what_is_free_on_the_best() -> None:
    can = {"gpus": ("a", "b"), "gpu_memory": (8 * GIB, 16 * GIB), "gpu_formats": ("onnx",)}
    found = seen(can, {"gpu_free": (6 * GIB, GIB)})
    assert (found.gpus, found.gpu_formats, found.gpu_memory, found.gpu_free) == (2, {"onnx"}, 16 * GIB, 6 * GIB)
    unknown = [seen(can), seen({**can, "gpu_memory": (0, 16 * GIB)}, {"gpu_free": (0, GIB)}), seen({"gpus": ("a",)})]
    assert {(c.gpu_memory, c.gpu_free) for c in unknown} == {(None, None)}


def test_cabinets_that_demand_a_complete_sandbox_bar_nodes_without_one() -> None:
    cabinets = (
        CabinetInfo(name="ward", rows=1, columns={}, format="csv", sandbox=True),
        CabinetInfo(name="open", rows=1, columns={}, format="csv"),
    )
    assert seen({"sandbox": tuple(SANDBOX - {"files"})}, cabinets=cabinets).barred == {"ward"}
    assert seen({"sandbox": tuple(SANDBOX)}, cabinets=cabinets).barred == frozenset()


def test_what_older_nodes_say_is_understood_and_they_understand_what_is_said() -> None:
    said = beat({"gpus": ("a",), "gpu_memory": (1,), "gpu_formats": ("onnx",)}, {"memory_free": 7, "gpu_free": (1,)})
    plain: dict[str, Any] = msgspec.to_builtins(said)
    for part, new in (("capabilities", ("gpu_memory", "gpu_formats")), ("load", ("gpu_free",))):
        for name in new:
            del plain[part][name]
    old = codec.decode(codec.encode(plain), Heartbeat)
    assert (old.load.memory_free, old.load.gpu_free, old.capabilities.gpu_formats) == (7, (), ())
    assert codec.decode(codec.encode(said.load), OlderLoad) == OlderLoad(memory_free=7)


@pytest.mark.parametrize(
    ("needs", "gpu", "gpu_memory"),
    [(Needs(), False, 0), (Needs(gpu_memory=3 * GIB), True, 3 * GIB + GPU_CONTEXT), (Needs(memory=5 * GIB), False, 0)],
)
def test_a_task_asks_for_what_its_models_manifest_says(needs: Needs, gpu: bool, gpu_memory: int) -> None:
    selector = Selector(FakeSwarm([FakeNode("a")]), None)  # type: ignore[arg-type] - it needs no models for this
    manifest = ModelManifest(id="m", cid="c", format="onnx", inputs=(), outputs=(), size=1 << 20, needs=needs)
    ref = ModelRef(id="m", cid="c", manifest_cid="f", format="onnx", size=1 << 20)
    asked = selector._need(TaskPlan(key="t", round=0, model="m", sources=()), ref, manifest)
    assert (asked.gpu, asked.gpu_memory) == (gpu, gpu_memory)
    assert asked.memory == (needs.memory or (150 << 20) + 3 * (1 << 20)), "as the node itself counts"
