"""One small network (30 -> 32 -> 2) in every format, for `tools.bench_agents`; and a tiny language model.

CoreML's is the tests' fixture of the same sizes, since coremltools is not installed everywhere; the others have the weights of ``mlp.onnx``.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dimnode.daemon import model_about
from dimnode.daemon.agents import ModelFile
from dimnode.domain.model import TensorSpec
from loaders.archive import pack_folder
from tests.support.language_models import safetensors, tiny_folder

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
X = (TensorSpec(name="x", dtype="float32", shape=("N", 30)),)
Y = (TensorSpec(name="y", dtype="float32", shape=("N", 2)),)
MOST_ROWS = 32
_TORCHSCRIPT = """
import sys, numpy as np, torch
w = {k: torch.from_numpy(v) for k, v in np.load(sys.argv[1]).items()}
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for k, v in w.items():
            self.register_buffer(k, v)
    def forward(self, x):
        return torch.softmax(torch.relu(x @ self.w1 + self.b1) @ self.w2 + self.b2, dim=1)
torch.jit.save(torch.jit.script(Net().eval()), sys.argv[2])
"""
_MLX = """
import sys, numpy as np, mlx.core as mx
w = {k: mx.array(np.ascontiguousarray(v)) for k, v in np.load(sys.argv[1]).items()}
def net(x):
    return (mx.softmax(mx.maximum(x @ w["w1"] + w["b1"], 0) @ w["w2"] + w["b2"], axis=1),)
with mx.exporter(sys.argv[2], net) as export:
    for rows in range(1, int(sys.argv[3]) + 1):
        export(mx.zeros((rows, 30)))
"""


@dataclass(frozen=True)
class Model:
    file: ModelFile
    inputs: Mapping[str, Any] = field(default_factory=lambda: {"x": np.ones((1, 30), np.float32)})
    batches: bool = True


def make(folder: Path) -> dict[str, Model]:
    """Format -> model. ``folder`` must stay for as long as they are used."""
    w: dict[str, Any] = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(str(FIXTURES / "models" / "mlp.onnx")).graph.initializer}
    np.savez(folder / "w.npz", **w)
    _run(folder, _TORCHSCRIPT, folder / "w.npz", folder / "mlp.ts")
    _run(folder, _MLX, folder / "w.npz", folder / "mlp.mlxfn", MOST_ROWS)
    layers = {f"{name}.{kind}": w[f"{letter}{n}"].T.copy() for n, name in ((1, "one"), (2, "two")) for kind, letter in _LETTERS}
    (folder / "mlp.safetensors").write_bytes(safetensors(layers))
    pack_folder(tiny_folder(folder / "tiny", stops=False), folder / "tiny.lm")
    architecture = {"type": "mlp", "layers": ["one", "two"], "activation": "relu", "final": "softmax"}
    text = {"prompt": np.array(["Hello"], dtype=object), "max_tokens": np.array(16, np.int32)}
    return {
        "onnx": _model("onnx", FIXTURES / "models" / "mlp.onnx"),
        "pt2": _model("pt2", FIXTURES / "models" / "mlp.pt2"),
        "torchscript": _model("torchscript", folder / "mlp.ts", model_about.encode(X)),
        "safetensors": _model("safetensors", folder / "mlp.safetensors", model_about.encode(architecture=architecture)),
        "mlx": _model("mlx", folder / "mlp.mlxfn", model_about.encode(X, Y)),
        "coreml": _model("coreml", FIXTURES / "coreml" / "mlp_rows.coreml"),
        "mlx-lm": Model(_model("mlx-lm", folder / "tiny.lm").file, text, batches=False),
    }


_LETTERS = (("weight", "w"), ("bias", "b"))


def _model(format: str, path: Path, about: str = "") -> Model:
    return Model(ModelFile("m", format, path, path.stat().st_size, about=about, batchable=format != "mlx-lm"))


def _run(folder: Path, code: str, *arguments: object) -> None:
    """From a file: TorchScript wants to see its source."""
    (folder / "make_one.py").write_text(code)
    subprocess.run([sys.executable, str(folder / "make_one.py"), *map(str, arguments)], check=True, capture_output=True)
