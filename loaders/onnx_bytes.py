"""Just enough of protobuf to look into an ONNX file without the onnx package.

Two questions are answered before onnxruntime sees a file: is it an ONNX model at all, and does it
refer to data outside itself. Field numbers are those of onnx.proto (ModelProto, GraphProto, NodeProto,
AttributeProto, TensorProto); wire format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator

from loaders.api import ModelRejected

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


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ModelRejected("not an ONNX file: it ends in the middle of a number")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if not byte & 0x80:
            return value, at
        shift += 7


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, number or bytes) of one message. Raises `ModelRejected` where it is malformed."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ModelRejected("not an ONNX file: unknown wire type")
        if length > len(data) - at:
            raise ModelRejected("not a whole ONNX file: it is cut short")
        yield number, data[at : at + length]
        at += length


def check_shape_of_file(data: bytes) -> None:
    """Raises `ModelRejected` unless the top level is a ModelProto with a graph and a version."""
    seen = {number for number, _ in fields(memoryview(data))}
    if not {_IR_VERSION, _GRAPH, _OPSETS} <= seen:
        raise ModelRejected("not an ONNX model: it has no graph, version or operator set")


def uses_external_data(data: bytes) -> bool:
    """Whether any tensor, at any depth, keeps its values in another file."""
    stack: list[tuple[str, memoryview, int]] = [("model", memoryview(data), 0)]
    while stack:
        kind, message, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise ModelRejected("the model nests graphs too deeply")
        for number, value in fields(message):
            if kind == "tensor":
                if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value == 1):
                    return True
                continue
            child = _CHILDREN[kind].get(number)
            if child is not None and isinstance(value, memoryview):
                stack.append((child, value, depth + 1))
    return False
