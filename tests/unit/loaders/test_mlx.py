"""MLX functions by what their manifests say of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loaders.api import About, Golden, InferenceFailed, InputRejected, ModelRejected, TensorSchema
from loaders.mlx_loader import MlxLoader
from loaders.trial import check_golden, try_out
from tests.support.mlx_functions import mlx_function
from tests.support.models import WEIGHTS

X = TensorSchema("x", "float32", (3, 4))
ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("mlx")
    return {kind: mlx_function(folder / f"{kind}.mlxfn", kind) for kind in ("fixed", "several", "shapeless", "half", "two")}


def test_outputs_are_found_by_a_run_when_nobody_names_them(files: dict[str, Path]) -> None:
    model = MlxLoader().load(files["fixed"], 1, About(inputs=(X,)))
    assert [(t.name, t.dtype, t.shape) for t in model.schema.outputs] == [("output_0", "float32", (3, 2)), ("output_1", "uint32", (3,))]
    got = model.run({"x": ARRAY})
    np.testing.assert_allclose(got["output_0"], ARRAY @ WEIGHTS)
    assert got["output_1"].tolist() == (ARRAY @ WEIGHTS).argmax(1).tolist()
    assert set(try_out(model)) == {"output_0", "output_1"}


def test_names_and_types_come_from_the_manifest(files: dict[str, Path]) -> None:
    about = About(inputs=(X,), outputs=(TensorSchema("y", "float32", (3, 2)), TensorSchema("class", "int64", (3,))))
    got = MlxLoader().load(files["fixed"], 1, about).run({"x": ARRAY})
    assert got["class"].dtype == np.int64
    two = About(inputs=(TensorSchema("a", "float32", (2,)), TensorSchema("b", "int32", (2,))))
    got = MlxLoader().load(files["two"], 1, two).run({"b": np.array([1, 2], np.int32), "a": np.array([5, 5], np.float32)})
    assert got["output_0"].tolist() == [4, 3]


def test_several_shapes_in_one_file(files: dict[str, Path]) -> None:
    free = TensorSchema("x", "float32", ("N", 4))
    with pytest.raises(ModelRejected, match="name its outputs too"):
        MlxLoader().load(files["several"], 1, About(inputs=(free,)))
    about = About(inputs=(free,), outputs=(TensorSchema("y", "float32", ("N", 2)), TensorSchema("class", "uint32", ("N",))))
    model = MlxLoader().load(files["several"], 1, about)
    for rows in (1, 3):
        assert model.run({"x": ARRAY[:rows]})["y"].shape == (rows, 2)
    with pytest.raises(InferenceFailed, match="No imported function"):
        model.run({"x": ARRAY[:2]})


def test_sixteen_bits(files: dict[str, Path]) -> None:
    model = MlxLoader().load(files["half"], 1, About(inputs=(TensorSchema("x", "float32", (2, 2)),)))
    got = model.run({"x": np.full((2, 2), 1.5, np.float32)})
    assert (got["output_0"].dtype, got["output_1"].dtype) == (np.float32, np.float16)
    assert got["output_0"].tolist() == [[3, 3], [3, 3]]


def test_what_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match="shapeless"):
        MlxLoader().load(files["shapeless"], 1, About(inputs=(X,)))
    with pytest.raises(ModelRejected, match="manifest must name them"):
        MlxLoader().load(files["fixed"], 1)
    with pytest.raises(ModelRejected, match="does not take the inputs"):
        MlxLoader().load(files["fixed"], 1, About(inputs=(TensorSchema("x", "float32", (2, 4)),)))
    with pytest.raises(ModelRejected, match="which MLX does not have"):
        MlxLoader().load(files["fixed"], 1, About(inputs=(TensorSchema("x", "str", (2, 4)),)))
    with pytest.raises(InputRejected, match="axis 0"):
        MlxLoader().load(files["fixed"], 1, About(inputs=(X,))).run({"x": ARRAY[:2]})
    good = files["fixed"].read_bytes()
    for data in (b"", b"junk", good[:60], good[:200], b"\xff" * 100):
        (tmp_path / "bad.mlxfn").write_bytes(data)
        with pytest.raises(ModelRejected) as refused:
            MlxLoader().load(tmp_path / "bad.mlxfn", 1, About(inputs=(X,)))
        assert str(tmp_path) not in str(refused.value)


def test_a_golden_pair_finds_weights_that_an_export_has_corrupted(files: dict[str, Path]) -> None:
    model = MlxLoader().load(files["fixed"], 1, About(inputs=(X,)))
    check_golden(model, Golden({"x": ARRAY}, {"output_0": ARRAY @ WEIGHTS}))
    with pytest.raises(ModelRejected, match="output 'output_0' differs by up to 1"):
        check_golden(model, Golden({"x": ARRAY}, {"output_0": ARRAY @ WEIGHTS + 1}))
