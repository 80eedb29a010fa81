"""One running swarm of two for all hostile input: what it must survive, it must survive in a row."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.support.real_swarm import MODELS, RealSwarm, rows, wait_until

SPEC_MODELS = ("test-model-001", "model-001", "model-002")


@pytest.fixture(scope="package")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealSwarm]:
    """Models, nodes and a cabinet of the names that the examples use; node-001 holds the only seat."""
    folder = tmp_path_factory.mktemp("d")
    np.savetxt(folder / "data.csv", rows(12), delimiter=",", header=",".join(f"c{i}" for i in range(30)), comments="")
    with RealSwarm(tmp_path_factory.mktemp("s"), {"election.orchestrators": "1"}) as swarm:
        swarm.start("node-001", "node-002")
        with swarm["node-001"].node_client() as node:
            for name in SPEC_MODELS:
                node.add_model_file(str(MODELS / "mlp.onnx"), id=name)
            node.add_cabinet("cabinet-001", str(folder / "data.csv"))
        wait_until(lambda: len(swarm["node-002"].nodes()["node-001"]["cabinets"]) == 1, "the cabinet is known")
        yield swarm
