"""DAG-CBOR shown as DAG-JSON, as Kubo's `dag get` prints it. Specification: https://ipld.io/specs/codecs/dag-json/spec/"""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import dagcbor
from p2p.ipfs import cid as cids
from p2p.ipfs import dagcbor as blocks
from p2p.ipfs.api import BadCid, BlockCorrupt

_SIMPLE = {20: False, 21: True, 22: None}
_FLOAT = 27


def from_cbor(data: bytes) -> bytes:
    """Keys sorted, links and bytes under ``/``. Raises `BlockCorrupt`."""
    blocks.decode(data)  # well-formed from here on
    try:
        value, _ = _item(data, 0)
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
    except (BadCid, RecursionError, UnicodeEncodeError) as error:
        raise BlockCorrupt(f"cannot be shown as DAG-JSON: {error}") from error


def _item(data: bytes, offset: int) -> tuple[Any, int]:
    """The data item there, and the offset of what follows."""
    major, value, after = dagcbor.header(data, offset)
    match major:
        case 0:
            return value, after
        case 1:
            return -1 - value, after
        case 2:
            return {"/": {"bytes": base64.b64encode(data[after : after + value]).decode().rstrip("=")}}, after + value
        case 3:
            return data[after : after + value].decode(), after + value
        case 4:
            return _items(data, after, value)
        case 5:
            flat, after = _items(data, after, 2 * value)
            return dict(zip(flat[::2], flat[1::2], strict=True)), after
        case 6:
            return {"/": cids.from_binary(data[after + 3 : after + 3 + 36]).text}, after + 3 + 36
        case _:
            if data[offset] & 31 == _FLOAT:
                return struct.unpack(">d", data[offset + 1 : after])[0], after
            return _SIMPLE[data[offset] & 31], after


def _items(data: bytes, offset: int, count: int) -> tuple[list[Any], int]:
    found: list[Any] = []
    for _ in range(count):
        item, offset = _item(data, offset)
        found.append(item)
    return found, offset
