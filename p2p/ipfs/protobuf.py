"""The few lines of the protobuf wire format that dag-pb and UnixFS need.

dag-pb is stricter than protobuf libraries are: its fields have a fixed order (links before data) that
differs from the order of their numbers, so generated code cannot write it.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT = 0
_BYTES = 2
_MAX_VARINT_BYTES = 10


class Malformed(Exception):
    """Bytes that are not what they should be."""


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes | bytearray | memoryview, offset: int) -> tuple[int, int]:
    """(value, offset after it). Raises `Malformed`."""
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        if offset + index >= len(data):
            raise Malformed("a number is cut off")
        byte = data[offset + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, offset + index + 1
    raise Malformed("a number is too long")


def number_field(number: int, value: int) -> bytes:
    return varint(number << 3 | _VARINT) + varint(value)


def bytes_field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | _BYTES) + varint(len(value)) + value


def fields(data: bytes | memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) in order; only numbers and byte strings are allowed. Raises `Malformed`."""
    view = memoryview(data)
    offset = 0
    while offset < len(view):
        key, offset = read_varint(view, offset)
        kind = key & 7
        value, offset = read_varint(view, offset)
        if kind == _VARINT:
            yield key >> 3, value
        elif kind == _BYTES:
            if offset + value > len(view):
                raise Malformed("a byte string is cut off")
            yield key >> 3, view[offset : offset + value]
            offset += value
        else:
            raise Malformed("an unknown kind of field")
