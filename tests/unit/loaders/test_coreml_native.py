"""CoreML through Apple's runtime, with made-up answers of it in place of a Mac: a manifest made elsewhere fits, labels are in their order.

What the runtime takes and gives follows coremltools' documentation of `MLModel.predict`. With real ones:
`tests/integration/loaders/test_accelerators.py`, *not run here*.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loaders.api import About, InferenceFailed, InputRejected, LoadedModel, ModelRejected, ModelSchema, TensorSchema
from loaders.coreml.native_values import Feature, Plan, answers, by_rows, declared, read_plan, requests
from loaders.coreml_loader import CoremlLoader
from loaders.coreml_native import NativeModel, schema_of
from loaders.protobuf import put_bytes, put_int
from tests.support.loader_cases import FIXTURES, stored

FOLDER = FIXTURES / "coreml"


def fixture(name: str) -> Path:
    return FOLDER / f"{name}.coreml"


def apple(name: str, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As Apple's runtime would answer: by the translation, one row each, as plain values; dictionaries in no order that means anything."""
    plan, model = read_plan(fixture(name)), CoremlLoader().load(fixture(name), 1)
    out: list[dict[str, Any]] = []
    for request in asked:
        shapes = {t.name: tuple(n if isinstance(n, int) else 1 for n in t.shape) for t in model.schema.inputs}
        for f in plan.inputs:  # the runtime insists on what the model declares
            assert request[f.name].shape == f.shape
            assert request[f.name].dtype == f.dtype
        found = model.run({n: np.asarray(v, np.float32).reshape(shapes[n]) for n, v in request.items()})
        answer: dict[str, Any] = {}
        for f in plan.outputs:
            values = found[f.name].reshape(-1).tolist()
            if f.kind == "dictionary":
                pairs = list(zip(plan.labels, values, strict=True))
                answer[f.name] = dict(pairs[1:] + pairs[:1])
            else:
                answer[f.name] = found[f.name] if f.kind == "array" else values[0]
        out.append(answer)
    return out


def native(name: str, about: About | None = None) -> tuple[NativeModel, LoadedModel]:
    """(as on a Mac, as elsewhere); the manifest is the one that was made elsewhere unless another is given."""
    elsewhere, plan = CoremlLoader().load(fixture(name), 1), read_plan(fixture(name))
    given = about or About(inputs=elsewhere.schema.inputs, outputs=elsewhere.schema.outputs)
    return NativeModel(lambda asked: apple(name, asked), plan, schema_of(fixture(name), plan, given)), elsewhere


@pytest.mark.parametrize("name", ["forest", "forest_regressor", "logistic", "linear", "classifier"])
def test_a_manifest_that_was_made_elsewhere_fits_a_mac(name: str) -> None:
    ours, elsewhere = native(name)
    inputs = stored("coreml", name, "in")
    found, expected = ours.run(inputs), elsewhere.run(inputs)
    assert found.keys() == expected.keys()
    for output, value in expected.items():
        assert (found[output].dtype, found[output].shape) == (value.dtype, value.shape)
        np.testing.assert_array_equal(found[output], value)


@pytest.mark.parametrize("name", ["forest", "logistic", "linear", "classifier", "mlp", "mlp_rows"])
def test_what_is_registered_on_a_mac_has_the_schema_that_it_has_elsewhere(name: str) -> None:
    plan = read_plan(fixture(name))
    assert schema_of(fixture(name), plan, About()) == CoremlLoader().load(fixture(name), 1).schema


def test_labels_are_read_from_every_kind_of_classifier(tmp_path: Path) -> None:
    assert read_plan(fixture("logistic")).labels == (0, 1)
    assert all(isinstance(label, str) for label in (*read_plan(fixture("forest")).labels, *read_plan(fixture("classifier")).labels))
    assert (len(read_plan(fixture("forest")).labels), len(read_plan(fixture("classifier")).labels)) == (3, 2)
    # an older network's, which has no translation: fields 100 and 101 as everywhere
    dictionary = put_bytes(10, put_bytes(1, "p") + put_bytes(3, put_bytes(6, b"")))
    image = put_bytes(1, put_bytes(1, "i") + put_bytes(3, put_bytes(4, b"")))
    labels = put_bytes(100, put_bytes(1, "b") + put_bytes(1, "a"))
    path = tmp_path / "m.mlmodel"
    path.write_bytes(put_int(1, 1) + put_bytes(2, dictionary) + put_bytes(403, labels))
    assert read_plan(path).labels == ("b", "a")
    assert read_plan(path).portable
    path.write_bytes(put_int(1, 1) + put_bytes(2, dictionary + image) + put_bytes(403, labels))
    assert not read_plan(path).portable
    state = put_bytes(13, put_bytes(1, "s") + put_bytes(3, put_bytes(8, b"")))
    path.write_bytes(put_int(1, 1) + put_bytes(2, dictionary + state) + put_bytes(403, labels))
    assert not read_plan(path).portable
    path.write_bytes(put_int(1, 1) + put_bytes(2, dictionary) + put_bytes(403, b""))
    assert not read_plan(path).portable


