"""A second, simple implementation of Kubo's file layout, top down and in memory, to compare with.

Written from the specifications of dag-pb and UnixFS alone; shares no code with the store.
"""

from __future__ import annotations

import base64
import hashlib

CHUNK = 262_144
LINKS = 174


def _varint(n: int) -> bytes:
    return bytes([n]) if n < 128 else bytes([n % 128 + 128]) + _varint(n // 128)


def _cid(codec: int, block: bytes) -> bytes:
    return bytes([1, codec, 18, 32]) + hashlib.sha256(block).digest()


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number * 8 + 2) + _varint(len(payload)) + payload


def _number(number: int, value: int) -> bytes:
    return _varint(number * 8) + _varint(value)


def _tree(leaves: list[bytes], depth: int, blocks: dict[bytes, bytes]) -> tuple[bytes, int, int]:
    """(CID, file size, size with all nodes)."""
    if depth == 0:
        (leaf,) = leaves
        cid = _cid(0x55, leaf)
        blocks[cid] = leaf
        return cid, len(leaf), len(leaf)
    below = LINKS ** (depth - 1)
    parts = [_tree(leaves[i : i + below], depth - 1, blocks) for i in range(0, len(leaves), below)]
    links = b"".join(_field(2, _field(1, cid) + _field(2, b"") + _number(3, total)) for cid, _, total in parts)
    data = _number(1, 2) + _number(3, sum(size for _, size, _ in parts)) + b"".join(_number(4, size) for _, size, _ in parts)
    block = links + _field(1, data)
    cid = _cid(0x70, block)
    blocks[cid] = block
    return cid, sum(size for _, size, _ in parts), len(block) + sum(total for _, _, total in parts)


def reference(data: bytes) -> tuple[str, dict[bytes, bytes]]:
    """(root CID, all blocks by binary CID)."""
    leaves = [data[i : i + CHUNK] for i in range(0, len(data), CHUNK)] or [b""]
    depth = 0
    while LINKS**depth < len(leaves):
        depth += 1
    blocks: dict[bytes, bytes] = {}
    root, _, _ = _tree(leaves, depth, blocks)
    return "b" + base64.b32encode(root).decode().rstrip("=").lower(), blocks


def pattern(size: int) -> bytes:
    """Bytes in which every chunk differs."""
    chunks = -(-size // CHUNK)
    return b"".join(index.to_bytes(4, "big") * (CHUNK // 4) for index in range(chunks))[:size]
