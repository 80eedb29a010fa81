"""Makes the test fixtures: one small network as ONNX and as a PyTorch exported program, and job forms.

    python tools/make_fixtures.py [FOLDER]

The network is 30 -> 32 -> 2 with a symbolic batch axis: ``x`` float32 [N, 30] -> ``probabilities`` float32
[N, 2]. Both files hold the same weights (seeded), so both must give the same numbers. ``golden.npz`` has
an input and its output as numpy computes it. Needs the dev environment (onnx, torch).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
Weights = dict[str, NDArray[np.float32]]


def weights() -> Weights:
    rng = np.random.default_rng(7)
    shapes = {"w1": (30, 32), "b1": (32,), "w2": (32, 2), "b2": (2,)}
    return {name: (rng.normal(size=shape) * 0.3).astype(np.float32) for name, shape in shapes.items()}


def by_numpy(w: Weights, x: NDArray[np.float32]) -> NDArray[np.float32]:
    scores = np.maximum(x @ w["w1"] + w["b1"], 0) @ w["w2"] + w["b2"]
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def as_onnx(w: Weights) -> bytes:
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["s"]),
        helper.make_node("Softmax", ["s"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 30])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(v, n) for n, v in w.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return made.SerializeToString(deterministic=True)


class Mlp(torch.nn.Module):
    def __init__(self, w: Weights) -> None:
        super().__init__()
        self.one = torch.nn.Linear(30, 32)
        self.two = torch.nn.Linear(32, 2)
        with torch.no_grad():
            for layer, n in ((self.one, "1"), (self.two, "2")):
                layer.weight.copy_(torch.from_numpy(w[f"w{n}"].T.copy()))
                layer.bias.copy_(torch.from_numpy(w[f"b{n}"]))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"probabilities": torch.softmax(self.two(torch.relu(self.one(x))), dim=1)}


def write_pt2(w: Weights, path: Path) -> None:
    batch = torch.export.Dim("N", min=1, max=4096)
    program = torch.export.export(Mlp(w).eval(), (torch.zeros(4, 30),), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:  # traces name files of the machine that made the program
        node.meta.pop("stack_trace", None)
    torch.export.save(program, str(path))


COLLABORATIVE: dict[str, Any] = {
    "pattern": "collaborative",
    "config": {"model_id": "test-model-001", "nodes": ["node-001", "node-002"], "aggregation": {"method": "federated_averaging"}},
    "priority": "normal",
    "max_cost": 1000,
}
COMPARATIVE: dict[str, Any] = {
    "pattern": "comparative",
    "config": {
        "model_ids": ["model-001", "model-002"],
        "node_id": "node-001",
        "data_source": "cabinet-001",
        "consensus": {"method": "weighted_vote", "minAgreement": 0.75},
    },
    "priority": "normal",
    "max_cost": 1000,
}
CHAINED: dict[str, Any] = {
    "pattern": "chained",
    "config": {
        "pipeline": [
            {"step": 1, "name": "Step1", "model_id": "model-001", "node_id": "node-001", "input_source": "client_data", "timeout": 60},
            {"step": 2, "name": "Step2", "model_id": "model-002", "node_id": "node-001", "input_source": "step_1_output", "timeout": 60},
        ]
    },
    "priority": "normal",
    "max_cost": 1000,
}


def changed(form: dict[str, Any], **change: Any) -> dict[str, Any]:
    return {**form, **change}


def configured(form: dict[str, Any], **change: Any) -> dict[str, Any]:
    return {**form, "config": {**form["config"], **change}}


def stepped(i: int, **change: Any) -> dict[str, Any]:
    steps = [dict(s) for s in CHAINED["config"]["pipeline"]]
    steps[i].update(change)
    return configured(CHAINED, pipeline=steps)


def valid_forms() -> dict[str, Any]:
    tensor = {"dtype": "float32", "shape": [2, 2], "data": [1, 2, 3.5, "NaN"]}
    return {
        "collaborative": COLLABORATIVE,
        "comparative": COMPARATIVE,
        "chained": CHAINED,
        "camel_case": {
            "pattern": "collaborative",
            "config": {"modelId": "m", "dataSource": "cabinet-001", "minNodes": 1, "aggregation": {"method": "trimmed_mean", "trim": 0.2}},
            "maxCost": 5,
            "clientData": {"x": tensor},
            "idempotencyKey": "k",
        },
        "federated_training": {
            "pattern": "collaborative",
            "config": {
                "model_id": "m",
                "data_source": "patients",
                "columns": {"x": ["a", "b"], "y": ["y"]},
                "rounds": 10,
                "feedback": {"new_weights": "weights"},
            },
            "client_data": {"weights": {"dtype": "float64", "shape": [3], "data": [0, 0, 0]}},
        },
        "several_sources": stepped(1, input_source=["client_data", "step_1_output"], inputs={"a": "b"}, outputs={"c": "d"}),
        "input_by_cid": {**COLLABORATIVE, "client_data": {"x": {"cid": "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"}}},
    }


def invalid_forms() -> dict[str, Any]:
    """name -> form and the field that the refusal must name."""
    cases: list[tuple[str, str, Any]] = [
        ("not_an_object", "", [1, 2]),
        ("no_pattern", "pattern", {"config": {}}),
        ("unknown_pattern", "pattern", changed(COLLABORATIVE, pattern="magic")),
        ("unknown_field", "colour", changed(COLLABORATIVE, colour="red")),
        ("unknown_config_field", "config.colour", configured(COLLABORATIVE, colour="red")),
        ("no_model", "config.model_id", {"pattern": "collaborative", "config": {}}),
        ("wrong_type", "config.model_id", configured(COLLABORATIVE, model_id=7)),
        ("priority", "priority", changed(COLLABORATIVE, priority="urgent")),
        ("negative_cost", "max_cost", changed(COLLABORATIVE, max_cost=-1)),
        ("zero_timeout", "timeout", changed(COLLABORATIVE, timeout=0)),
        ("min_nodes_above_nodes", "config", configured(COLLABORATIVE, min_nodes=3)),
        ("node_twice", "config", configured(COLLABORATIVE, nodes=["a", "a"])),
        ("rounds_without_feedback", "config", configured(COLLABORATIVE, rounds=2)),
        ("unknown_method", "config.aggregation.method", configured(COLLABORATIVE, aggregation={"method": "average"})),
        ("agreement_above_1", "config.consensus.minAgreement", configured(COMPARATIVE, consensus={"minAgreement": 1.5})),
        ("weights_of_strangers", "config", configured(COMPARATIVE, consensus={"weights": {"model-009": 1}})),
        ("no_models", "config.model_ids", configured(COMPARATIVE, model_ids=[])),
        ("later_step_as_source", "config.pipeline", stepped(0, input_source="step_2_output")),
        ("step_number_twice", "config.pipeline", stepped(1, step=1)),
        ("step_timeout", "config.pipeline[0].timeout", stepped(0, timeout=-1)),
        ("tensor_shape", "client_data.x.data", changed(COLLABORATIVE, client_data={"x": {"dtype": "float32", "shape": [3], "data": [1]}})),
        ("tensor_dtype", "client_data.x.dtype", changed(COLLABORATIVE, client_data={"x": {"dtype": "float12", "shape": [1], "data": [1]}})),
        ("nan_shape", "client_data.x.shape", changed(COLLABORATIVE, client_data={"x": {"dtype": "float32", "shape": ["NaN"], "data": []}})),
    ]
    return {name: {"field": field, "form": form} for name, field, form in cases}


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    for name in ("models", "forms/valid", "forms/invalid"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    w = weights()
    (folder / "models" / "mlp.onnx").write_bytes(as_onnx(w))
    write_pt2(w, folder / "models" / "mlp.pt2")
    x = np.random.default_rng(8).normal(size=(5, 30)).astype(np.float32)
    np.savez(folder / "models" / "golden.npz", x=x, probabilities=by_numpy(w, x))
    for kind, forms in (("valid", valid_forms()), ("invalid", invalid_forms())):
        for name, form in forms.items():
            write_json(folder / "forms" / kind / f"{name}.json", form)
    for path in sorted(folder.rglob("*.*")):
        print(f"{path.relative_to(folder)}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
