"""Blocks as files: synchronous, to be called in threads.

``blocks/<shard>/<cid>`` holds each block, the shard being the two characters before the last (as Kubo's
flatfs does). A block is written to ``tmp/``, then renamed, so a name always stands for a whole block;
after a power cut a block that was not fsynced may hold anything, so every read checks the hash.

A file's time of modification is when its block was last written or used, to `touch_after` seconds.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from p2p.ipfs import cid as cids
from p2p.ipfs.api import BadCid, DiskFull
from p2p.ipfs.cid import Cid
from p2p.ipfs.unixfs import Block

_FULL = (errno.ENOSPC, errno.EDQUOT)
LOOK_AFTER = 1.0
LOOK_AFTER_BYTES = 64 * 1024 * 1024
"""How much room is left on the disk is looked at after so many seconds, and after so many bytes."""


def fsync_path(path: str | Path) -> None:
    """A file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# Between any two calls to the system another thread may take the interpreter, which costs more than most of the calls: so there are as
# few of them as can be.


def _read(path: str) -> tuple[bytes, float]:
    """The whole file, and when it was last changed. Raises `FileNotFoundError`."""
    handle = os.open(path, os.O_RDONLY)
    try:
        stat = os.fstat(handle)
        data = os.read(handle, stat.st_size + 1)
        while data and len(data) < stat.st_size and (more := os.read(handle, stat.st_size - len(data))):
            data += more
    finally:
        os.close(handle)
    return data, stat.st_mtime


def _write_new(path: str, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(handle, left) :]
    finally:
        os.close(handle)


@dataclass(frozen=True, slots=True)
class Kept:
    """A block that is here."""

    cid: Cid
    size: int
    age: float
    """Seconds since it was written or used, about."""


