"""Files outside the store: read piece by piece, and written so that a name never stands for half a file."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import trio

from p2p.ipfs.api import DiskFull
from p2p.ipfs.disk import fsync_folder

_FULL = (errno.ENOSPC, errno.EDQUOT)


async def read_pieces(path: Path, size: int) -> AsyncGenerator[bytes, None]:
    """Pieces of ``size`` bytes, the last one shorter. Raises `OSError`."""
    async with await trio.open_file(path, "rb") as file:
        while piece := await file.read(size):
            yield piece


async def write_whole(path: Path, pieces: AsyncIterator[bytes]) -> int:
    """A temporary file beside ``path``, fsync, rename; nothing is left when it fails or is cancelled.
    Returns the size. Raises `DiskFull`, `OSError`, and what ``pieces`` raises."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    size = 0
    try:
        async with await trio.open_file(temporary, "xb") as file:
            async for piece in pieces:
                await file.write(piece)
                size += len(piece)
            await file.flush()
            await trio.to_thread.run_sync(os.fsync, file.fileno())
        await trio.to_thread.run_sync(_publish, temporary, path)
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull("no space left for the file") from error
        raise
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(lambda: temporary.unlink(missing_ok=True))
    return size


def _publish(temporary: Path, path: Path) -> None:
    os.replace(temporary, path)
    fsync_folder(path.parent)
