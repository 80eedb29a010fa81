"""The models that this node knows: its own, the built-in ones, and those it has fetched for others."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec
import trio

from dimnode.daemon.files import write_atomically
from dimnode.daemon.model_file import Said
from dimnode.daemon.store_errors import store_errors
from dimnode.domain import codec
from dimnode.domain.model import ModelManifest, ModelRef, TensorSpec
from dimnode.errors import AlreadyExists, DataLoss, FailedPrecondition, FieldProblem, InvalidArgument, NotFound
from loaders.api import TensorSchema
from loaders.builtin_catalog import BUILTIN_SCHEMAS, descriptor
from p2p.identity import verify as verify_with_peer_id
from p2p.ipfs.api import ContentStore

FILE = "models.json"
Verify = Callable[[str, bytes, bytes], bool]
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+\-]{0,127}", re.ASCII)


class _Shelf(msgspec.Struct, frozen=True, kw_only=True):
    own: dict[str, ModelRef] = {}
    fetched: dict[str, ModelRef] = {}
    """By CID."""


class ModelShelf:
    """``verify(peer id, data, signature)`` checks the signatures of authors."""

    def __init__(
        self, store: ContentStore, folder: Path, *, fetch_timeout: float, remember: int, verify: Verify = verify_with_peer_id
    ) -> None:
        self._store = store
        self._file = folder / FILE
        self._builtin_folder = folder / "builtin"
        self._timeout = fetch_timeout
        self._remember = remember
        self._verify = verify
        self._own: dict[str, ModelRef] = {}
        """By id: one artifact may have several."""
        self._fetched: dict[str, ModelRef] = {}
        self._builtin: dict[str, ModelRef] = {}
        self._paths: dict[str, Path] = {}
        self._manifests: dict[str, ModelManifest] = {}
        self._said: dict[str, Said] = {}
        """Of those manifests."""
        self._lock = trio.Lock()

    async def open(self) -> None:
        """Reads what was known before and puts the built-in steps in place."""
        if await trio.to_thread.run_sync(self._file.exists):
            data = await trio.to_thread.run_sync(self._file.read_bytes)
            shelf = msgspec.json.decode(data, type=_Shelf)
            self._own, self._fetched = {r.id: r for r in shelf.own.values()}, dict(shelf.fetched)
        for name in BUILTIN_SCHEMAS:
            await self._add_builtin(name)

    async def _add_builtin(self, name: str) -> None:
        artifact, schema = descriptor(name), BUILTIN_SCHEMAS[name]
        cid = await self._store.put_dag_bytes(artifact, durable=False)
        manifest = ModelManifest(
            id=name, cid=cid, format="builtin", inputs=_specs(schema.inputs), outputs=_specs(schema.outputs), size=len(artifact), licence="Apache-2.0"
        )  # fmt: skip
        self._builtin[cid] = await self._shelve(manifest, durable=False)
        self._paths[cid] = self._builtin_folder / f"{cid}.builtin"

        def write() -> None:
            self._builtin_folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._paths[cid], artifact)

        await trio.to_thread.run_sync(write)

    def builtin_path(self, cid: str) -> Path | None:
        return self._paths.get(cid)

    def refs(self, cached: Collection[str], is_warm: Callable[[str], bool]) -> tuple[ModelRef, ...]:
        """Everything that this node could run without fetching."""
        kept = [*self._own.values(), *self._builtin.values()]
        cids = {r.cid for r in kept}
        here = [*(self._fetched[cid] for cid in cached if cid in self._fetched and cid not in cids), *kept]
        return tuple(msgspec.structs.replace(r, warm=is_warm(r.cid)) for r in here)

    async def manifest(self, manifest_cid: str, providers: Collection[str], expect: str) -> ModelManifest:
        """From memory, the store or other nodes. ``expect``: the CID of the model that it must describe.
        Raises `Unavailable`, `DataLoss`, `InvalidArgument`."""
        found = self._manifests.get(manifest_cid)
        if found is None:
            with store_errors("the model's manifest"):
                plain = await self._store.get_dag(manifest_cid, providers=providers, timeout=self._timeout)
            try:
                found = msgspec.convert(plain, ModelManifest)
            except msgspec.ValidationError as e:
                raise DataLoss("the model's manifest is malformed") from e
            if not found.authentic(self._verify):
                raise DataLoss("the model's manifest is not by the author that it names")
            self._keep(manifest_cid, found)
        if found.cid != expect:
            raise InvalidArgument("the manifest describes another model than the order names")
        return found

    def known(self, manifest_cid: str) -> ModelManifest | None:
        """The manifest, if this node has it at hand."""
        return self._manifests.get(manifest_cid)

    def said(self, manifest_cid: str, manifest: ModelManifest) -> Said:
        """What this manifest, of that CID, says of its model."""
        found = self._said.get(manifest_cid)
        if found is None:
            found = Said.by(manifest)
            if manifest_cid in self._manifests:
                self._said[manifest_cid] = found
        return found

    async def fetched(self, manifest: ModelManifest, manifest_cid: str) -> None:
        """A model has come from elsewhere: it is listed as long as the cache has it."""
        own = any(r.cid == manifest.cid for r in self._own.values())
        if own or manifest.cid in self._builtin or manifest.cid in self._fetched:
            return
        self._fetched[manifest.cid] = _ref(manifest, manifest_cid)
        while len(self._fetched) > self._remember:
            del self._fetched[next(iter(self._fetched))]
        # on a full disk the model is forgotten at the next start, which is no reason to fail the task
        with contextlib.suppress(OSError):
            await self._write()

    def check_id(self, id: str, cid: str | None = None) -> None:
        """Raises `InvalidArgument`, `AlreadyExists` if the id names another model of this node."""
        if not _ID.fullmatch(id):
            rule = "must be letters, digits or . _ @ + -, at most 128, the first a letter or digit"
            raise InvalidArgument(f"id {rule}", fields=(FieldProblem("id", rule),))
        for other in (*self._own.values(), *self._builtin.values()):
            if cid is not None and other.id == id and other.cid != cid:
                raise AlreadyExists(f"this node already has a model {id!r} with other content", hint="Choose another id.")

    async def add(self, manifest: ModelManifest) -> str:
        """Stores and pins artifact and manifest; returns the manifest's CID."""
        self.check_id(manifest.id, manifest.cid)
        ref = await self._shelve(manifest, durable=True)
        with store_errors("the model"):
            await self._store.pin(manifest.cid, reason=f"model {manifest.id}")
            await self._store.pin(ref.manifest_cid, reason=f"manifest of model {manifest.id}")
        self._own[manifest.id] = ref
        await self._write()
        return ref.manifest_cid

    def names(self, cid: str) -> frozenset[str]:
        """What a model is called here: its ids and its CID."""
        return frozenset((cid, *(r.id for r in (*self._own.values(), *self._fetched.values()) if r.cid == cid)))

    def owns(self, cid: str) -> bool:
        return any(r.cid == cid for r in self._own.values())

    async def remove(self, name: str) -> tuple[ModelRef, ...]:
        """Forgets what is here under an id or CID; unpins what no other id needs. Raises `NotFound`,
        `FailedPrecondition` for a built-in step."""
        if any(name in (r.id, r.cid) for r in self._builtin.values()):
            raise FailedPrecondition("a built-in step is part of DIM and cannot be removed")
        own = [r for r in self._own.values() if name in (r.id, r.cid)]
        fetched = [r for r in self._fetched.values() if name in (r.id, r.cid)]
        if not own and not fetched:
            raise NotFound(f"this node has no model {name!r}", hint="`dimnode model list` tells which nodes have it.")
        for ref in own:
            del self._own[ref.id]
        for ref in fetched:
            del self._fetched[ref.cid]
        await self._write()
        kept = {c for r in self._own.values() for c in (r.cid, r.manifest_cid)}
        with store_errors("the model"):
            for cid in sorted({c for r in own for c in (r.cid, r.manifest_cid)} - kept):
                await self._store.unpin(cid)
        return tuple({r.cid: r for r in (*own, *fetched)}.values())

    async def _shelve(self, manifest: ModelManifest, *, durable: bool) -> ModelRef:
        with store_errors("the model's manifest"):
            manifest_cid = await self._store.put_dag_bytes(codec.encode(manifest), durable=durable)
        self._keep(manifest_cid, manifest)
        return _ref(manifest, manifest_cid)

    def _keep(self, manifest_cid: str, manifest: ModelManifest) -> None:
        while len(self._manifests) >= self._remember:
            oldest = next(iter(self._manifests))
            del self._manifests[oldest]
            self._said.pop(oldest, None)
        self._manifests[manifest_cid] = manifest

    async def _write(self) -> None:
        async with self._lock:
            data = msgspec.json.encode(_Shelf(own=self._own, fetched=self._fetched))
            await trio.to_thread.run_sync(write_atomically, self._file, data)


def _ref(manifest: ModelManifest, manifest_cid: str) -> ModelRef:
    return ModelRef(id=manifest.id, cid=manifest.cid, manifest_cid=manifest_cid, format=manifest.format, size=manifest.size)


def _specs(tensors: tuple[TensorSchema, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=t.name, dtype=t.dtype, shape=t.shape) for t in tensors)
