"""UnixFS files as Kubo lays them out: raw leaves, 262,144 bytes each, balanced, 174 links to a node.

Equal to ``ipfs add --cid-version=1 --raw-leaves --chunker=size-262144``. A file of one chunk is that
raw block itself. Specification: https://specs.ipfs.tech/unixfs/ and
https://ipld.io/specs/codecs/dag-pb/spec/
"""

from __future__ import annotations

from dataclasses import dataclass

from p2p.ipfs import cid as cids
from p2p.ipfs.api import BadCid, BlockCorrupt
from p2p.ipfs.cid import Cid
from p2p.ipfs.protobuf import Malformed, bytes_field, fields, number_field

MAX_SIZE = 1 << 53
"""Bytes of a file."""
MAX_LINKS = 174
_TYPE_RAW = 0
_TYPE_FILE = 2
_DIRECTORIES = (1, 5)


@dataclass(frozen=True, slots=True)
class Child:
    """A link of a file node."""

    cid: Cid
    size: int
    """Bytes of the file below this link, as the parent says."""


@dataclass(frozen=True, slots=True)
class FileNode:
    """A decoded dag-pb node of a file."""

    children: tuple[Child, ...]
    size: int
    data: bytes
    """What the node itself holds (files with wrapped leaves, which Kubo also makes)."""


@dataclass(frozen=True, slots=True)
class Block:
    cid: Cid
    data: bytes


@dataclass(frozen=True, slots=True)
class _Entry:
    cid: Cid
    size: int
    total: int
    """Bytes of the file below, and of the file with all its nodes (the link's ``Tsize``)."""


def encode_node(entries: list[tuple[Cid, int, int]]) -> bytes:
    """dag-pb of a file node from (CID, file bytes, cumulative bytes) of each link, in order."""
    links = b"".join(bytes_field(2, bytes_field(1, cid.binary) + bytes_field(2, b"") + number_field(3, total)) for cid, _, total in entries)
    sizes = [size for _, size, _ in entries]
    meta = number_field(1, _TYPE_FILE) + number_field(3, sum(sizes)) + b"".join(number_field(4, size) for size in sizes)
    return links + bytes_field(1, meta)


class Layout:
    """Builds the tree while leaves arrive; holds at most ``MAX_LINKS`` entries for each level."""

    def __init__(self, max_links: int = MAX_LINKS) -> None:
        self._max_links = max_links
        self._levels: list[list[_Entry]] = [[]]
        self._leaves = 0

    def add(self, leaf: Cid, size: int) -> list[Block]:
        """Interior blocks that are complete now."""
        self._leaves += 1
        return self._push(0, _Entry(leaf, size, size))

    def finish(self) -> tuple[Cid, int, list[Block]]:
        """(root, file size, remaining interior blocks). At least one leaf must have been added."""
        if not self._leaves:
            raise ValueError("a file has at least one leaf, if an empty one")
        blocks: list[Block] = []
        level = 0
        while True:
            entries = self._levels[level]
            top = level == len(self._levels) - 1
            if top and len(entries) == 1:
                return entries[0].cid, entries[0].size, blocks
            if entries:
                blocks.extend(self._close(level))
            level += 1

    def _push(self, level: int, entry: _Entry) -> list[Block]:
        if level == len(self._levels):
            self._levels.append([])
        # A full level is closed only when one more entry comes: a root may have exactly `max_links`.
        blocks = self._close(level) if len(self._levels[level]) == self._max_links else []
        self._levels[level].append(entry)
        return blocks

    def _close(self, level: int) -> list[Block]:
        entries = self._levels[level]
        data = encode_node([(entry.cid, entry.size, entry.total) for entry in entries])
        cid = cids.compute(cids.DAG_PB, data)
        self._levels[level] = []
        parent = _Entry(cid, sum(entry.size for entry in entries), len(data) + sum(entry.total for entry in entries))
        return [Block(cid, data), *self._push(level + 1, parent)]


def decode_node(data: bytes) -> FileNode:
    """Raises `BlockCorrupt` for what is not a sound node of a file: sizes must add up, no link may be
    empty (so that a walk visits no more nodes than the file has bytes)."""
    try:
        links, meta = _decode_dag_pb(data)
        kind, size, inline, sizes = _decode_meta(meta)
    except (Malformed, BadCid) as error:
        raise BlockCorrupt(f"not a dag-pb file node: {error}") from error
    if kind not in (_TYPE_RAW, _TYPE_FILE):
        raise BlockCorrupt("not a UnixFS file")
    if len(links) != len(sizes) or any(each < 1 for each in sizes) or sum(sizes) + len(inline) != size:
        raise BlockCorrupt("the sizes in a file node do not add up")
    if size > MAX_SIZE:
        raise BlockCorrupt("a file that is larger than any can be")
    return FileNode(tuple(map(Child, links, sizes)), size, inline)


def is_directory(data: bytes) -> bool:
    """Whether a dag-pb block is a folder, or a part of a large one, as Kubo makes them. DIM makes none; it passes them on."""
    try:
        return _decode_meta(_decode_dag_pb(data)[1])[0] in _DIRECTORIES
    except (Malformed, BadCid):
        return False


def links(data: bytes) -> list[Cid]:
    """What a dag-pb block links to, whatever kind of thing it is. Raises `BlockCorrupt`."""
    try:
        return [_decode_link(value) for number, value in fields(data) if number == 2 and not isinstance(value, int)]
    except (Malformed, BadCid) as error:
        raise BlockCorrupt(f"not a dag-pb node: {error}") from error


def _decode_dag_pb(data: bytes) -> tuple[list[Cid], memoryview]:
    links: list[Cid] = []
    meta: memoryview | None = None
    for number, value in fields(data):
        if isinstance(value, int) or number not in (1, 2):
            raise Malformed("an unknown field")
        if number == 1:
            if meta is not None:
                raise Malformed("data given twice")
            meta = value
        else:
            links.append(_decode_link(value))
    if meta is None:
        raise Malformed("no UnixFS data")
    return links, meta


def _decode_link(view: memoryview) -> Cid:
    for number, value in fields(view):
        if number == 1 and not isinstance(value, int):
            return _linked(bytes(value))
    raise Malformed("a link without a CID")


def _linked(binary: bytes) -> Cid:
    """Links of version 0, which Kubo makes by default, name dag-pb blocks by their hash alone."""
    if len(binary) == 34 and binary[:2] == b"\x12\x20":
        return cids.from_digest(cids.DAG_PB, binary[2:])
    return cids.from_binary(binary)


def _decode_meta(view: memoryview) -> tuple[int, int, bytes, list[int]]:
    kind, size, inline = -1, None, b""
    sizes: list[int] = []
    for number, value in fields(view):
        if isinstance(value, int):
            if number == 1:
                kind = value
            elif number == 3:
                size = value
            elif number == 4:
                sizes.append(value)
        elif number == 2:
            inline = bytes(value)
    return kind, len(inline) + sum(sizes) if size is None else size, inline, sizes
