"""What the node does with its content store for its operator: `dimnode.ports.ContentApi`."""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import trio

from dimnode.core.participants import READER
from dimnode.errors import InvalidArgument, NotFound, ResourceExhausted
from dimnode.swarm.views import content_error
from p2p.ipfs.api import BadCid, Collected, ContentError, ContentStore, Pin
from p2p.ipfs.cid import DAG_CBOR, parse
from p2p.ipfs.dagjson import from_cbor
from p2p.ipfs.export import read_pieces, write_whole

OPERATOR = "operator"
"""What the reasons of such pins begin with."""
PIECE = 1 << 20


class StoreDesk:
    """``collect`` removes what nobody needs; ``fetch_timeout``: seconds without progress."""

    def __init__(self, store: ContentStore, collect: Callable[[], Awaitable[Collected]], fetch_timeout: float) -> None:
        self._store = store
        self._collect = collect
        self._timeout = fetch_timeout

    async def add(self, path: str, *, pin: bool, reason: str) -> Mapping[str, Any]:
        with told("the file"):
            cid, size = await self._store.add_file(Path(path))
            if pin:
                await self._store.pin(cid, reason=_reason(reason))
        return {"cid": cid, "size": size, "pinned": pin}

    async def get(self, cid: str, path: str) -> Mapping[str, Any]:
        """A file as it is; DAG-CBOR (forms, results, receipts) as DAG-JSON, as Kubo's `dag get` shows it."""
        store = self._store.private_to(READER)
        with told(cid):
            if parse(cid).codec != DAG_CBOR:
                return {"cid": cid, "size": await store.export_file(cid, Path(path), timeout=self._timeout), "format": "file"}
            data = await store.get_dag_bytes(cid, timeout=self._timeout)
            text = await trio.to_thread.run_sync(from_cbor, data)
            return {"cid": cid, "size": await write_whole(Path(path), _pieces(text + b"\n")), "format": "dag-json"}

    async def pin(self, cid: str, *, direct: bool, reason: str) -> Mapping[str, Any]:
        """A recursive pin makes the content everybody's. What is not here is fetched first; of a direct pin the whole DAG as well, since peers are asked for files."""
        with told(cid):
            if not (direct and await self._store.has(cid)):
                await self._store.private_to(READER).fetch(cid, timeout=self._timeout)
            await self._store.pin(cid, reason=_reason(reason), recursive=not direct)
            if not direct:
                await self._store.open_to_all(cid)
            return _pin_document(cid, (await self._store.list_pins())[cid])

    async def unpin(self, cid: str) -> Mapping[str, Any]:
        with told(cid):
            pin = (await self._store.list_pins()).get(cid)
            if pin is None:
                raise NotFound(f"{cid} is not pinned", hint="`dimnode ipfs pins` lists the pins.")
            await self._store.unpin(cid)
        return _pin_document(cid, pin)

    async def pins(self) -> Mapping[str, Any]:
        return {"pins": [_pin_document(cid, pin) for cid, pin in sorted((await self._store.list_pins()).items())]}

    async def collect(self) -> Mapping[str, Any]:
        with told("garbage"):
            return asdict(await self._collect())

    async def export_archive(self, cids: Sequence[str], path: str) -> Mapping[str, Any]:
        if not cids:
            raise InvalidArgument("an archive has at least one root")
        with told(", ".join(cids)):
            async with aclosing(self._store.private_to(READER).export_car(cids, timeout=self._timeout)) as pieces:
                size = await write_whole(Path(path), pieces)
        return {"roots": list(cids), "size": size}

    async def import_archive(self, path: str, *, pin: bool, reason: str) -> Mapping[str, Any]:
        with told("the archive"):
            async with aclosing(read_pieces(Path(path), PIECE)) as pieces:
                found = await self._store.import_car(pieces)
            for root in found.roots if pin else ():
                await self._store.pin(root, reason=_reason(reason))
        return {"roots": list(found.roots), "blocks": found.blocks, "bytes": found.bytes, "pinned": pin}

    async def statistics(self) -> Mapping[str, Any]:
        return {"backend": self._store.backend, "ok": await self._store.ok(), **asdict(self._store.statistics())}


async def _pieces(data: bytes) -> AsyncGenerator[bytes, None]:
    await trio.lowlevel.checkpoint()
    yield data


def _reason(text: str) -> str:
    return f"{OPERATOR}: {text}" if text else OPERATOR


def _pin_document(cid: str, pin: Pin) -> dict[str, Any]:
    return {"cid": cid, "kind": "recursive" if pin.recursive else "direct", "reason": pin.reason, "since": pin.at or None}


@contextmanager
def told(what: str) -> Generator[None]:
    """Failures of the store, and of the files that the operator named, in the words of the error tree."""
    try:
        yield
    except BadCid as e:
        raise InvalidArgument(
            f"{what!r} cannot be used here: {e}", hint="A CID here is version 1, in base32: of a file, or of DAG-CBOR."
        ) from e
    except ContentError as e:
        raise content_error(what, e) from e
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as e:
        raise InvalidArgument("the file at the given place cannot be opened", hint="The node opens it, with its own rights.") from e
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceExhausted("the disk is full") from e
        raise InvalidArgument("the file at the given place cannot be read or written") from e
