"""Model artifacts as files on disk, taken from the content store, bounded in bytes.

One file per model, ``<folder>/<cid><suffix>``. The least recently used go first; a file that a task uses now, or
that is pinned, stays. Requests for one model at the same time share one download, which goes on as long as
anyone waits for it. A file appears under its name only when it is whole: a failed download leaves nothing. What an earlier start
has left is read through before it is first used, and fetched again if it is not what its CID says; the reading goes on if whoever
asked leaves, so that it is done once however short its callers' time is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from dimnode.daemon.file_cid import is_content
from dimnode.daemon.resources import NoRoom
from dimnode.daemon.store_errors import store_errors
from dimnode.errors import DataLoss, DimError, ResourceExhausted, Unavailable, again
from loaders.registry import ENTRIES
from p2p.ipfs.api import ContentStore

PART = ".part"


@dataclass(slots=True)
class _File:
    path: Path
    size: int
    users: int = 0
    whole: bool | None = None
    """Its content is what its CID says; None: nobody has looked since the start."""
    leaving: bool = False
    """Its model was removed: it goes with its last user."""
    looked: trio.Event | None = None
    """Set when a look at its content has ended; None: none has begun."""


@dataclass(slots=True)
class _Download:
    size: int
    waiting: int = 0
    leaving: bool = False
    done: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    error: DimError | None = None


class ModelCache:
    """``admit(bytes)`` says why the disk has no room for so many more bytes, or None. ``pinned(cid)``: the file stays.
    ``whole(path, cid)`` reads a file through, in a thread."""

    def __init__(
        self,
        store: ContentStore,
        folder: Path,
        *,
        max_bytes: int,
        fetch_timeout: float,
        admit: Callable[[int], str | None] = lambda size: None,
        pinned: Callable[[str], bool] = lambda cid: False,
        whole: Callable[[Path, str], bool] = is_content,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._folder = folder
        self._max_bytes = max_bytes
        self._timeout = fetch_timeout
        self._admit, self._pinned, self._whole = admit, pinned, whole
        self._on_change = on_change
        self._files: dict[str, _File] = {}  # least recently used first
        self._downloads: dict[str, _Download] = {}
        self._moving = trio.Lock()
        """Held while files get or lose their names."""
        self._nursery: trio.Nursery | None = None
        self._hits = self._misses = self._evicted = self._failed = 0

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Downloads and looks live in here."""
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
        file = await self._present(cid)
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
            await self._leave(cid, file)

    async def _present(self, cid: str) -> _File | None:
        """The file, if it is here and what it should be."""
        file = self._files.get(cid)
        if file is not None:
            file.leaving = False  # it is wanted again
        if file is None or file.whole:
            return file
        file.users += 1
        try:
            await self._looked(cid, file).wait()
        except trio.Cancelled:
            await self._leave(cid, file)
            raise
        file.users -= 1
        if file.whole is None:
            raise _stopping()
        return self._files.get(cid)

    def _looked(self, cid: str, file: _File) -> trio.Event:
        if file.looked is None:
            file.looked = trio.Event()
            if self._nursery is None:
                file.looked.set()
            else:
                file.users += 1
                self._nursery.start_soon(self._look, cid, file, file.looked)
        return file.looked

    async def _look(self, cid: str, file: _File, looked: trio.Event) -> None:
        """Counts as a user, or the file might be evicted meanwhile."""
        try:
            # only the end of the node cancels this
            file.whole = await trio.to_thread.run_sync(self._whole, file.path, cid, abandon_on_cancel=True)
            if not file.whole:
                self._failed += 1
                await self._remove(cid, file)
        finally:
            looked.set()
            await self._leave(cid, file)

    async def _leave(self, cid: str, file: _File) -> None:
        """One user less. Never cancelled."""
        file.users -= 1
        if file.leaving and not file.users:
            await self._remove(cid, file)

    async def drop(self, cid: str) -> None:
        """Removes the file of a model that was removed; one that is in use, or on its way, goes with its last user."""
        if cid in self._downloads:
            self._downloads[cid].leaving = True
        file = self._files.get(cid)
        if file is not None and file.users:
            file.leaving = True
        elif file is not None:
            await self._remove(cid, file)

    async def _remove(self, cid: str, file: _File) -> None:
        """Never cancelled: what is not counted any more must not stay on the disk."""
        if self._files.get(cid) is file:
            del self._files[cid]
        with trio.CancelScope(shield=True):
            async with self._moving:
                if cid not in self._files:  # or it has come again, under the same name
                    await trio.to_thread.run_sync(_unlink, file.path)
        self._on_change()

    def cids(self) -> tuple[str, ...]:
        return tuple(cid for cid, file in self._files.items() if not file.leaving)

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
                raise _stopping()
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
                async with self._moving:
                    await trio.to_thread.run_sync(os.replace, part, path)
                    whole = True
                    self._files[cid] = _File(path, got, whole=True, leaving=download.leaving)
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
        """Evicts what is needed for the new file to fit, and nothing if it cannot. Raises `ResourceExhausted`."""
        if download.size > self._max_bytes:
            raise ResourceExhausted("the model is larger than this node's model cache", hint="Raise the cache's limit or use another node.")
        # all at once, so that nobody begins to use one of them; and none is left behind, as `_remove` is never cancelled
        gone = {cid: self._files.pop(cid) for cid in self._to_evict(download.size)}
        for cid, file in gone.items():
            self._evicted += 1
            await self._remove(cid, file)

    def _to_evict(self, size: int) -> list[str]:
        """Least recently used first. Raises `NoRoom` if all that may go is not enough."""
        over = self._bytes() - self._max_bytes  # the new one is counted already
        idle = iter([cid for cid, f in self._files.items() if not f.users and not self._pinned(cid)])
        chosen: list[str] = []
        freed = 0
        while (reason := self._no_room(over - freed, size - freed)) is not None:
            cid = next(idle, None)
            if cid is None:
                raise NoRoom(f"the model cannot be stored: {reason}", hint="Try another node, or later.", retry_after=1.0)
            chosen.append(cid)
            freed += self._files[cid].size
        return chosen

    def _no_room(self, over: int, size: int) -> str | None:
        return "the node's model cache is full of models in use" if over > 0 else self._admit(size)


def _stopping() -> Unavailable:
    return Unavailable("the node is stopping")


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
