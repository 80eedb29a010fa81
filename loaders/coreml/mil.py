"""CoreML's ML programs (MIL) as plain values, read from their protobuf.

Field numbers are those of MIL.proto; weights lie in a blob file beside the program, each behind a head of 64 bytes::

    u32 0xDEADBEEF | u32 type | u64 bytes | u64 offset | u64 bits of padding | 32 bytes reserved

Both come from whoever made the model: every size is checked against what is there.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loaders.api import Array, ModelRejected
from loaders.protobuf import Message

DTYPES = {
    1: "bool", 2: "str", 10: "float16", 11: "float32", 12: "float64", 21: "int8", 22: "int16", 23: "int32", 24: "int64",
    31: "uint8", 32: "uint16", 33: "uint32", 34: "uint64",
}  # fmt: skip
_PACKED = {25: 4, 35: 4, 36: 2, 37: 1, 38: 6, 39: 3}
"""Types below a byte -> bits; they become uint8, and 25, which has a sign, int8."""
_SIGNED_4 = 25
_BLOB = struct.Struct("<IIQQQ")
_SENTINEL = 0xDEADBEEF
MAX_ELEMENTS = 1 << 32
MAX_OPERATIONS = 1_000_000
MAX_DEPTH = 16


@dataclass(frozen=True, slots=True)
class Kind:
    """The type of a value: a tensor of a dtype, with None for sizes that are not known; or no tensor at all."""

    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Ref:
    """Another operation's output, or an input of the function."""

    name: str


Argument = Ref | Any
"""A reference or a constant: an array, a string, or a list of constants."""


@dataclass(slots=True)
class Operation:
    type: str
    inputs: dict[str, list[Argument]]
    """Parameter -> its arguments; most have one."""
    outputs: list[tuple[str, Kind]]
    value: Any = None
    """Of a constant."""


@dataclass(slots=True)
class Function:
    inputs: list[tuple[str, Kind]]
    outputs: list[str]
    operations: list[Operation] = field(default_factory=list[Operation])
    has_blocks: set[str] = field(default_factory=set[str])
    """Types of operations with inner blocks (control flow)."""


@dataclass(frozen=True, slots=True)
class Blobs:
    """Weight files by the name that the program uses."""

    files: Mapping[str, bytes]

    def read(self, name: str, offset: int, kind: Message) -> Array:
        data = self.files.get(name.removeprefix("@model_path/"))
        if data is None or not 0 <= offset <= len(data) - 64:
            raise ModelRejected("the program refers to weights that are not in the package")
        sentinel, _, size, start, _ = _BLOB.unpack_from(data, offset)
        if sentinel != _SENTINEL or start > len(data) or size > len(data) - start:
            raise ModelRejected("the weights of the program are malformed")
        return _from_bytes(data[start : start + size], kind)


def read_function(program: Message, blobs: Blobs, name: str) -> Function:
    """The function that is run. Raises `ModelRejected`."""
    functions = program.entries(2)
    found = functions.get(name)
    if found is None:
        raise ModelRejected(f"the program has no function {name[:64]!r}")
    block = found.entries(3).get(found.text(2))
    if block is None:
        raise ModelRejected("the program has no code for its own operator set")
    out = Function(inputs=[_named(i) for i in found.messages(1)], outputs=block.texts(2))
    for message in block.messages(3):
        if len(out.operations) >= MAX_OPERATIONS:
            raise ModelRejected("the program has too many operations")
        operation = _operation(message, blobs)
        if 4 in message:
            out.has_blocks.add(operation.type)
        out.operations.append(operation)
    return out


def _operation(message: Message, blobs: Blobs) -> Operation:
    inputs = {name: [_argument(b, blobs) for b in argument.messages(1)] for name, argument in message.entries(2).items()}
    out = Operation(message.text(1), inputs, [_named(o) for o in message.messages(3)])
    attributes = message.entries(5)
    if out.type == "const":
        if "val" not in attributes:
            raise ModelRejected("a constant of the program has no value")
        out.value = _value(attributes["val"], blobs, 0)
    elif out.type.startswith("constexpr_"):
        # older ones keep what they are made of in attributes
        inputs.update({name: [_value(a, blobs, 0)] for name, a in attributes.items() if name != "name"})
    return out