PLAN = Plan(
    (Feature("a", "array", "float64", (2,)), Feature("n", "integer", "int64"), Feature("x", "number", "float64"), Feature("t", "text", "str")),
    (Feature("p", "dictionary", "float64"), Feature("label", "text", "str"), Feature("y", "number", "float64")), ("z", "a"),
)  # fmt: skip
ROWS = ModelSchema(
    (TensorSchema("a", "float32", ("batch", 2)), TensorSchema("n", "float32", ("batch", 1)), TensorSchema("x", "float32", ("batch", 1)),
     TensorSchema("t", "str", ("batch",))),
    (TensorSchema("p", "float32", ("batch", 2)), TensorSchema("label", "str", ("batch",)), TensorSchema("y", "float32", ("batch", 1))),
)  # fmt: skip
INPUTS = {
    "a": np.array([[1, 2], [3, 4]], np.float32), "n": np.array([[5], [6]], np.float32), "x": np.array([[0.5], [1.5]], np.float32),
    "t": np.array(["u", "v"], dtype=object),
}  # fmt: skip


def test_each_row_is_a_request_of_plain_values() -> None:
    assert by_rows(PLAN, ROWS)
    first, second = requests(PLAN, INPUTS, rows=True)
    assert (first["n"], first["x"], first["t"]) == (5, 0.5, "u")
    assert [type(first[k]) for k in ("n", "x", "t")] == [int, float, str]
    assert (second["a"].tolist(), second["a"].dtype, second["a"].shape) == ([3, 4], np.float64, (2,))
    found = answers(
        PLAN, ROWS, [{"p": {"a": 0.25, "z": 0.75}, "label": "z", "y": 2.0}, {"p": {"z": 0.5, "a": 0.5}, "label": "a", "y": 3}], True
    )
    assert found["p"].tolist() == [[0.75, 0.25], [0.5, 0.5]]
    assert (found["p"].dtype, found["label"].tolist(), found["y"].tolist()) == (np.float32, ["z", "a"], [[2.0], [3.0]])
    with pytest.raises(InputRejected, match="'n' must be a whole number"):
        requests(PLAN, {**INPUTS, "n": INPUTS["n"] + 0.5}, rows=True)
    none = answers(PLAN, ROWS, [], rows=True)
    assert {n: a.shape for n, a in none.items()} == {"p": (0, 2), "label": (0,), "y": (0, 1)}


def test_a_model_that_takes_one_row_takes_it_as_it_is() -> None:
    one = declared(PLAN)
    assert [t.shape for t in one.inputs] == [(2,), (), (), ()]
    assert [t.shape for t in one.outputs] == [(2,), (), ()]
    assert not by_rows(PLAN, one)
    (asked,) = requests(PLAN, {"a": np.ones(2), "n": np.array(3), "x": np.array(1.0), "t": np.array("u", dtype=object)}, rows=False)
    assert (asked["n"], asked["t"]) == (3, "u")
    assert answers(PLAN, one, [{"p": {"a": 1.0, "z": 0.0}, "label": "a", "y": 1.0}], rows=False)["p"].tolist() == [0.0, 1.0]


def test_manifests_that_fit_neither_way_are_refused() -> None:
    def changed(*inputs: TensorSchema) -> ModelSchema:
        return ModelSchema(inputs, ROWS.outputs)

    with pytest.raises(ModelRejected, match="shapes of its manifest"):
        by_rows(PLAN, changed(TensorSchema("a", "float32", ("batch", 3))))
    with pytest.raises(ModelRejected, match="shapes of its manifest"):
        by_rows(PLAN, changed(TensorSchema("a", "float32", ("batch", None))))
    with pytest.raises(ModelRejected, match="does not have"):
        by_rows(PLAN, changed(TensorSchema("b", "float32", (2,))))
    with pytest.raises(ModelRejected, match="does not have"):
        by_rows(PLAN, ModelSchema(ROWS.inputs, (TensorSchema("z", "float32", ()),)))


def test_answers_that_lack_something_and_failures_are_told() -> None:
    with pytest.raises(InferenceFailed, match="no probability"):
        answers(PLAN, ROWS, [{"p": {"a": 1.0}, "label": "a", "y": 1.0}], rows=True)
    with pytest.raises(InferenceFailed, match="no output 'p'"):
        answers(PLAN, ROWS, [{"label": "a", "y": 1.0}], rows=True)

    def broken(asked: Any) -> Any:
        raise RuntimeError("/private/var/x: no")

    model = NativeModel(broken, PLAN, ROWS)
    with pytest.raises(InferenceFailed, match="CoreML failed") as failed:
        model.run(INPUTS)
    assert "/private" not in str(failed.value)
    with pytest.raises(InputRejected, match="'t' is missing"):
        model.run({n: a for n, a in INPUTS.items() if n != "t"})
