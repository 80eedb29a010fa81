"""Loaders on hardware that this project's own machines lack: the answers are those of the CPU. *Not run here.*

Where the hardware is there these run like any other test; elsewhere each says what it needs, and none counts as passing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dimnode.daemon import gpus
from loaders.api import About, LoadedModel
from loaders.coreml.package import translate
from loaders.trial import difference
from tests.support.hardware import ON_A_MAC, WITH_NVIDIA, need_provider, need_torch
from tests.support.loader_cases import FIXTURES, stored
from tests.support.mlx_functions import mlx_function
from tests.support.models import WEIGHTS
from tests.unit.loaders.test_safetensors import MLP, mlp_weights, written

HALF = 2e-2
"""Accelerators compute in half precision, or in TF32, where they like to."""
X = np.random.default_rng(3).normal(size=(5, 30)).astype(np.float32)


def agree(ours: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    assert ours.keys() == expected.keys()
    assert {n: d for n, v in expected.items() if (d := difference(ours[n], v, tolerance, tolerance))} == {}


def pt2(device: str) -> LoadedModel:
    from loaders.torch_loader import TorchLoader

    return TorchLoader().load(FIXTURES / "models" / "mlp.pt2", 1, About(device=device))


def bare(device: str, folder: Path) -> LoadedModel:
    from loaders.safetensors_loader import SafetensorsLoader

    (folder / "m").write_bytes(written(mlp_weights()))
    return SafetensorsLoader().load(folder / "m", 1, About(architecture=MLP, device=device))


def on_torch(device: str, folder: Path) -> None:
    model = pt2(device)
    name = model.schema.inputs[0].name
    agree(model.run({name: X}), pt2("cpu").run({name: X}), HALF)
    x = X[:, :5].copy()
    other = bare(device, folder)
    agree(other.run({"x": x}), bare("cpu", folder).run({"x": x}), HALF)
    kept: Any = model
    assert kept._device.type == device


def on_onnx(device: str, provider: str) -> None:
    from loaders.onnx_loader import OnnxLoader, OnnxModel

    path = FIXTURES / "models" / "mlp.onnx"
    model = OnnxLoader().load(path, 1, About(device=device))
    assert isinstance(model, OnnxModel)
    assert model._session.get_providers()[0] == provider
    name = model.schema.inputs[0].name
    agree(model.run({name: X}), OnnxLoader().load(path, 1, About(device="cpu")).run({name: X}), HALF)


def test_the_comparisons_themselves_work(tmp_path: Path) -> None:
    """On the CPU, where nothing can differ: what is not run here has at least been run once."""
    on_torch("cpu", tmp_path)
    on_onnx("cpu", "CPUExecutionProvider")


# --- NVIDIA -------------------------------------------------------------------------------------


@WITH_NVIDIA
def test_nvml_lists_the_cards_with_their_memory() -> None:
    found = gpus.look()
    assert found
    assert all(g.name and (1 << 30) <= g.memory_total < (1 << 40) and 0 < g.memory_free <= g.memory_total for g in found)


@WITH_NVIDIA
def test_torch_on_cuda_answers_as_on_the_cpu(tmp_path: Path) -> None:
    need_torch("cuda")
    on_torch("cuda", tmp_path)


@WITH_NVIDIA
def test_onnxruntime_on_cuda_answers_as_on_the_cpu() -> None:
    need_provider("CUDAExecutionProvider")
    on_onnx("cuda", "CUDAExecutionProvider")


@WITH_NVIDIA
@pytest.mark.timeout(600)  # it compiles
def test_tensorrt_answers_as_the_cpu() -> None:
    need_provider("TensorrtExecutionProvider")
    on_onnx("tensorrt", "TensorrtExecutionProvider")


# --- Apple --------------------------------------------------------------------------------------


@ON_A_MAC
def test_macos_tells_its_graphics_processor() -> None:
    assert any(g.name for g in gpus.look())


@ON_A_MAC
def test_torch_on_apples_gpu_answers_as_on_the_cpu(tmp_path: Path) -> None:
    need_torch("mps")
    on_torch("mps", tmp_path)


@ON_A_MAC
def test_onnxruntime_on_coreml_answers_as_on_the_cpu() -> None:
    need_provider("CoreMLExecutionProvider")
    on_onnx("mps", "CoreMLExecutionProvider")


@ON_A_MAC
def test_mlx_on_metal_answers_as_numpy(tmp_path: Path) -> None:
    import mlx.core as mx

    from loaders.api import TensorSchema
    from loaders.mlx_loader import MlxLoader

    if not mx.metal.is_available():
        pytest.skip("not run here: needs Metal")
    about = About(inputs=(TensorSchema("x", "float32", (3, 4)),))
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    found = MlxLoader().load(mlx_function(tmp_path / "f.mlxfn"), 1, about).run({"x": x})
    np.testing.assert_allclose(found["output_0"], x @ WEIGHTS, rtol=1e-4)


@ON_A_MAC
@pytest.mark.parametrize("name", ["mlp", "mlp_rows", "cnn", "encoder", "classifier", "forest", "forest_regressor", "logistic", "linear"])
def test_apples_runtime_gives_the_shapes_and_the_answers_of_the_translation(name: str) -> None:
    """A manifest that a Linux node made fits a Mac, and the other way round."""
    from loaders import coreml_native
    from loaders.coreml_loader import CoremlLoader
    from loaders.onnx_loader import OnnxModel, session_of

    if not coreml_native.can_run():
        pytest.skip("not run here: needs coremltools")
    path = FIXTURES / "coreml" / f"{name}.coreml"
    translated = OnnxModel(session_of(translate(path), 1, "cpu"))
    about = About(inputs=translated.schema.inputs, outputs=translated.schema.outputs)
    native = CoremlLoader().load(path, 1, about)
    assert isinstance(native, coreml_native.NativeModel)
    inputs = stored("coreml", name, "in")
    agree(native.run(inputs), translated.run(inputs), HALF)


def test_each_of_these_says_what_it_needs() -> None:
    """Read by people in the report of a run: a reason begins with the words that it is looked for by."""
    marks = [m for f in vars(sys.modules[__name__]).values() for m in getattr(f, "pytestmark", []) if m.name == "skipif"]
    assert len(marks) == 9
    assert all(m.kwargs["reason"].startswith("not run here: needs") for m in marks)