def _argument(binding: Message, blobs: Blobs) -> Argument:
    return Ref(binding.text(1)) if 1 in binding else _value(binding.message(2), blobs, 0)


def _named(message: Message) -> tuple[str, Kind]:
    return message.text(1), _kind(message.message(2))


def _kind(kind: Message) -> Kind:
    if 1 not in kind:
        what = next((n for number, n in ((2, "list"), (3, "tuple"), (4, "dict"), (5, "state")) if number in kind), "unknown")
        return Kind(what, ())
    tensor = kind.message(1)
    number = tensor.integer(1)
    dtype = DTYPES.get(number, "int8" if number == _SIGNED_4 else "uint8" if number in _PACKED else f"type {number}")
    return Kind(dtype, tuple(d.message(1).integer(1) if 1 in d else None for d in tensor.messages(3)))


def _value(value: Message, blobs: Blobs, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ModelRejected("a constant of the program nests too deeply")
    kind = value.message(2)
    if 5 in value:
        blob = value.message(5)
        return blobs.read(blob.text(1), blob.integer(2), kind)
    immediate = value.message(3)
    if 1 in immediate:
        return _tensor(immediate.message(1), kind)
    for number in (2, 3):
        if number in immediate:
            return [_value(v, blobs, depth + 1) for v in immediate.message(number).messages(1)]
    raise ModelRejected("a constant of the program is of a kind that is not known")


def _tensor(tensor: Message, kind: Message) -> Any:
    shape = _shape(kind)
    if 4 in tensor:
        texts = tensor.message(4).texts(1)
        return texts[0] if not shape and len(texts) == 1 else _shaped(np.array(texts, dtype=object), shape)
    if 7 in tensor:
        return _from_bytes(bytes(tensor.message(7).raw(1)), kind)
    dtype = _dtype(kind)
    for number, wire in ((1, "<f4"), (6, "<f8")):
        if number in tensor:
            return _shaped(np.frombuffer(_whole(tensor.message(number).wide(1), int(wire[2])), dtype=wire).astype(dtype), shape)
    for number in (2, 3, 5):
        if number in tensor:
            integers = tensor.message(number).integers(1)
            return _shaped(np.array(integers, dtype=np.int64).astype(dtype), shape)
    return _shaped(np.zeros(0, dtype), shape)


def _from_bytes(data: bytes, kind: Message) -> Array:
    number, shape = kind.message(1).integer(1), _shape(kind)
    bits = _PACKED.get(number)
    if bits is None:
        dtype = np.dtype(_dtype(kind)).newbyteorder("<")
        return _shaped(np.frombuffer(_whole(data, dtype.itemsize), dtype=dtype), shape)
    count = math.prod(shape)
    if count * bits > len(data) * 8:
        raise ModelRejected("the weights of the program are malformed")
    flat = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[: count * bits].reshape(count, bits)
    values = (flat << np.arange(bits, dtype=np.uint8)).sum(axis=1).astype(np.uint8)
    return _shaped(values if number != _SIGNED_4 else ((values ^ 8).astype(np.int8) - np.int8(8)), shape)


def _dtype(kind: Message) -> str:
    dtype = DTYPES.get(kind.message(1).integer(1), "")
    if dtype in ("", "str"):
        raise ModelRejected("a constant of the program is of a type that is not known")
    return dtype


def _shape(kind: Message) -> tuple[int, ...]:
    dims = [d.message(1).integer(1) if 1 in d else -1 for d in kind.message(1).messages(3)]
    if any(n < 0 for n in dims) or math.prod(dims) > MAX_ELEMENTS or len(dims) > 32:
        raise ModelRejected("a constant of the program has no usable shape")
    return tuple(dims)


def _whole(data: bytes, size: int) -> bytes:
    if len(data) % size:
        raise ModelRejected("the weights of the program are malformed")
    return data


def _shaped(flat: Array, shape: tuple[int, ...]) -> Array:
    if flat.size != math.prod(shape):
        raise ModelRejected("a constant of the program has another size than its shape says")
    return flat.reshape(shape)
