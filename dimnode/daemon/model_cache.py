"""Model artifacts as files on disk, taken from the content store, bounded in bytes.

One file per model, ``<folder>/<cid><suffix>``. The least recently used go first; a file that a task uses now, or
that is pinned, stays. Requests for one model at the same time share one download, which goes on as long as
anyone waits for it. A file appears under its name only when it is whole: a failed download leaves nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from dimnode.daemon.resources import NoRoom
from dimnode.daemon.store_errors import store_errors
from dimnode.daemon.together import again
from dimnode.errors import DataLoss, DimError, ResourceExhausted, Unavailable
from loaders.registry import ENTRIES
from p2p.ipfs.api import ContentStore

PART = ".part"


@dataclass(slots=True)
class _File:
    path: Path
    size: int
    users: int = 0
    pinned: bool = False


@dataclass(slots=True)
class _Download:
    size: int
    waiting: int = 0
    done: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    error: DimError | None = None


class ModelCache:
    """``admit(bytes)`` says why the disk has no room for so many more bytes, or None."""

    def __init__(
        self,
        store: ContentStore,
        folder: Path,
        *,
        max_bytes: int,
        fetch_timeout: float,
        admit: Callable[[int], str | None] = lambda size: None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._folder = folder
        self._max_bytes = max_bytes
        self._timeout = fetch_timeout
        self._admit = admit
        self._on_change = on_change
        self._files: dict[str, _File] = {}  # least recently used first
        self._downloads: dict[str, _Download] = {}
        self._nursery: trio.Nursery | None = None
        self._hits = self._misses = self._evicted = self._failed = 0

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Downloads live in here."""
        self._files = await trio.to_thread.run_sync(_scan, self._folder)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    @contextlib.asynccontextmanager
    async def use(self, cid: str, format: str, size: int, providers: Collection[str]) -> AsyncGenerator[Path]:
        """The file of a model; it is there until the context ends. ``size``: bytes, as the manifest says.

        Raises `Unavailable` (nobody has it), `DataLoss` (not what the manifest says), `ResourceExhausted`.
        """
        file = self._files.get(cid)
        if file is None:
            self._misses += 1
            while file is None:  # a new file may have been evicted again before we got to it
                await self._fetch(cid, format, size, providers)
                file = self._files.get(cid)
        else:
            self._hits += 1
            self._files[cid] = self._files.pop(cid)
        if file.size != size:
            raise DataLoss("the model's file has another size than its manifest says")
        file.users += 1
        try:
            yield file.path
        finally:
            file.users -= 1

    def pin(self, cid: str) -> None:
        """Keep this file; it must be here."""
        self._files[cid].pinned = True

    async def drop(self, cid: str) -> None:
        """Removes the file of a model that was removed; one that is in use goes when its turn comes."""
        file = self._files.get(cid)
        if file is not None and not file.users:
            del self._files[cid]
            await trio.to_thread.run_sync(_unlink, file.path)

    def cids(self) -> tuple[str, ...]:
        return tuple(self._files)

    def statistics(self) -> dict[str, Any]:
        return {
            "files": len(self._files),
            "bytes": self._bytes(),
            "limit": self._max_bytes,
            "downloading": len(self._downloads),
            "hits": self._hits,
            "misses": self._misses,
            "evicted": self._evicted,
            "failed": self._failed,
        }

    def _bytes(self) -> int:
        return sum(f.size for f in self._files.values()) + sum(d.size for d in self._downloads.values())

    async def _fetch(self, cid: str, format: str, size: int, providers: Collection[str]) -> None:
        download = self._downloads.get(cid)
        if download is None:
            if self._nursery is None:
                raise Unavailable("the node is stopping")
            download = self._downloads[cid] = _Download(size)
            self._nursery.start_soon(self._download, download, cid, format, tuple(providers))
        download.waiting += 1
        try:
            await download.done.wait()
        finally:
            download.waiting -= 1
            if not download.waiting and not download.done.is_set():
                download.scope.cancel()
                # whoever comes next starts anew
                self._forget(cid, download)
        if download.error is not None:
            raise again(download.error)

    async def _download(self, download: _Download, cid: str, format: str, providers: tuple[str, ...]) -> None:
        path = self._folder / f"{cid}{ENTRIES[format].suffix}"
        part = path.with_name(f"{path.name}.{id(download):x}{PART}")
        whole = False
        try:
            with download.scope:
                await self._make_room(download)
                with store_errors("the model"):
                    got = await self._store.export_file(cid, part, providers=providers, timeout=self._timeout, max_bytes=download.size)
                if got != download.size:
                    raise DataLoss(f"the model has {got} bytes, its manifest says {download.size}")
                await trio.to_thread.run_sync(os.replace, part, path)
                whole = True
                self._files[cid] = _File(path, got)
        except DimError as e:
            self._failed += 1
            download.error = e
        except OSError:
            self._failed += 1
            download.error = ResourceExhausted("the model could not be stored on this node's disk", hint="Use another node.")
        finally:
            if download.error is None and not whole:
                download.error = Unavailable("the download was given up")
            if not whole:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(_unlink, part)
            self._forget(cid, download)
            download.done.set()
        self._on_change()

    def _forget(self, cid: str, download: _Download) -> None:
        if self._downloads.get(cid) is download:
            del self._downloads[cid]

    async def _make_room(self, download: _Download) -> None:
        """Evicts until the new file fits. Raises `ResourceExhausted`."""
        if download.size > self._max_bytes:
            raise ResourceExhausted("the model is larger than this node's model cache", hint="Raise the cache's limit or use another node.")
        gone: list[Path] = []
        for cid in [cid for cid, f in self._files.items() if not f.users and not f.pinned]:
            if self._bytes() <= self._max_bytes:
                break
            gone.append(self._files.pop(cid).path)
        for path in gone:
            self._evicted += 1
            await trio.to_thread.run_sync(_unlink, path)
        if self._bytes() > self._max_bytes:
            raise NoRoom("the node's model cache is full of models in use", hint="Try another node, or later.", retry_after=1.0)
        reason = self._admit(download.size)
        if reason is not None:
            raise NoRoom(f"the model cannot be stored: {reason}", hint="Try another node, or later.")


def _unlink(path: Path) -> None:
    """What cannot be removed now is found again at the next start."""
    with contextlib.suppress(OSError):
        path.unlink()


def _scan(folder: Path) -> dict[str, _File]:
    """Files from an earlier start, least recently written first; leftovers are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    suffixes = {e.suffix for e in ENTRIES.values()}
    found: list[tuple[float, str, _File]] = []
    for path in folder.iterdir():
        if path.suffix not in suffixes:
            path.unlink()
            continue
        stat = path.stat()
        found.append((stat.st_mtime, path.stem, _File(path, stat.st_size)))
    return {cid: file for _, cid, file in sorted(found, key=lambda f: f[:2])}
