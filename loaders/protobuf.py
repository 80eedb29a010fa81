"""Just enough of protobuf to read and write the messages of model files without their packages.

Wire format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from loaders.api import ModelRejected

Value = int | memoryview
"""A number, or the bytes of a string, message or packed list (also of a fixed-width number)."""


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """(number, where it ends). Raises `ModelRejected`."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ModelRejected("the file is malformed: it ends in the middle of a number")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if not byte & 0x80:
            return value, at
        shift += 7


def fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    """(field number, value) of one message. Raises `ModelRejected` where it is malformed."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = varint(data, at)
            yield number, value
            continue
        if wire == 2:
            length, at = varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ModelRejected("the file is malformed: unknown wire type")
        if length > len(data) - at:
            raise ModelRejected("the file is malformed: it is cut short")
        yield number, data[at : at + length]
        at += length


def top_fields(data: bytes) -> set[int]:
    """Numbers of the fields of the outermost message. Raises `ModelRejected`."""
    return {number for number, _ in fields(memoryview(data))}


class Message:
    """One message, its fields by number. What is absent is empty; of repeated scalars the last counts."""

    __slots__ = ("_fields",)

    def __init__(self, data: memoryview) -> None:
        self._fields: dict[int, list[Value]] = {}
        for number, value in fields(data):
            self._fields.setdefault(number, []).append(value)

    def __contains__(self, number: int) -> bool:
        return number in self._fields

    def numbers(self) -> set[int]:
        return set(self._fields)

    def raw(self, number: int) -> memoryview:
        value = self._fields.get(number, [memoryview(b"")])[-1]
        if isinstance(value, int):
            raise ModelRejected("the file is malformed: a number stands where bytes belong")
        return value

    def integer(self, number: int, default: int = 0) -> int:
        """Signed, 64 bits."""
        value = self._fields.get(number, [default])[-1]
        if not isinstance(value, int):
            raise ModelRejected("the file is malformed: bytes stand where a number belongs")
        return value - (1 << 64) if value >= 1 << 63 else value

    def double(self, number: int) -> float:
        return struct.unpack("<d", self._sized(number, 8))[0]

    def single(self, number: int) -> float:
        return struct.unpack("<f", self._sized(number, 4))[0]

    def _sized(self, number: int, size: int) -> bytes:
        data = bytes(self.raw(number)) or bytes(size)
        if len(data) != size:
            raise ModelRejected("the file is malformed: a number has another width")
        return data

    def text(self, number: int) -> str:
        return _text(self.raw(number))

    def message(self, number: int) -> Message:
        return Message(self.raw(number))

    def messages(self, number: int) -> list[Message]:
        return [Message(v) for v in self._bytes(number)]

    def texts(self, number: int) -> list[str]:
        return [_text(v) for v in self._bytes(number)]

    def blobs(self, number: int) -> list[bytes]:
        return [bytes(v) for v in self._bytes(number)]

    def _bytes(self, number: int) -> list[memoryview]:
        found = self._fields.get(number, [])
        out = [v for v in found if not isinstance(v, int)]
        if len(out) != len(found):
            raise ModelRejected("the file is malformed: a number stands where bytes belong")
        return out

    def integers(self, number: int) -> list[int]:
        """Packed or not; signed, 64 bits."""
        out: list[int] = []
        for value in self._fields.get(number, []):
            if isinstance(value, int):
                out.append(value)
                continue
            at = 0
            while at < len(value):
                one, at = varint(value, at)
                out.append(one)
        return [n - (1 << 64) if n >= 1 << 63 else n for n in out]

    def wide(self, number: int) -> bytes:
        """Little-endian bytes of a repeated fixed-width field, packed or not."""
        return b"".join(bytes(v) for v in self._bytes(number))

    def entries(self, number: int) -> dict[str, Message]:
        """A map from strings to messages."""
        return {entry.text(1): entry.message(2) for entry in self.messages(number)}


def _text(data: memoryview) -> str:
    try:
        return bytes(data).decode()
    except UnicodeDecodeError as e:
        raise ModelRejected("the file is malformed: a name is not UTF-8") from e


# --- writing -------------------------------------------------------------------------------------


def put_varint(value: int) -> bytes:
    """Negative numbers as 64-bit two's complement, as protobuf has them."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def put_int(number: int, value: int) -> bytes:
    return put_varint(number << 3) + put_varint(value)


def put_float(number: int, value: float) -> bytes:
    return put_varint(number << 3 | 5) + struct.pack("<f", value)


def put_bytes(number: int, value: bytes | str) -> bytes:
    """A string, bytes, or a message that is written already."""
    data = value.encode() if isinstance(value, str) else value
    return put_varint(number << 3 | 2) + put_varint(len(data)) + data


def put_ints(number: int, values: Iterable[int]) -> bytes:
    """Packed."""
    return put_bytes(number, b"".join(put_varint(v) for v in values))


def put_floats(number: int, values: Iterable[float]) -> bytes:
    """Packed, 32 bits each."""
    return put_bytes(number, b"".join(struct.pack("<f", v) for v in values))
