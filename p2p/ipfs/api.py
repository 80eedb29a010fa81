"""The content store: everything large or lasting, by CID.

CIDs are those of Kubo (``ipfs add --cid-version=1 --raw-leaves --chunker=size-262144``, ``ipfs dag put``).
Backends: embedded (`p2p.ipfs.embedded`), kubo (`p2p.ipfs.kubo.store`), memory (`p2p.ipfs.memory`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

CHUNK = 262_144


class ContentError(Exception):
    """Base of what can go wrong with content."""


class BlockMissing(ContentError):
    """No provider had the block in time."""


class BlockCorrupt(ContentError):
    """Bytes do not hash to their CID. Never stored, never returned."""


class BadCid(ContentError):
    """Not a CID that DIM can use (CIDv1, sha2-256, raw / dag-pb / dag-cbor)."""


class TooLarge(ContentError):
    """Content is larger than the caller allows."""


class BadCar(ContentError):
    """Not a sound CAR archive, version 1, of blocks that DIM can use."""


class DiskFull(ContentError):
    """The block store cannot write."""


class StoreUnavailable(ContentError):
    """The backend does not answer, or answers with a failure of its own; it may be tried again later."""


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    blocks: int
    bytes: int
    pins: int
    fetched_blocks: int
    fetched_bytes: int
    served_blocks: int
    served_bytes: int
    refused_blocks: int
    """Unsolicited or corrupt blocks that were offered."""
    withheld_blocks: int = 0
    """Blocks that peers asked for and that are not for them."""
    max_bytes: int = 0
    """The store's bound; 0: none but the disk's."""
    collected_blocks: int = 0
    collected_bytes: int = 0
    """Removed by garbage collections since the start."""


@dataclass(frozen=True, slots=True)
class StoreHealth:
    ok: bool
    backlog: int = 0
    """Blocks and pins that wait to be handed over to the backend."""
    problem: str = ""
    """Why it is not ok, in words without paths or addresses."""


@dataclass(frozen=True, slots=True)
class Pin:
    """Why content stays."""

    reason: str
    recursive: bool = True
    """The whole DAG, or only its root block."""
    at: float = 0.0
    """Wall clock of this node when it was pinned last; 0: before that was written down."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What a garbage collection did."""

    blocks: int
    """Removed."""
    bytes: int
    needed: int
    """Blocks that are here and that pins or the caller need."""
    recent: int
    """Blocks that nobody needs and that stay for now, since they were written or used a moment ago."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What an archive had."""

    roots: tuple[str, ...]
    blocks: int
    bytes: int


class ContentStore(Protocol):
    backend: str

    async def ok(self) -> bool:
        """Whether the backend can be used now."""
        ...

    def health(self) -> StoreHealth:
        """The same as far as known, without asking anybody."""
        ...

    def private_to(self, audience: str) -> ContentStore:
        """The same store; but what is written or fetched through it is for this audience (a job, say) and given to its members
        only. What is here for everybody stays so."""
        ...

    async def open_to_all(self, cid: str) -> None:
        """A whole DAG that is here is everybody's from now on. Raises `BlockMissing`."""
        ...

    async def rename_audience(self, old: str, new: str) -> None: ...

    async def forget_audiences(self, names: Collection[str]) -> None:
        """These need their blocks no more. A block that was for these alone stays as closed as it was, until it is removed."""
        ...

    async def has(self, cid: str) -> bool:
        """Whether the block (not what it links to) is here."""
        ...

    async def put_dag(self, value: Any, *, durable: bool = True) -> str:
        """Store plain values as one DAG-CBOR block. ``durable``: fsynced before it returns."""
        ...

    async def put_dag_bytes(self, data: bytes, *, durable: bool = True) -> str:
        """The same for bytes that already are canonical DAG-CBOR."""
        ...

    async def put_lacking(self, blocks: Sequence[bytes]) -> int:
        """Blocks of canonical DAG-CBOR that can be made again: those that are not here are written together, not fsynced; the others are
        for this store's audience as well, if it has one. Returns how many were not here. Raises `ValueError`, `TooLarge` if one
        of these is no block, and writes none then; `DiskFull`."""
        ...

    async def get_dag_bytes(self, cid: str, *, providers: Collection[str] = (), timeout: float = 30.0) -> bytes:
        """The DAG-CBOR block as it is, from here or from peers."""
        ...

    async def get_dag(self, cid: str, *, providers: Collection[str] = (), timeout: float = 30.0) -> Any: ...

    async def add_bytes(self, data: bytes, *, durable: bool = True) -> str:
        """Store as a UnixFS file; returns the root CID."""
        ...

    async def add_stream(self, chunks: AsyncIterator[bytes], *, max_bytes: int | None = None) -> tuple[str, int]:
        """The same from pieces of any length; returns (root CID, size). Raises `TooLarge`, `DiskFull`."""
        ...

    async def add_file(self, path: Path) -> tuple[str, int]: ...

    async def get_bytes(self, cid: str, *, providers: Collection[str] = (), timeout: float = 30.0, max_bytes: int = 1 << 30) -> bytes:
        """A whole UnixFS file or raw block, from here or from peers; what is fetched is kept. ``timeout``
        is seconds without progress. Raises `BlockMissing`, `BlockCorrupt`, `TooLarge`, `BadCid`."""
        ...

    def iterate(self, cid: str, *, providers: Collection[str] = (), timeout: float = 30.0) -> AsyncGenerator[bytes, None]:
        """The file in order, chunk by chunk, in bounded memory."""
        ...

    async def export_file(
        self, cid: str, path: Path, *, providers: Collection[str] = (), timeout: float = 30.0, max_bytes: int | None = None
    ) -> int:
        """Write the file to ``path`` (atomically: a temporary file, fsync, rename); returns its size."""
        ...

    async def fetch(self, cid: str, *, providers: Collection[str] = (), timeout: float = 30.0) -> int:
        """Make the whole DAG local; returns its content size in bytes."""
        ...

    def export_car(self, roots: Sequence[str], *, providers: Collection[str] = (), timeout: float = 30.0) -> AsyncGenerator[bytes, None]:
        """A CAR archive, version 1, of whole DAGs; each block once, parents before children."""
        ...

    async def import_car(self, chunks: AsyncIterator[bytes], *, max_bytes: int | None = None) -> Imported:
        """Store the blocks of an archive, each checked, durably. Nothing is pinned. Raises `BadCar`, `TooLarge`, `DiskFull`; blocks
        that were sound until then stay until the next garbage collection."""
        ...

    async def pin(self, cid: str, *, reason: str = "", recursive: bool = True) -> None:
        """Durable when it returns; what is pinned must be local: the whole DAG, or without ``recursive`` the block."""
        ...

    async def unpin(self, cid: str) -> None: ...

    async def pins(self) -> dict[str, str]:
        """Reasons by CID."""
        ...

    async def pinned_for(self, cid: str) -> str | None:
        """The reason of its pin; None if it has none."""
        ...

    async def list_pins(self) -> dict[str, Pin]: ...

    async def collect(self, needed: AsyncIterator[str], *, down_to: int = 0, grace: float | None = None) -> Collected:
        """Remove blocks that neither a pin nor ``needed`` (roots of DAGs; what of them is not here does not matter)
        reaches, those that were used longest ago first, until ``down_to`` bytes are left. Blocks in use now, or
        written or used within ``grace`` seconds (default: the store's), stay. One collection at a time."""
        ...

    def statistics(self) -> StoreStatistics: ...
