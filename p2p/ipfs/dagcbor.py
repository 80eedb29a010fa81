"""DAG-CBOR blocks: canonical encoding of plain values, strict decoding, and their links."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dagcbor
from p2p.ipfs import cid as cids
from p2p.ipfs.api import BadCid, BlockCorrupt
from p2p.ipfs.cid import Cid

encode = dagcbor.encode


@dataclass(frozen=True, slots=True)
class Encoded:
    """Canonical bytes of a value without links, in a value for `encode_linked`."""

    data: bytes


def encode_linked(value: Any) -> bytes:
    """As `encode`, of a value in which a `Cid` is a link. What is in ``Encoded`` is taken as it is."""
    match value:
        case Cid():
            return dagcbor.LINK + b"\x58\x25\x00" + value.binary
        case Encoded():
            return value.data
        case dict():
            return dagcbor.head(5, len(value)) + b"".join(data + encode_linked(value[key]) for data, key in dagcbor.sorted_keys(value))
        case list():
            return dagcbor.head(4, len(value)) + b"".join(encode_linked(item) for item in value)
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
        return dagcbor.decode(data)
    except ValueError as error:
        raise BlockCorrupt(f"not DAG-CBOR: {error}") from error


def is_canonical(data: bytes) -> bool:
    """Whether ``data`` is the one encoding of its value. A block with links is taken as it is when it
    decodes, since links become byte strings in plain values."""
    try:
        value = decode(data)
        return dagcbor.LINK in data or encode(value) == data
    except (BlockCorrupt, ValueError):
        return False


def links(data: bytes) -> list[Cid]:
    """CIDs that a block links to (tag 42). Raises `BlockCorrupt`."""
    if dagcbor.LINK not in data:
        return []
    decode(data)  # well-formed from here on, so that a flat scan over the headers is enough
    found: list[Cid] = []
    offset = 0
    try:
        while offset < len(data):
            major, value, offset = dagcbor.header(data, offset)
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
