"""What Apple's runtime takes and gives, and the tensors of a manifest: pure, so that it is tested without a Mac.

The runtime speaks of features (FeatureTypes.proto): arrays, numbers, texts, and dictionaries of probabilities by label. Tree ensembles
and linear models take one row; their manifest has many, as their translation to ONNX has. So each row is a prediction there, and a
dictionary becomes a tensor in the order of the model's labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loaders.api import Array, InferenceFailed, InputRejected, ModelRejected, ModelSchema, TensorSchema
from loaders.coreml.mil import Function, Ref, read_function
from loaders.coreml.package import open_package
from loaders.protobuf import Message

_KINDS = {1: "integer", 2: "number", 3: "text", 5: "array", 6: "dictionary"}
_DTYPES = {65568: "float32", 65600: "float64", 131104: "int32", 131080: "int8", 65552: "float16"}
_PLAIN = {"integer": "int64", "number": "float64", "text": "str", "dictionary": "float64"}
_PROGRAM = 502
_STRINGS, _INTEGERS = 100, 101
"""Where every kind of classifier but programs has its labels."""


@dataclass(frozen=True, slots=True)
class Feature:
    name: str
    kind: str
    """``integer``, ``number``, ``text``, ``array``, ``dictionary``, or empty for others: images, sequences, states."""
    dtype: str
    shape: tuple[int, ...] = ()
    free: bool = False
    """Some of its sizes may vary."""


@dataclass(frozen=True, slots=True)
class Plan:
    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    labels: tuple[str | int, ...] = ()
    """The order of a dictionary's entries."""

    @property
    def portable(self) -> bool:
        """Whether tensors can stand for everything that goes in and out."""
        return all(f.kind and f.kind != "dictionary" for f in self.inputs) and all(
            f.kind and (f.kind != "dictionary" or self.labels) for f in self.outputs
        )


def read_plan(path: Path) -> Plan:
    """Raises `ModelRejected`."""
    model, blobs = open_package(path)
    description = model.message(2)
    # states go in as well, and no tensor of a task can stand for one
    inputs = tuple(_feature(m) for n in (1, 13) for m in description.messages(n))
    outputs = tuple(_feature(m) for m in description.messages(10))
    labels: tuple[str | int, ...] = ()
    if any(f.kind == "dictionary" for f in outputs):
        if _PROGRAM in model:
            labels = _labels_of_program(read_function(model.message(_PROGRAM), blobs, description.text(21) or "main"))
        else:
            labels = next((found for n in sorted(model.numbers()) if 200 <= n < 4000 and (found := _labels(model.message(n)))), ())
    return Plan(inputs, outputs, labels)


def _feature(message: Message) -> Feature:
    kind = message.message(3)
    number = next((n for n in _KINDS if n in kind), 0)
    name = _KINDS.get(number, "")
    if name != "array":
        return Feature(message.text(1), name, _PLAIN.get(name, ""))
    array = kind.message(number)
    shape = tuple(array.integers(1))
    return Feature(message.text(1), name, _DTYPES.get(array.integer(2), "float32"), shape, 21 in array or 31 in array)


def _labels(classifier: Message) -> tuple[str | int, ...]:
    texts = classifier.message(_STRINGS).texts(1) if _STRINGS in classifier else []
    return tuple(texts) or tuple(classifier.message(_INTEGERS).integers(1) if _INTEGERS in classifier else [])


def _labels_of_program(function: Function) -> tuple[str | int, ...]:
    operation = next((op for op in function.operations if op.type == "classify"), None)
    found: Any = (operation.inputs.get("classes") or [None])[0] if operation is not None else None
    if isinstance(found, Ref):
        found = next((op.value for op in function.operations if op.type == "const" and op.outputs[0][0] == found.name), None)
    return () if found is None else tuple(np.asarray(found).reshape(-1).tolist())


def declared(plan: Plan) -> ModelSchema:
    """What the model itself says, for those that have no translation: one row, as it is."""
    outputs = tuple(TensorSchema(f.name, f.dtype, (len(plan.labels),)) if f.kind == "dictionary" else _declared(f) for f in plan.outputs)
    return ModelSchema(tuple(_declared(f) for f in plan.inputs), outputs)


def _declared(f: Feature) -> TensorSchema:
    return TensorSchema(f.name, f.dtype, tuple(None if f.free else n for n in f.shape))


def by_rows(plan: Plan, schema: ModelSchema) -> bool:
    """Whether each row of the manifest's tensors is a prediction of its own. Raises `ModelRejected` if it fits neither way."""
    features = {f.name: f for f in plan.inputs}
    unknown = next((t.name for t in schema.inputs if t.name not in features), None)
    if unknown is not None or not {t.name for t in schema.outputs} <= {f.name for f in plan.outputs}:
        raise ModelRejected("its manifest names inputs or outputs that the CoreML model does not have")
    pairs = [(t, features[t.name]) for t in schema.inputs]
    if all(len(t.shape) == len(f.shape) for t, f in pairs):
        return False
    if pairs and all(t.shape and _size(t.shape[1:]) == _size(f.shape) for t, f in pairs):
        return True
    raise ModelRejected("the shapes of its manifest are not those of the CoreML model")


def _size(shape: Sequence[int | str | None]) -> int:
    """-1: it may vary."""
    sizes = [n for n in shape if isinstance(n, int)]
    return math.prod(sizes) if len(sizes) == len(shape) else -1


def requests(plan: Plan, inputs: Mapping[str, Array], rows: bool) -> list[dict[str, Any]]:
    """What the runtime is asked: one prediction, or one for each row. Raises `InputRejected`."""
    features = [f for f in plan.inputs if f.name in inputs]
    if not rows:
        return [{f.name: _given(f, inputs[f.name]) for f in features}]
    count = min(len(a) for a in inputs.values())
    return [{f.name: _given(f, inputs[f.name][row : row + 1].reshape(f.shape)) for f in features} for row in range(count)]


def _given(f: Feature, array: Array) -> Any:
    if f.kind == "array":
        return np.ascontiguousarray(array, dtype=f.dtype)
    plain = array.item()
    if f.kind == "integer" and not float(plain).is_integer():
        raise InputRejected(f"input {f.name!r} must be a whole number, is {plain}")
    return str(plain) if f.kind == "text" else int(plain) if f.kind == "integer" else float(plain)


def answers(plan: Plan, schema: ModelSchema, found: Sequence[Mapping[str, Any]], rows: bool) -> dict[str, Array]:
    """The manifest's outputs from the runtime's. Raises `InferenceFailed`."""
    out: dict[str, Array] = {}
    for t in schema.outputs:
        values = [_value(plan, t, answer.get(t.name)) for answer in found]
        if not rows:
            out[t.name] = values[0]
            continue
        shape = tuple(n for n in t.shape[1:] if isinstance(n, int))
        fixed = len(shape) == len(t.shape) - 1
        out[t.name] = (
            np.stack([v.reshape(shape) if fixed else v for v in values]) if values else np.zeros((0, *shape), values_dtype(t.dtype))
        )
    return out


def _value(plan: Plan, t: TensorSchema, value: Any) -> Array:
    if isinstance(value, Mapping):
        missing = next((label for label in plan.labels if label not in value), None)
        if missing is not None:
            raise InferenceFailed("CoreML gave no probability for one of the model's labels")
        value = [value[label] for label in plan.labels]
    if value is None:
        raise InferenceFailed(f"CoreML gave no output {t.name[:64]!r}")
    return np.asarray(value, dtype=values_dtype(t.dtype))


def values_dtype(dtype: str) -> Any:
    return object if dtype == "str" else dtype
