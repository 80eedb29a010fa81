"""The records of a leaf as one file: entry after entry, jobs in the order of the leaf. Read and written piece by piece."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable
from contextlib import aclosing

import msgspec

from dimnode.core.job_record import MAX_ENTRY_BYTES
from dimnode.domain import codec
from dimnode.domain.record import SignedEntry
from p2p.ipfs.api import BlockCorrupt

LENGTH = 4
MAX_FRAME = MAX_ENTRY_BYTES + 4096
MAX_RECORD = 32 * 1024 * 1024
"""Bytes of one record's entries that are read from a file; the few that are larger come from a node that has them."""


class Framed(msgspec.Struct, frozen=True, array_like=True):
    job: str
    payload: bytes
    author: str
    signature: bytes


def frame(job: str, entry: SignedEntry) -> bytes:
    data = codec.encode([job, entry.payload, entry.author, entry.signature])
    return len(data).to_bytes(LENGTH, "big") + data


def frames(job: str, entries: Iterable[SignedEntry]) -> bytes:
    """In one order for one set of entries, so that a record that stays as it is makes the same file again."""
    return b"".join(frame(job, e) for e in sorted(entries, key=lambda e: e.id))


async def records(pieces: AsyncIterator[bytes], wanted: Collection[str]) -> AsyncGenerator[tuple[str, list[SignedEntry]], None]:
    """The wanted jobs that are in the file, each with its entries; too large ones are left out. Raises `BlockCorrupt`."""
    job, found, size = "", list[SignedEntry](), 0
    async with aclosing(_framed(pieces)) as all_frames:
        async for framed in all_frames:
            if framed.job != job:
                if found and size <= MAX_RECORD:
                    yield job, found
                job, found, size = framed.job, [], 0
            if framed.job in wanted:
                size += len(framed.payload)
                if size <= MAX_RECORD:
                    found.append(SignedEntry(framed.payload, framed.author, framed.signature))
    if found and size <= MAX_RECORD:
        yield job, found


async def _framed(pieces: AsyncIterator[bytes]) -> AsyncGenerator[Framed, None]:
    buffer = bytearray()
    async for piece in pieces:
        buffer += piece
        start = 0
        while len(buffer) - start >= LENGTH:
            length = int.from_bytes(buffer[start : start + LENGTH], "big")
            if length > MAX_FRAME:
                raise BlockCorrupt("a file of records with an entry that is too large")
            if len(buffer) - start - LENGTH < length:
                break
            yield _decode(bytes(buffer[start + LENGTH : start + LENGTH + length]))
            start += LENGTH + length
        del buffer[:start]
    if buffer:
        raise BlockCorrupt("a file of records that is cut off")


def _decode(data: bytes) -> Framed:
    try:
        return codec.decode(data, Framed)
    except codec.CodecError as error:
        raise BlockCorrupt("not a file of records") from error
