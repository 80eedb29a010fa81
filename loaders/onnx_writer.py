"""Writes ONNX models without the onnx package. Field numbers are those of onnx.proto."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loaders.api import Array, ModelRejected
from loaders.protobuf import put_bytes, put_float, put_floats, put_int, put_ints

ONNX_TYPES = {
    "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "str": 8, "bool": 9,
    "float16": 10, "float64": 11, "uint32": 12, "uint64": 13,
}  # fmt: skip
OPSET, ML_OPSET, IR_VERSION = 17, 3, 8
MAX_BYTES = (1 << 31) - 1
"""protobuf's own bound."""
Axis = int | str | None
Attribute = int | float | str | Array | Sequence[int] | Sequence[float] | Sequence[str]


class GraphWriter:
    """One graph, node by node. Values are names; constants are written once each."""

    def __init__(self) -> None:
        self._nodes: list[bytes] = []
        self._constants: dict[str, bytes] = {}
        self._inputs: list[bytes] = []
        self._outputs: list[bytes] = []
        self._made = 0

    def fresh(self) -> str:
        """A name that no model uses: its first character is not allowed in theirs."""
        self._made += 1
        return f"~{self._made}"

    def constant(self, value: Any, name: str = "") -> str:
        """An array (or what numpy makes one of) as a value."""
        name = name or self.fresh()
        if name not in self._constants:
            self._constants[name] = tensor(np.asarray(value), name)
        return name

    def node(self, op: str, inputs: Sequence[str], outputs: Sequence[str] | str = "", *, domain: str = "", **attributes: Attribute) -> str:
        """Adds a node and returns its first output, which gets a fresh name unless it is given."""
        names = [outputs or self.fresh()] if isinstance(outputs, str) else list(outputs)
        data = b"".join(put_bytes(1, n) for n in inputs) + b"".join(put_bytes(2, n) for n in names) + put_bytes(4, op)
        data += b"".join(put_bytes(5, _attribute(k, v)) for k, v in attributes.items())
        self._nodes.append(data + (put_bytes(7, domain) if domain else b""))
        return names[0]

    def input(self, name: str, dtype: str, shape: Sequence[Axis]) -> None:
        self._inputs.append(_value_info(name, dtype, shape))

    def output(self, name: str, dtype: str, shape: Sequence[Axis]) -> None:
        self._outputs.append(_value_info(name, dtype, shape))

    def model(self) -> bytes:
        """The file. Raises `ModelRejected` if it is beyond what protobuf can hold."""
        parts = [put_bytes(1, n) for n in self._nodes] + [put_bytes(2, "main")]
        parts += [put_bytes(5, c) for c in self._constants.values()]
        parts += [put_bytes(11, i) for i in self._inputs] + [put_bytes(12, o) for o in self._outputs]
        if sum(map(len, parts)) > MAX_BYTES:
            raise ModelRejected("the model is too large to be translated to ONNX (2 GiB)")
        opsets = [put_int(2, OPSET), put_bytes(1, "ai.onnx.ml") + put_int(2, ML_OPSET)]
        return put_int(1, IR_VERSION) + put_bytes(2, "dim") + put_bytes(7, b"".join(parts)) + b"".join(put_bytes(8, o) for o in opsets)


def tensor(array: Array, name: str) -> bytes:
    """A TensorProto."""
    dtype = "str" if array.dtype.kind in "OU" else array.dtype.name
    if dtype not in ONNX_TYPES:
        raise ModelRejected(f"constants of type {dtype} cannot be translated")
    head = b"".join(put_int(1, n) for n in array.shape) + put_int(2, ONNX_TYPES[dtype]) + put_bytes(8, name)
    if dtype == "str":
        return head + b"".join(put_bytes(6, str(s)) for s in array.ravel().tolist())
    return head + put_bytes(9, np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes())


def _attribute(name: str, value: Attribute) -> bytes:
    head = put_bytes(1, name)
    if isinstance(value, np.ndarray):
        return head + put_bytes(5, tensor(value, "")) + put_int(20, 4)
    if isinstance(value, str):
        return head + put_bytes(4, value) + put_int(20, 3)
    if isinstance(value, bool | int):
        return head + put_int(3, int(value)) + put_int(20, 2)
    if isinstance(value, float):
        return head + put_float(2, value) + put_int(20, 1)
    items = list(value)
    if items and isinstance(items[0], str):
        return head + b"".join(put_bytes(9, str(s)) for s in items) + put_int(20, 8)
    if items and isinstance(items[0], float):
        return head + put_floats(7, [float(v) for v in items]) + put_int(20, 6)
    return head + put_ints(8, [int(v) for v in items]) + put_int(20, 7)


def _value_info(name: str, dtype: str, shape: Sequence[Axis]) -> bytes:
    if dtype not in ONNX_TYPES:
        raise ModelRejected(f"{name!r} is of type {dtype}, which ONNX does not have")
    dims = b"".join(put_bytes(1, put_bytes(2, n) if isinstance(n, str) else b"" if n is None else put_int(1, n)) for n in shape)
    kind = put_bytes(1, put_int(1, ONNX_TYPES[dtype]) + put_bytes(2, dims))
    return put_bytes(1, name) + put_bytes(2, kind)
