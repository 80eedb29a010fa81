"""Looks into an ONNX file without the onnx package.

Three questions are answered before onnxruntime sees a file: is it an ONNX model at all, does it refer to data outside
itself, and can what goes in and out of it be tensors of a task. Field numbers are those of onnx.proto (ModelProto, GraphProto, NodeProto,
AttributeProto, TensorProto).
"""

from __future__ import annotations

from loaders.api import ModelRejected
from loaders.protobuf import Message, fields, top_fields

# message -> {field: message} where tensors can hide, at any depth
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_IR_VERSION, _GRAPH, _OPSETS = 1, 7, 8
MAX_DEPTH = 64
_NOT_PORTABLE = {
    14: "complex64", 15: "complex128", 17: "float8e4m3fn", 18: "float8e4m3fnuz", 19: "float8e5m2", 20: "float8e5m2fnuz", 21: "uint4",
    22: "int4", 23: "float4e2m1", 24: "float8e8m0", 25: "uint2", 26: "int2", 27: "float6e2m3", 28: "float6e3m2",
}  # fmt: skip
"""Of TensorProto.DataType, what numpy does not have, or onnxruntime."""
_LAST = 28
"""What comes later is not known here."""


def check_shape_of_file(data: bytes) -> None:
    """Raises `ModelRejected` unless the top level is a ModelProto with a graph and a version."""
    if not {_IR_VERSION, _GRAPH, _OPSETS} <= top_fields(data):
        raise ModelRejected("not an ONNX model: it has no graph, version or operator set")


def check_types(data: bytes) -> None:
    """Of inputs and outputs; inside, a model may use what it likes. Raises `ModelRejected` with the tensor's name and type."""
    graph = Message(memoryview(data)).message(_GRAPH)
    for number, what in ((11, "input"), (12, "output")):
        for value in graph.messages(number):
            kind = value.message(2)
            element = kind.message(1).integer(1) if 1 in kind else 0
            if element in _NOT_PORTABLE or element > _LAST:
                name = _NOT_PORTABLE.get(element, f"of type {element}")
                raise ModelRejected(
                    f"{what} {value.text(1)[:64]!r} of the model is {name}, which tensors of a task cannot be; cast it inside the model"
                )


def external_files(data: bytes) -> set[str]:
    """Files in which tensors, at any depth, keep their values. A tensor that does not say where is refused, as are names
    that lead out of the model's folder. Raises `ModelRejected`."""
    found: set[str] = set()
    stack: list[tuple[str, memoryview, int]] = [("model", memoryview(data), 0)]
    while stack:
        kind, message, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise ModelRejected("the model nests graphs too deeply")
        if kind == "tensor":
            found |= _location(message)
            continue
        for number, value in fields(message):
            child = _CHILDREN[kind].get(number)
            if child is not None and isinstance(value, memoryview):
                stack.append((child, value, depth + 1))
    return found


def _location(tensor: memoryview) -> set[str]:
    outside, entries = False, dict[str, str]()
    for number, value in fields(tensor):
        outside |= number == _DATA_LOCATION and value == 1
        if number == _EXTERNAL_DATA and isinstance(value, memoryview):
            outside = True
            entry = Message(value)
            entries[entry.text(1)] = entry.text(2)
    if not outside:
        return set()
    name = entries.get("location", "")
    if not name or name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or ":" in name:
        raise ModelRejected("the model keeps tensors in other files, outside its own folder")
    return {name}
