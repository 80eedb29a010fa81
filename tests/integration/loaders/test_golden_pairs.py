"""A golden pair that is not met keeps a model of any format from being loaded, in a real agent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dimnode.daemon import model_about
from dimnode.daemon.agents import ModelFile
from dimnode.domain.model import GoldenPair, TensorSpec
from dimnode.domain.tensors import from_numpy
from dimnode.errors import FailedPrecondition
from loaders.registry import ENTRIES
from tests.integration.daemon.test_agents import running_pool
from tests.support.gguf_files import network, write
from tests.support.loader_cases import FIXTURES, safetensors_mlp, stored
from tests.support.mlx_functions import mlx_function
from tests.support.models import WEIGHTS, linear_onnx, linear_pt2
from tests.support.torchscript import torchscripts

X = np.arange(12, dtype=np.float32).reshape(3, 4)
FIXED = (TensorSpec(name="x", dtype="float32", shape=(3, 4)),)
ONES = np.ones((2, 3), np.float32)
SUMS = ONES @ np.arange(6, dtype=np.float32).reshape(2, 3).T + np.array([6, 7], np.float32)
MLP = {"type": "mlp", "layers": ["one"]}

Made = tuple[Path, dict[str, Any], dict[str, Any], dict[str, Any]]
"""The file, what its manifest says beside the pair, inputs, outputs."""
FORMATS: dict[str, Callable[[Path], Made]] = {
    "onnx": lambda f: (linear_onnx(f / "m.onnx"), {}, {"x": X}, {"y": X @ WEIGHTS}),
    "pt2": lambda f: (linear_pt2(f / "m.pt2"), {}, {"x": X}, {"output_0": X @ WEIGHTS}),
    "torchscript": lambda f: (torchscripts(f, "Linear")["Linear"], {"inputs": FIXED}, {"x": X}, {"output_0": X @ WEIGHTS}),
    "mlx": lambda f: (mlx_function(f / "m.mlxfn"), {"inputs": FIXED}, {"x": X}, {"output_0": X @ WEIGHTS}),
    "safetensors": lambda f: (safetensors_mlp(f), {"architecture": MLP}, {"x": ONES}, {"y": SUMS}),
    "coreml": lambda f: (FIXTURES / "coreml" / "cnn.coreml", {}, stored("coreml", "cnn", "in"), stored("coreml", "cnn", "out")),
    "mlx-lm": lambda f: (write(f / "m.gguf", network("Q8_0")), {},
                         {"prompt": np.array(["Hello"], dtype=object), "max_tokens": np.array(1, np.int32), "chat": np.array(False)}, {}),
}  # fmt: skip


def shifted(outputs: dict[str, Any]) -> dict[str, Any]:
    """Wrong by one in a single number."""
    name, array = next(iter(outputs.items()))
    wrong = array.copy()
    wrong.flat[-1] += 1
    return {**outputs, name: wrong}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", FORMATS)
async def test_a_model_that_answers_otherwise_is_not_loaded(tmp_path: Path, name: str) -> None:
    path, said, inputs, outputs = FORMATS[name](tmp_path)

    def model(expected: dict[str, Any]) -> ModelFile:
        pair = GoldenPair(inputs={n: from_numpy(a) for n, a in inputs.items()}, outputs={n: from_numpy(a) for n, a in expected.items()})
        return ModelFile("m", name, path, path.stat().st_size, about=model_about.encode(**said, golden=pair))

    async with running_pool(tmp_path) as pool:
        if name == "mlx-lm":  # what it says is found out first
            outputs = {"tokens": (await pool.run(ModelFile("n", name, path, path.stat().st_size), inputs))["tokens"]}
        for _ in range(2):
            with pytest.raises(FailedPrecondition, match="does not give its golden answer here: output"):
                await pool.run(model(shifted(outputs)), inputs)
        assert not pool.is_warm("m")
        found = await pool.run(model(outputs), inputs)
        assert set(outputs) <= set(found)


def test_every_format_is_here() -> None:
    assert set(FORMATS) == set(ENTRIES) - {"builtin"}
