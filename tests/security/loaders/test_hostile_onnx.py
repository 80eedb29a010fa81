"""ONNX files that are broken or reach for other files. onnxruntime is loaded in this process: it runs no foreign code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from loaders.api import DeviceMissing, InferenceFailed, InputRejected, ModelRejected
from loaders.archive import pack_folder
from loaders.onnx_loader import OnnxLoader, choose_providers, provider_options
from loaders.registry import available_loaders, open_loader
from tests.support.models import WEIGHTS, external_onnx, identity_onnx, linear_onnx, save


def load(path: Path):
    return OnnxLoader().load(path, 1)


def test_a_model_tells_its_schema_and_runs(tmp_path: Path) -> None:
    model = load(linear_onnx(tmp_path / "m.onnx"))
    assert [(t.name, t.dtype, t.shape) for t in model.schema.inputs] == [("x", "float32", ("N", 4))]
    x = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(model.run({"x": x})["y"], x @ WEIGHTS)


@pytest.mark.parametrize(
    ("kind", "values"), [(TensorProto.STRING, np.array(["ä", "b"], dtype=object)), (TensorProto.FLOAT16, np.array([1, 2], np.float16))]
)
def test_text_and_half_floats(tmp_path: Path, kind: int, values: np.ndarray) -> None:
    assert load(identity_onnx(tmp_path / "m.onnx", kind)).run({"a": values})["b"].tolist() == values.tolist()


def test_external_data_is_refused_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external_onnx(tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelRejected, match="other files"):
        load(path)
    model = onnx.load(path, load_external_data=False)
    inner = helper.make_node("Constant", [], ["c"], value=model.graph.initializer[0])
    body = helper.make_graph([inner], "b", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, None)])
    nodes = [helper.make_node("If", ["go"], ["y"], then_branch=body, else_branch=body)]
    hidden = save(
        tmp_path / "h.onnx",
        nodes,
        [helper.make_tensor_value_info("go", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    with pytest.raises(ModelRejected, match="other files"):
        load(hidden)


def test_a_folder_brings_its_data_and_nothing_else_is_read(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    path = external_onnx(tmp_path / "m" / "net.onnx")
    pack_folder(tmp_path / "m", tmp_path / "m.onnx")
    x = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(load(tmp_path / "m.onnx").run({"x": x})["y"], x @ WEIGHTS)
    (tmp_path / "m" / "weights.bin").rename(tmp_path / "weights.bin")
    pack_folder(tmp_path / "m", tmp_path / "m.onnx")
    with pytest.raises(ModelRejected, match="not in its folder"):
        load(tmp_path / "m.onnx")
    for name in ("../weights.bin", str(tmp_path / "weights.bin"), "a/../../weights.bin", "..\\weights.bin", "C:\\weights.bin", ""):
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = name if entry.key == "location" else entry.value
        path.write_bytes(model.SerializeToString())
        pack_folder(tmp_path / "m", tmp_path / "m.onnx")
        with pytest.raises(ModelRejected, match="outside its own folder"):
            load(tmp_path / "m.onnx")


def test_weights_that_are_shorter_than_the_model_says_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    external_onnx(tmp_path / "m" / "net.onnx")
    (tmp_path / "m" / "weights.bin").write_bytes(b"1234")
    pack_folder(tmp_path / "m", tmp_path / "m.onnx")
    with pytest.raises(ModelRejected, match="onnxruntime refused"):
        load(tmp_path / "m.onnx")


NUMERIC = {
    "FLOAT": "float32", "DOUBLE": "float64", "FLOAT16": "float16", "BFLOAT16": "float32", "INT8": "int8", "INT16": "int16",
    "INT32": "int32", "INT64": "int64", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
}  # fmt: skip


@pytest.mark.parametrize(("kind", "dtype"), NUMERIC.items())
def test_every_number_type_goes_in_and_out(tmp_path: Path, kind: str, dtype: str) -> None:
    model = load(identity_onnx(tmp_path / "m.onnx", getattr(TensorProto, kind)))
    values = np.array([0, 1, 3, 100], dtype)
    got = model.run({"a": values})["b"]
    assert (got.dtype.name, got.tolist()) == (dtype, values.tolist())


def test_booleans_go_in_and_out(tmp_path: Path) -> None:
    model = load(identity_onnx(tmp_path / "m.onnx", TensorProto.BOOL))
    got = model.run({"a": np.array([True, False, True])})["b"]
    assert (got.dtype.name, got.tolist()) == ("bool", [True, False, True])
    with pytest.raises(InputRejected, match="must be bool"):
        model.run({"a": np.array([1, 0], np.uint8)})


NOT_PORTABLE = sorted({*TensorProto.DataType.keys()} - {*NUMERIC, "BOOL", "STRING", "UNDEFINED"})


@pytest.mark.parametrize("kind", NOT_PORTABLE)
@pytest.mark.parametrize("folder", [False, True])
def test_types_that_no_task_can_have_are_refused_by_name(tmp_path: Path, kind: str, folder: bool) -> None:
    (tmp_path / "m").mkdir()
    path = identity_onnx(tmp_path / "m" / "net.onnx", getattr(TensorProto, kind))
    if folder:
        pack_folder(tmp_path / "m", path := tmp_path / "m.onnx")
    with pytest.raises(ModelRejected, match=f"input 'a' of the model is {kind.lower()}, which .* cast it inside"):
        load(path)


def test_outputs_too_and_a_model_may_use_such_types_inside(tmp_path: Path) -> None:
    info = helper.make_tensor_value_info
    there = helper.make_node("Cast", ["a"], ["b"], to=TensorProto.FLOAT8E4M3FN)
    back = helper.make_node("Cast", ["b"], ["c"], to=TensorProto.FLOAT)
    ends = [info("a", TensorProto.FLOAT, ["N"])], [info("c", TensorProto.FLOAT, ["N"])]

    def saved(name: str, nodes: list, outputs: list) -> Path:
        graph = helper.make_graph(nodes, "tiny", ends[0], outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        (tmp_path / name).write_bytes(model.SerializeToString())
        return tmp_path / name

    with pytest.raises(ModelRejected, match="output 'b' of the model is float8e4m3fn"):
        load(saved("o.onnx", [there], [info("b", TensorProto.FLOAT8E4M3FN, ["N"])]))
    got = load(saved("i.onnx", [there, back], ends[1])).run({"a": np.array([1.0, 1.03, 500], np.float32)})["c"]
    assert got.tolist() == [1.0, 1.0, 448.0]


def test_bfloat16_rounds_to_the_nearest(tmp_path: Path) -> None:
    model = load(identity_onnx(tmp_path / "m.onnx", TensorProto.BFLOAT16))
    got = model.run({"a": np.array([1.00390625, 1.01171875, 1.5, np.inf, np.nan], np.float32)})["b"]
    np.testing.assert_array_equal(got, np.array([1.0, 1.015625, 1.5, np.inf, np.nan], np.float32))
    assert model.run({"a": np.zeros(0, np.float32)})["b"].shape == (0,)


def test_providers_are_chosen_from_what_is_here() -> None:
    everything = ["AzureExecutionProvider", "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"]
    assert choose_providers("auto", everything) == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert choose_providers("tensorrt", everything)[0] == "TensorrtExecutionProvider"
    assert choose_providers("auto", ["AzureExecutionProvider", "CPUExecutionProvider"]) == ["CPUExecutionProvider"]
    assert choose_providers("cpu", everything) == ["CPUExecutionProvider"]
    for device, here in (("cuda", ["CPUExecutionProvider"]), ("tensorrt", ["CUDAExecutionProvider"]), ("no such", everything)):
        with pytest.raises(DeviceMissing, match=device):
            choose_providers(device, here)


def test_a_grant_of_a_card_bounds_cudas_arena() -> None:
    assert provider_options(["CUDAExecutionProvider", "CPUExecutionProvider"], 5) == [
        {"gpu_mem_limit": "5", "arena_extend_strategy": "kSameAsRequested"},
        {},
    ]
    assert provider_options(["CUDAExecutionProvider"], 0) == [{}]


def test_broken_files_are_refused_without_paths(tmp_path: Path) -> None:
    good = linear_onnx(tmp_path / "m.onnx").read_bytes()
    bad = tmp_path / "bad.onnx"
    for data in (b"", b"junk", good[: len(good) // 2], b"\xff" * 40, good[:-3]):
        bad.write_bytes(data)
        with pytest.raises(ModelRejected) as refused:
            load(bad)
        assert str(tmp_path) not in str(refused.value)
    with pytest.raises(ModelRejected, match="read"):
        load(tmp_path / "absent.onnx")


def test_unknown_operators_and_types_are_refused(tmp_path: Path) -> None:
    info = helper.make_tensor_value_info
    node = helper.make_node("NoSuchThing", ["a"], ["b"], domain="evil")
    with pytest.raises(ModelRejected, match="onnxruntime refused"):
        load(save(tmp_path / "u.onnx", [node], [info("a", TensorProto.FLOAT, [1])], [info("b", TensorProto.FLOAT, [1])]))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [({}, "missing"), ({"x": np.ones((1, 4)), "y": np.ones(1)}, "no input"), ({"x": np.ones((1, 4))}, "float32"),
     ({"x": np.ones(4, np.float32)}, "axes"), ({"x": np.ones((1, 5), np.float32)}, "axis 1")],
)  # fmt: skip
def test_unfit_inputs(tmp_path: Path, inputs, words: str) -> None:
    with pytest.raises(InputRejected, match=words):
        load(linear_onnx(tmp_path / "m.onnx")).run(inputs)


def test_failures_inside_are_told_without_paths(tmp_path: Path) -> None:
    info = helper.make_tensor_value_info
    node = helper.make_node("Reshape", ["a", "s"], ["b"])
    path = save(
        tmp_path / "r.onnx",
        [node],
        [info("a", TensorProto.FLOAT, ["N"]), info("s", TensorProto.INT64, [1])],
        [info("b", TensorProto.FLOAT, None)],
    )
    with pytest.raises(InferenceFailed) as failed:
        load(path).run({"a": np.ones(3, np.float32), "s": np.array([7])})
    assert "/" not in str(failed.value)


def test_registry_knows_without_importing() -> None:
    assert {"onnx", "builtin"} <= set(available_loaders())
    assert open_loader("onnx").format == "onnx"
