"""DAG-CBOR in which bytes stay bytes. Specification: https://ipld.io/specs/codecs/dag-cbor/spec/

libipld, which does the work, takes bytes that can be read as a CID for a link. Of random ones, one in some thousands can: digests,
signatures and tensors became links to nothing, which nobody can fetch or pin.
"""

from __future__ import annotations

import re
from typing import Any

import libipld

LINK = b"\xd8\x2a"
"""The tag of a link."""
_LINKS = re.compile(rb"\xd8\x2a(?:[\x41-\x57]|\x58.|\x59..|\x5a....)\x00", re.DOTALL)
"""The tag, a byte string, and the zero that a CID begins with in it. Found now and then in other bytes, too."""
_LENGTHS = {24: 1, 25: 2, 26: 4, 27: 8}


def encode(value: Any) -> bytes:
    """The one encoding of a plain value: None, booleans, integers of 64 bits, finite floats, text, bytes, lists, and dicts with text keys.
    Raises `ValueError` for anything else (tuples included)."""
    try:
        data = libipld.encode_dag_cbor(value)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return _without_likenesses(value) if LINK in data and _LINKS.search(data) else data


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


def _without_likenesses(value: Any) -> bytes:
    """Encoded part by part: by libipld wherever there is nothing that it could have made a link of."""
    match value:
        case bytes():
            return head(2, len(value)) + value
        case list():
            return head(4, len(value)) + b"".join(map(encode, value))
        case dict():
            return head(5, len(value)) + b"".join(key + encode(value[name]) for key, name in sorted_keys(value))
        case _:
            return libipld.encode_dag_cbor(value)
