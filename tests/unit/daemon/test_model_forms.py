"""What an author says of a model: the form, and its way into an agent."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from dimnode.daemon import model_about
from dimnode.domain import codec
from dimnode.domain.model import GoldenPair, ModelManifest, Needs, TensorSpec
from dimnode.domain.model_form import MAX_GOLDEN_BYTES, parse_model_form
from dimnode.domain.tensors import from_numpy
from dimnode.errors import InvalidArgument
from tests.support.entries import fake_sign, fake_verify

TENSOR = {"dtype": "float32", "shape": [2], "data": [1, "NaN"]}
FULL: dict[str, Any] = {
    "id": "vad", "licence": "MIT", "batch_axis": 0, "inputs": [{"name": "x", "dtype": "float32", "shape": ["N", 3, None]}],
    "outputs": [{"name": "y", "dtype": "str", "shape": []}], "architecture": {"type": "mlp"},
    "golden": {"inputs": {"x": TENSOR}, "outputs": {"y": TENSOR}, "rtol": 0, "atol": 1e-2}, "needs": {"memory": 5, "gpu": True}, "trial": False,
}  # fmt: skip
MANIFEST = ModelManifest(
    id="m", cid="c", format="mlx", inputs=(TensorSpec(name="x", dtype="float32", shape=("N", None, 3)),), outputs=(), size=5
)


def test_a_full_form_and_an_empty_one() -> None:
    form = parse_model_form(json.dumps(FULL))
    assert form.inputs[0].shape == ("N", 3, None)
    assert form.golden is not None
    assert (form.golden.atol, form.needs, form.trial) == (1e-2, Needs(memory=5, gpu=True), False)
    assert parse_model_form("").golden is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"colour": 1}, "colour"), ({"batch_axis": 1}, "batch_axis"), ({"inputs": 3}, "inputs"), ({"needs": {"memory": -1}}, "needs.memory"),
        ({"inputs": [{"name": "x", "dtype": "float33", "shape": []}]}, "inputs[0].dtype"), ({"inputs": [{"name": "", "dtype": "str", "shape": []}]}, "inputs[0].name"),
        ({"inputs": [{"name": "x", "dtype": "str", "shape": [-1]}]}, "inputs[0].shape"), ({"inputs": [{"name": "x", "dtype": "str", "shape": [1 << 31, 1 << 31]}]}, "inputs[0].shape"),
        ({"inputs": FULL["inputs"] * 2}, "inputs"), ({"golden": 1}, "golden"), ({"golden": {"outputs": {}}}, "golden"),
        ({"golden": {"inputs": {"x": {"cid": "bafy"}}}}, "golden.inputs.x"), ({"golden": {"inputs": {"x": {**TENSOR, "shape": [3]}}}}, "golden.inputs.x.data"),
        ({"golden": {"inputs": {}, "rtol": -1}}, "golden.rtol"), ({"golden": {"inputs": {}, "atol": "x"}}, "golden.atol"),
        ({"golden": {"inputs": {"x": {"dtype": "float64", "shape": [10_000], "data": [0] * 10_000}}}}, "golden"),
    ],
)  # fmt: skip
def test_a_bad_form_is_refused_by_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse_model_form(json.dumps({**FULL, **change}))
    assert refused.value.fields[0].field == field


@pytest.mark.parametrize("text", ["[]", "{", "1", "[" * 100_000, '{"id": "' + "x" * (1 << 20) + '"}'])
def test_what_is_no_form(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_model_form(text)


def test_a_manifest_reaches_the_loader_whole() -> None:
    golden = GoldenPair(
        inputs={"x": from_numpy(np.array([[1.5, np.nan]], np.float16))},
        outputs={"y": from_numpy(np.array(["ä", ""], dtype=object))},
        atol=0.5,
    )
    about = model_about.decode(model_about.of_manifest(msgspec.structs.replace(MANIFEST, golden=golden, architecture={"type": "mlp"})))
    assert about.inputs[0].shape == ("N", None, 3)
    assert about.golden is not None
    np.testing.assert_array_equal(about.golden.inputs["x"], np.array([[1.5, np.nan]], np.float16))
    assert about.golden.outputs["y"].tolist() == ["ä", ""]
    assert (about.golden.atol, about.architecture) == (0.5, {"type": "mlp"})
    assert model_about.decode("").inputs == ()
    assert MAX_GOLDEN_BYTES < 1 << 20


def test_a_manifest_without_new_fields_keeps_its_bytes() -> None:
    assert set(codec.decode_plain(codec.encode(MANIFEST))) == {"id", "cid", "format", "inputs", "outputs", "size"}
    assert codec.decode(codec.encode(MANIFEST), ModelManifest) == MANIFEST


def test_a_signature_covers_everything_and_is_the_authors() -> None:
    signed = MANIFEST.signed("anna", lambda data: fake_sign("anna", data))
    assert signed.authentic(fake_verify)
    assert codec.decode(codec.encode(signed), ModelManifest).authentic(fake_verify)
    for change in ({"id": "other"}, {"author": "bert"}, {"licence": "MIT"}, {"signature": b""}, {"author": ""}):
        assert not msgspec.structs.replace(signed, **change).authentic(fake_verify), change
    assert MANIFEST.authentic(fake_verify)
