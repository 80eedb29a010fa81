"""DAG-CBOR in which bytes stay bytes. Specification: https://ipld.io/specs/codecs/dag-cbor/spec/

libipld, which does the work, takes bytes that can be read as a CID for a link. Of random ones, one in some thousands can: digests,
signatures and tensors became links to nothing, which nobody can fetch or pin.
"""

from __future__ import annotations

from typing import Any

import libipld

LINK = b"\xd8\x2a"
"""The tag of a link."""
_LENGTHS = {24: 1, 25: 2, 26: 4, 27: 8}
_CIDS_BEGIN = (0x01, 0x12)
"""Of version 1; of version 0, which is a multihash."""


def encode(value: Any) -> bytes:
    """The one encoding of a plain value: None, booleans, integers of 64 bits, finite floats, text, bytes, lists, and dicts with text keys.
    Raises `ValueError` for anything else (tuples included)."""
    try:
        data = libipld.encode_dag_cbor(value)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return _exact(value) if LINK in data and _has_likeness(value) else data


def decode(data: bytes) -> Any:
    """Links become bytes. Raises `ValueError`."""
    try:
        return libipld.decode_dag_cbor(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def head(major: int, value: int) -> bytes:
    """Of a data item: its major type, and its value or length."""
    if value < 24:
        return bytes((major << 5 | value,))
    info, length = next((info, length) for info, length in _LENGTHS.items() if value < 1 << 8 * length)
    return bytes((major << 5 | info,)) + value.to_bytes(length, "big")


def header(data: bytes, offset: int) -> tuple[int, int, int]:
    """Of the data item there: its major type, its value or length, and the offset of what follows. Raises `IndexError` at the end."""
    first = data[offset]
    major, info = first >> 5, first & 31
    length = _LENGTHS.get(info, 0)
    value = int.from_bytes(data[offset + 1 : offset + 1 + length], "big") if length else info
    return major, value, offset + 1 + length


def sorted_keys(value: dict[str, Any]) -> list[tuple[bytes, str]]:
    """Encoded keys, as they come in a map, and the keys."""
    return sorted(((encode(key), key) for key in value), key=lambda pair: (len(pair[0]), pair[0]))


def _has_likeness(value: Any) -> bool:
    """Whether some bytes in it may look like a CID."""
    match value:
        case bytes():
            return value[:1] != b"" and value[0] in _CIDS_BEGIN
        case list():
            return any(_has_likeness(item) for item in value)
        case dict():
            return any(_has_likeness(item) for item in value.values())
        case _:
            return False


def _exact(value: Any) -> bytes:
    match value:
        case bytes():
            return head(2, len(value)) + value
        case list():
            return head(4, len(value)) + b"".join(_exact(item) for item in value)
        case dict():
            return head(5, len(value)) + b"".join(key + _exact(value[name]) for key, name in sorted_keys(value))
        case _:
            return libipld.encode_dag_cbor(value)
