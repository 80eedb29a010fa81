"""One network in five forms of four frameworks on one node: comparative jobs over them, and models that come, are checked and go."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.loader_cases import Case, cases, silero_answers, silero_in_onnx, silero_inputs
from tests.support.real_swarm import RealNode, RealSwarm

FRAMEWORKS = ("onnx", "torchscript", "pt2", "mlx", "coreml")


@pytest.fixture(scope="module")
def silero() -> dict[str, Case]:
    return {c.format: c for c in cases() if c.model == "silero-vad"} | {"onnx": silero_in_onnx()}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, silero: dict[str, Case]) -> Iterator[RealNode]:
    files = tmp_path_factory.mktemp("m")
    with RealSwarm(tmp_path_factory.mktemp("s")) as swarm:
        swarm.node("anna")
        swarm.start("anna")
        with swarm["anna"].node_client() as client:
            for name in FRAMEWORKS:
                client.add_model_file(str(silero[name].file(files)), id=f"vad-{name}", licence="MIT", form=silero[name].form(), sign=True)
        yield swarm["anna"]


@pytest.mark.timeout(240)
def test_all_frameworks_agree_on_one_network(node: RealNode) -> None:
    consensus = {"method": "mean", "tolerance": 0.01, "minAgreement": 1.0}
    form = {"pattern": "comparative", "config": {"model_ids": [f"vad-{n}" for n in FRAMEWORKS], "consensus": consensus}}
    with node.client() as client:
        job = client.submit(form, silero_inputs())["job_id"]
        result = client.wait(job)
    assert result["status"] == "completed"
    assert len(result["tasks"]) == len(FRAMEWORKS)
    expected = silero_answers()
    for name in ("output", "memoryN"):
        np.testing.assert_allclose(result["outputs"][name], expected[name], atol=5e-3)


def test_a_model_is_described_checked_and_removed(node: RealNode) -> None:
    told = node.cli("model", "describe", "vad-mlx")
    assert (told["format"], [t["name"] for t in told["outputs"]]) == ("mlx", ["output", "memoryN"])
    assert told["author"] == node.status()["peer_id"]
    assert told["golden"]["outputs"]["output"]["shape"] == [1, 1]
    assert node.cli("model", "check", "vad-mlx")["golden"] is True
    assert [m["id"] for m in node.cli("model", "remove", "vad-mlx")["removed"]] == ["vad-mlx"]
    with node.node_client() as client:
        assert "vad-mlx" not in {m["id"] for m in client.models()}
    assert node.cli("model", "check", "vad-mlx", code=3)["error"]["code"] == "NOT_FOUND"


def test_a_wrong_golden_pair_stops_a_model_at_the_door(node: RealNode, silero: dict[str, Case], tmp_path: Path) -> None:
    form = json.loads(silero["coreml"].form())
    form["golden"]["outputs"]["output"]["data"] = [0.999]
    (tmp_path / "form.json").write_text(json.dumps(form))
    path = silero["coreml"].file(tmp_path)
    refused = node.cli("model", "add", str(path), "--id", "liar", "--form", str(tmp_path / "form.json"), code=1)
    assert "does not give its golden answer" in refused["error"]["message"]
    with node.node_client() as client:
        assert "liar" not in {m["id"] for m in client.models()}