class DiskBlocks:
    """Safe for calls from several threads. ``bytes`` and ``blocks`` are kept up to date."""

    def __init__(self, folder: Path, *, reserve_bytes: int, synced_memory: int, max_bytes: int = 0, touch_after: float = 60.0) -> None:
        self._root = folder / "blocks"
        self._tmp = folder / "tmp"
        self._bad = folder / "corrupt"
        self._reserve = reserve_bytes
        self._max_bytes = max_bytes
        self._touch_after = touch_after
        self._synced_memory = synced_memory
        self._synced: OrderedDict[str, None] = OrderedDict()
        self._shards: set[str] = set()
        self._shards_made = 0
        self._shards_synced = 0
        """So many of those made are in the root folder on the disk."""
        self._names = itertools.count()
        self._room = 0
        """Bytes that were free above the reserve when that was looked at, less those written since."""
        self._looked = float("-inf")
        self._lock = threading.Lock()
        self.blocks = 0
        self.bytes = 0
        self.corrupt = 0

    def open(self) -> None:
        """Make the folders, remove what a killed process left in ``tmp/``, count what is there."""
        for folder in (self._root, self._tmp, self._bad):
            folder.mkdir(parents=True, exist_ok=True)
        for leftover in (*self._tmp.iterdir(), *self._bad.iterdir()):
            leftover.unlink(missing_ok=True)
        for shard in os.scandir(self._root):
            if shard.is_dir():
                self._shards.add(shard.name)
                sizes = [entry.stat().st_size for entry in os.scandir(shard.path)]
                self.blocks += len(sizes)
                self.bytes += sum(sizes)
        fsync_path(self._root)
        fsync_path(self._root.parent)

    def has(self, cid: Cid) -> bool:
        return self.size(cid) is not None

    def size(self, cid: Cid) -> int | None:
        try:
            return os.stat(self._path(cid)).st_size
        except FileNotFoundError:
            return None

    def get(self, cid: Cid, *, touch: bool = True) -> bytes | None:
        """The verified block. A file that does not hash to its name is moved aside and reported as missing.
        ``touch``: this counts as a use."""
        path = self._path(cid)
        try:
            data, used = _read(path)
        except FileNotFoundError:
            return None
        if cid.matches(data):
            if touch and time.time() - used > self._touch_after:
                self.touch(cid)
            return data
        self._set_aside(cid, path, len(data))
        return None

    def put(self, blocks: Iterable[Block], *, durable: bool) -> None:
        """Blocks whose hashes are known to be right. ``durable``: on the disk when this returns, whoever
        wrote them before. Raises `DiskFull`."""
        blocks = list({block.cid: block for block in blocks}.values())  # many jobs may have one form
        try:
            fresh = [block for block in blocks if not self._same(block)]
            self._check_space(sum(len(block.data) for block in fresh))
            self._write(fresh, durable)
        except OSError as error:
            if error.errno in _FULL:
                raise DiskFull("no space left for blocks") from error
            raise
        if durable:
            written = {block.cid.text for block in fresh}
            self._remember(written)
            self.sync(block.cid for block in blocks if block.cid.text not in written)

    def sync(self, cids: Iterable[Cid]) -> None:
        """Put blocks that are here on the disk. One that is missing raises `FileNotFoundError`."""
        with self._lock:
            todo = {cid.text: cid for cid in cids if cid.text not in self._synced}
        for cid in todo.values():
            fsync_path(self._path(cid))  # works on files as well
        self._fsync_shards(todo.values())
        self._remember(todo)

    def touch(self, cid: Cid) -> None:
        """The block is used now, if it is here."""
        path = self._path(cid)
        try:
            if time.time() - os.stat(path).st_mtime > self._touch_after:
                os.utime(path)
        except OSError:
            return  # gone meanwhile, or a disk that cannot be written: an older time is a hint that is a little wrong

    def shards(self) -> list[str]:
        return sorted(self._shards.copy())

    def inventory(self, shard: str) -> list[Kept]:
        """What is here of one shard. Files with other names than CIDs are somebody else's. Safe while blocks come and go."""
        now = time.time()
        found: list[Kept] = []
        for entry in os.scandir(self._root / shard):
            try:
                cid, stat = cids.parse(entry.name), entry.stat()
            except (BadCid, FileNotFoundError):
                continue
            found.append(Kept(cid, stat.st_size, max(0.0, now - stat.st_mtime)))
        return found

    def remove(self, *removed: Cid) -> int:
        """Blocks that are not here do not matter. Returns the bytes that are free now."""
        freed = 0
        for cid in removed:
            with self._lock:
                size = self.size(cid)
                if size is not None:
                    os.unlink(self._path(cid))
                    self._forget(cid, size)
                    freed += size
        return freed

    def _path(self, cid: Cid) -> str:
        return f"{self._root}/{cid.text[-3:-1]}/{cid.text}"

    def _same(self, block: Block) -> bool:
        """Whether the block is here, whole; one that rotted on the disk is written again."""
        return self.size(block.cid) == len(block.data) and self.get(block.cid) is not None  # which is a use

    def _write(self, blocks: list[Block], durable: bool) -> None:
        for shard in {block.cid.text[-3:-1] for block in blocks} - self._shards:
            (self._root / shard).mkdir(exist_ok=True)
            with self._lock:
                self._shards.add(shard)
                self._shards_made += 1
        if not durable:
            for block in blocks:
                self._publish(block, self._write_temporary(block.data), durable=False)
            return
        temporary: list[tuple[Block, str]] = []
        try:
            for block in blocks:
                temporary.append((block, self._write_temporary(block.data)))  # noqa: PERF401 - those that were made are removed
            for _, path in temporary:
                fsync_path(path)
            while temporary:
                self._publish(*temporary[-1], durable=True)
                temporary.pop()
        finally:
            for _, path in temporary:
                Path(path).unlink(missing_ok=True)
        self._fsync_shards(block.cid for block in blocks)

    def _write_temporary(self, data: bytes) -> str:
        path = f"{self._tmp}/{os.getpid()}-{next(self._names)}"
        try:
            _write_new(path, data)
        except OSError:
            Path(path).unlink(missing_ok=True)
            raise
        return path

    def _publish(self, block: Block, temporary: str, *, durable: bool) -> None:
        with self._lock:
            before = self.size(block.cid)
            if before == len(block.data) and not durable:  # somebody else wrote it meanwhile, and may have made it durable
                os.unlink(temporary)
                return
            os.replace(temporary, self._path(block.cid))
            self._synced.pop(block.cid.text, None)
            self.blocks += before is None
            self.bytes += len(block.data) - (before or 0)

    def _fsync_shards(self, cids: Iterable[Cid]) -> None:
        for shard in {cid.text[-3:-1] for cid in cids}:
            fsync_path(self._root / shard)
        made = self._shards_made
        if self._shards_synced < made:
            fsync_path(self._root)
            with self._lock:
                self._shards_synced = max(self._shards_synced, made)

    def _remember(self, texts: Iterable[str]) -> None:
        with self._lock:
            for text in texts:
                self._synced[text] = None
            while len(self._synced) > self._synced_memory:
                self._synced.popitem(last=False)

    def _set_aside(self, cid: Cid, path: str, size: int) -> None:
        with self._lock:
            if self.size(cid) != size:
                return  # another thread has dealt with it
            os.replace(path, self._bad / cid.text)
            self.corrupt += 1
            self._forget(cid, size)

    def _forget(self, cid: Cid, size: int) -> None:
        self._synced.pop(cid.text, None)
        self.blocks -= 1
        self.bytes -= size

    def _check_space(self, needed: int) -> None:
        if not needed:
            return
        if self._max_bytes and self.bytes + needed > self._max_bytes:
            raise DiskFull("the block store is as large as it may be")
        with self._lock:
            if self._room < needed or time.monotonic() - self._looked > LOOK_AFTER:
                self._room = min(shutil.disk_usage(self._root).free - self._reserve, max(needed, LOOK_AFTER_BYTES))
                self._looked = time.monotonic()
            if self._room < needed:
                raise DiskFull("less space is left on the disk than the block store keeps free")
            self._room -= needed
