"""A model by id or CID and who has it, for nodes that keep models ready."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from dimnode.domain.model import ModelRef
from dimnode.swarm.models import SwarmModels
from p2p.ipfs.memory import MemoryStore


def ref(id: str, cid: str) -> ModelRef:
    return ModelRef(id=id, cid=cid, manifest_cid=f"man-{cid}", format="onnx", size=1)


def test_a_model_is_found_with_all_that_have_it_unless_its_name_is_not_its_alone() -> None:
    nodes = {"anna": [ref("a", "1"), ref("twice", "2")], "bert": [ref("a", "1"), ref("twice", "3")]}
    alive = [SimpleNamespace(heartbeat=SimpleNamespace(peer_id=peer, models=models)) for peer, models in nodes.items()]
    registry: Any = SimpleNamespace(changed=lambda: 1, alive=lambda: alive)
    models = SwarmModels(registry, MemoryStore())
    assert models.find("a") == (ref("a", "1"), ("anna", "bert"))
    assert models.find("3") == (ref("twice", "3"), ("bert",))
    assert models.find("twice") is None
    assert models.find("unknown") is None
