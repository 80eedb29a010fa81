"""DAG-CBOR blocks: canonical encoding of plain values, strict decoding, and their links."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import libipld

from p2p.ipfs import cid as cids
from p2p.ipfs.api import BadCid, BlockCorrupt
from p2p.ipfs.cid import Cid

_LINK = b"\xd8\x2a"
_FIXED = {24: 1, 25: 2, 26: 4, 27: 8}


def encode(value: Any) -> bytes:
    """Plain values only: None, booleans, integers of 64 bits, finite floats, text, bytes, lists, and
    dicts with text keys. Raises `ValueError` for anything else (tuples included)."""
    try:
        return libipld.encode_dag_cbor(value)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


@dataclass(frozen=True, slots=True)
class Encoded:
    """Canonical bytes of a value without links, in a value for `encode_linked`."""

    data: bytes


def encode_linked(value: Any) -> bytes:
    """As `encode`, of a value in which a `Cid` is a link. What is in ``Encoded`` is taken as it is."""
    match value:
        case Cid():
            return _LINK + b"\x58\x25\x00" + value.binary
        case Encoded():
            return value.data
        case dict():
            keys = sorted(((encode(key), key) for key in value), key=lambda pair: (len(pair[0]), pair[0]))
            return _head(5, len(value)) + b"".join(data + encode_linked(value[key]) for data, key in keys)
        case list():
            return _head(4, len(value)) + b"".join(encode_linked(item) for item in value)
        case _:
            return encode(value)


def link_in(value: Any) -> Cid:
    """A link of a decoded value, where it is a byte string. Raises `BlockCorrupt`."""
    try:
        return cids.from_binary(value if isinstance(value, bytes) else b"")
    except BadCid as error:
        raise BlockCorrupt(f"not a link: {error}") from error


def decode(data: bytes) -> Any:
    """Raises `BlockCorrupt`."""
    try:
        return libipld.decode_dag_cbor(data)
    except (ValueError, RecursionError) as error:
        raise BlockCorrupt(f"not DAG-CBOR: {error}") from error


def is_canonical(data: bytes) -> bool:
    """Whether ``data`` is the one encoding of its value. A block with links is taken as it is when it
    decodes, since links become byte strings in plain values."""
    try:
        value = decode(data)
        return _LINK in data or encode(value) == data
    except (BlockCorrupt, ValueError):
        return False


def links(data: bytes) -> list[Cid]:
    """CIDs that a block links to (tag 42). Raises `BlockCorrupt`."""
    if _LINK not in data:
        return []
    decode(data)  # well-formed from here on, so that a flat scan over the headers is enough
    found: list[Cid] = []
    offset = 0
    try:
        while offset < len(data):
            major, value, offset = _header(data, offset)
            if major == 6:
                if data[offset : offset + 3] != b"\x58\x25\x00":
                    raise BlockCorrupt("a link that is not a CID")
                found.append(cids.from_binary(data[offset + 3 : offset + 39]))
                offset += 39
            elif major in (2, 3):
                offset += value
    except BadCid as error:
        raise BlockCorrupt(f"a link that cannot be followed: {error}") from error
    return found


def _head(major: int, value: int) -> bytes:
    if value < 24:
        return bytes((major << 5 | value,))
    info, length = next((info, length) for info, length in _FIXED.items() if value < 1 << 8 * length)
    return bytes((major << 5 | info,)) + value.to_bytes(length, "big")


def _header(data: bytes, offset: int) -> tuple[int, int, int]:
    first = data[offset]
    major, info = first >> 5, first & 31
    length = _FIXED.get(info, 0)
    value = int.from_bytes(data[offset + 1 : offset + 1 + length], "big") if length else info
    return major, value, offset + 1 + length
