"""CAR archives, version 1: a header that names roots, then blocks, each with its CID. https://ipld.io/specs/transport/car/carv1/

Pure: bytes to blocks and back. What is read is checked block by block; an archive is somebody else's word.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from p2p.ipfs import cid as cids
from p2p.ipfs import dagcbor
from p2p.ipfs.api import BadCar, BadCid, BlockCorrupt
from p2p.ipfs.cid import Cid
from p2p.ipfs.protobuf import Malformed, read_varint, varint
from p2p.ipfs.settings import MAX_BLOCK
from p2p.ipfs.unixfs import Block

MAX_HEADER = 64 * 1024
MAX_ROOTS = 1000
_MAX_CID = 64
_MAX_VARINT = 10
_CID_V0 = b"\x12\x20"
_V0_LENGTH = 34
_LINK = b"\xd8\x2a\x58\x25\x00"


def header(roots: Iterable[Cid]) -> bytes:
    """The first bytes of an archive."""
    links = [_LINK + root.binary for root in roots]
    if len(links) > MAX_ROOTS:
        raise ValueError(f"an archive has {MAX_ROOTS} roots at most")
    body = b"\xa2\x65roots" + _list_of(len(links)) + b"".join(links) + b"\x67version\x01"
    return varint(len(body)) + body


def _list_of(length: int) -> bytes:
    """The head of a CBOR list, in its shortest form."""
    if length < 24:
        return bytes((0x80 | length,))
    return bytes((0x98, length)) if length < 256 else b"\x99" + length.to_bytes(2, "big")


def section(cid: Cid, data: bytes) -> bytes:
    """One block."""
    return varint(len(cid.binary) + len(data)) + cid.binary + data


@dataclass(slots=True)
class CarReader:
    """Takes an archive in pieces of any length; holds one section at the most. Raises `BadCar` for anything but a sound
    archive of blocks that DIM can use."""

    roots: tuple[Cid, ...] | None = None
    """Known once the header was read."""
    _buffer: bytearray | None = None

    def feed(self, piece: bytes) -> list[Block]:
        """The verified blocks that are complete now."""
        if self._buffer is None:
            self._buffer = bytearray()
        self._buffer += piece
        blocks: list[Block] = []
        offset = 0
        while (end := self._next(offset)) is not None:
            start, stop = end
            body = bytes(memoryview(self._buffer)[start:stop])
            if self.roots is None:
                self.roots = _read_header(body)
            else:
                blocks.append(_read_section(body))
            offset = stop
        del self._buffer[:offset]
        return blocks

    def close(self) -> tuple[Cid, ...]:
        """The roots, at the end of the archive."""
        if self.roots is None:
            raise BadCar("not a CAR archive: it has no header")
        if self._buffer:
            raise BadCar("the CAR archive is cut off")
        return self.roots

    def _next(self, offset: int) -> tuple[int, int] | None:
        """Where the next part begins and ends, if it is here whole."""
        assert self._buffer is not None
        head = self._buffer[offset : offset + _MAX_VARINT]
        if not any(byte < 0x80 for byte in head):
            if len(head) == _MAX_VARINT:
                raise BadCar("not a CAR archive: a length that does not end")
            return None
        try:
            length, used = read_varint(head, 0)
        except Malformed as error:
            raise BadCar("not a CAR archive: a length that is too large") from error
        if not 0 < length <= (MAX_HEADER if self.roots is None else MAX_BLOCK + _MAX_CID):
            raise BadCar("not a CAR archive, or one with a part that is too large")
        start = offset + used
        return (start, start + length) if start + length <= len(self._buffer) else None


def _read_header(body: bytes) -> tuple[Cid, ...]:
    try:
        plain = dagcbor.decode(body)
        links = dagcbor.links(body)
    except BlockCorrupt as error:
        raise BadCar(f"not a CAR archive: {error}") from error
    if not isinstance(plain, dict) or plain.get("version") != 1:
        raise BadCar("not a CAR archive of version 1")
    roots = plain.get("roots")
    if not isinstance(roots, list) or len(roots) != len(links) or len(links) > MAX_ROOTS:
        raise BadCar(f"the header of a CAR archive has a list of at most {MAX_ROOTS} roots")
    return tuple(links)


def _read_section(body: bytes) -> Block:
    try:
        if body.startswith(_CID_V0):
            cid, data = cids.from_digest(cids.DAG_PB, body[2:_V0_LENGTH]), body[_V0_LENGTH:]
            if len(body) < _V0_LENGTH:
                raise BadCid("cut off")
        else:
            cid, data = cids.from_binary(body[:36]), body[36:]
    except BadCid as error:
        raise BadCar(f"the archive has a block that DIM cannot use: {error}") from error
    if len(data) > MAX_BLOCK:
        raise BadCar("the archive has a block that is too large")
    if not cid.matches(data):
        raise BadCar(f"the archive has wrong bytes for {cid}")
    return Block(cid, data)
