"""Files outside the store: read piece by piece, and written so that a name never stands for half a file."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from p2p.ipfs.api import DiskFull, TooLarge
from p2p.ipfs.disk import fsync_path
from p2p.ipfs.threads import Together

_FULL = (errno.ENOSPC, errno.EDQUOT)
WRITE_BYTES = 2 * 1024 * 1024
"""Pieces that are written in one go."""
WRITES_TOGETHER = 16


async def read_pieces(path: Path, size: int) -> AsyncGenerator[bytes, None]:
    """Pieces of ``size`` bytes, the last one shorter. Raises `OSError`."""
    async with await trio.open_file(path, "rb") as file:
        while piece := await file.read(size):
            yield piece


class WholeFile:
    """Made by `whole_file`."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._threads = Together(trio.CapacityLimiter(1), lanes=1, most=WRITES_TOGETHER)

    async def write(self, offset: int, *pieces: bytes) -> None:
        """One after the other, from there. What nobody writes is zeros. Raises `DiskFull`, `OSError`."""
        await self._threads.run(lambda: _write_at(self._handle, offset, pieces))


@asynccontextmanager
async def whole_file(path: Path) -> AsyncGenerator[WholeFile, None]:
    """A temporary file beside ``path``; fsync and rename at the end. Nothing is left when the block fails or is cancelled. Raises `DiskFull`,
    `TooLarge`, `OSError`."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        handle = await trio.to_thread.run_sync(lambda: os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            yield WholeFile(handle)
            await trio.to_thread.run_sync(os.fsync, handle)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(os.close, handle)
        await trio.to_thread.run_sync(_publish, temporary, path)
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull("no space left for the file") from error
        if error.errno == errno.EFBIG:
            raise TooLarge("a file that is larger than this disk takes") from error
        raise
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(lambda: temporary.unlink(missing_ok=True))


async def write_whole(path: Path, pieces: AsyncIterator[bytes]) -> int:
    """As `whole_file`, of pieces that come in order. Returns the size. Raises also what ``pieces`` raises."""
    size, held, room = 0, list[bytes](), WRITE_BYTES
    async with whole_file(path) as file:
        async for piece in pieces:
            held.append(piece)
            room -= len(piece)
            if room <= 0:
                await file.write(size, *held)
                size, held, room = size + sum(map(len, held)), [], WRITE_BYTES
        await file.write(size, *held)
    return size + sum(map(len, held))


def _write_at(handle: int, offset: int, pieces: tuple[bytes, ...]) -> None:
    for piece in pieces:
        left = memoryview(piece)
        while left:
            done = os.pwrite(handle, left, offset)
            left, offset = left[done:], offset + done


def _publish(temporary: Path, path: Path) -> None:
    os.replace(temporary, path)
    fsync_path(path.parent)
