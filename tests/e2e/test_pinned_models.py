"""A model that a node is told to keep ready comes from whoever has it, before anybody asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.models import linear_onnx
from tests.support.real_swarm import RealSwarm, wait_until


@pytest.mark.timeout(120)
def test_a_pinned_model_is_fetched_from_another_node_and_loaded(tmp_path: Path) -> None:
    with RealSwarm(tmp_path / "s") as swarm:
        swarm.node("anna")
        swarm.start("anna")
        swarm.node("bert", daemon__pinned='["wanted"]', daemon__prewarm_interval="0.5")
        swarm.start("bert")
        with swarm["anna"].node_client() as anna:
            cid = anna.add_model_file(str(linear_onnx(tmp_path / "m.onnx")), id="wanted", licence="MIT")["cid"]
        wait_until(
            lambda: cid in [a["model_cid"] for a in swarm["bert"].cli("stats")["agents"]["agents"]], "bert has the model and has loaded it"
        )
