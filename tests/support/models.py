"""Tiny real models, made on the spot: ONNX with onnx.helper, PyTorch with torch.export in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WEIGHTS = np.array([[1, 0], [0, 1], [1, 1], [2, -1]], dtype=np.float32)


def save(path: Path, nodes: list, inputs: list, outputs: list, initializers: list | None = None) -> Path:
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers or [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def linear_onnx(path: Path, *, batch: str | int = "N") -> Path:
    """x float32 [N, 4] -> y float32 [N, 2] = x @ WEIGHTS; class int64 [N]."""
    return save(
        path,
        [
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("ArgMax", ["y"], ["class"], axis=1, keepdims=0),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 2]),
            helper.make_tensor_value_info("class", TensorProto.INT64, [batch]),
        ],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )


def identity_onnx(path: Path, kind: int = TensorProto.STRING) -> Path:
    return save(
        path,
        [helper.make_node("Identity", ["a"], ["b"])],
        [helper.make_tensor_value_info("a", kind, ["N"])],
        [helper.make_tensor_value_info("b", kind, ["N"])],
    )


UNTRIED = '{"trial": false}'
"""The form for models that a trial run would not end with."""


def slow_onnx(path: Path, rounds: int = 2_000_000_000, *, batch: str | int = 1) -> Path:
    """x float32 [batch] -> y = x + rounds: a loop that by default practically never ends."""
    body = helper.make_graph(
        [helper.make_node("Add", ["v_in", "one"], ["v_out"]), helper.make_node("Identity", ["go_in"], ["go_out"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_in", TensorProto.FLOAT, [batch]),
        ],
        [helper.make_tensor_value_info("go_out", TensorProto.BOOL, []), helper.make_tensor_value_info("v_out", TensorProto.FLOAT, [batch])],
        [numpy_helper.from_array(np.ones(1, np.float32), "one")],
    )
    return save(
        path,
        [helper.make_node("Loop", ["rounds", "go", "x"], ["y"], body=body)],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch])],
        [numpy_helper.from_array(np.array(rounds, np.int64), "rounds"), numpy_helper.from_array(np.array(True), "go")],
    )


def training_onnx(path: Path, width: int = 2) -> Path:
    """w float32 [width], x float32 [N, 2] -> w2 float32 [width] = w + the mean of x's first column."""
    mean = helper.make_node("ReduceMean", ["first"], ["mean"], keepdims=0)
    return save(
        path,
        [helper.make_node("Gather", ["x", "zero"], ["first"], axis=1), mean, helper.make_node("Add", ["w", "mean"], ["w2"])],
        [helper.make_tensor_value_info("w", TensorProto.FLOAT, [width]), helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("w2", TensorProto.FLOAT, [width])],
        [numpy_helper.from_array(np.array(0, np.int64), "zero")],
    )


def hungry_onnx(path: Path) -> Path:
    """n int64 [1] -> y float32 [n]: as much memory as is asked for."""
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [1.0])
    return save(
        path,
        [helper.make_node("ConstantOfShape", ["n"], ["y"], value=value)],
        [helper.make_tensor_value_info("n", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M"])],
    )


def external_onnx(path: Path) -> Path:
    """A model whose weights lie in another file."""
    linear_onnx(path)
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, all_tensors_to_one_file=True, location="weights.bin", size_threshold=0)
    return path


EXPORT = """
import sys, torch, warnings
warnings.simplefilter("ignore")
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.l = torch.nn.Linear(4, 2, bias=False)
        self.l.weight.data = torch.tensor([[1., 0, 1, 2], [0, 1, 1, -1]])
        self.register_buffer("shift", torch.zeros(4))
    def forward(self, x):
        y = self.l(x + self.shift)
        return y, y.argmax(-1)
rows = torch.export.Dim("rows", min=1, max=4096)
program = torch.export.export(Net().eval(), (torch.zeros(3, 4),), dynamic_shapes={"x": {0: rows}})
torch.export.save(program, sys.argv[1])
"""


def linear_pt2(path: Path) -> Path:
    """x float32 [rows, 4] -> output_0 = x @ WEIGHTS, output_1 its argmax. torch stays out of this process."""
    subprocess.run([sys.executable, "-c", EXPORT, str(path)], check=True, capture_output=True)
    return path
