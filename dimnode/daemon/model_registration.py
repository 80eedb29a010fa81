"""How a model becomes one of this node's: recognised, run once in an agent, stored, pinned, listed; and how it goes.

Nothing is published that did not work: the trial run comes first. What the file does not tell comes from the
author's form (`dimnode.domain.model_form`), what neither tells is asked for by the loader's refusal.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import trio

from dimnode.daemon import model_about, model_formats
from dimnode.daemon.agents import AgentPool, ModelFile, Schema
from dimnode.daemon.model_cache import ModelCache
from dimnode.daemon.model_shelf import ModelShelf
from dimnode.daemon.settings import DaemonSettings
from dimnode.daemon.store_errors import store_errors
from dimnode.domain.model import FORMATS, ModelFormat, ModelManifest
from dimnode.domain.model_form import ModelForm, parse_model_form
from dimnode.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from dimnode.ports import Signer
from loaders.api import ModelRejected
from loaders.archive import ArchiveLimits, pack_folder
from p2p.ipfs.api import ContentStore

Check = Callable[[str, str], None]
MEASURED_STEP = 64 << 20
"""Bytes to a multiple of which measured memory is rounded up."""


class ModelRegistration:
    """``folder``: where folders are packed. Whatever an earlier start left in it is removed by `open`."""

    def __init__(
        self,
        store: ContentStore,
        shelf: ModelShelf,
        cache: ModelCache,
        pool: AgentPool,
        signer: Signer,
        folder: Path,
        settings: DaemonSettings,
    ) -> None:
        self._store, self._shelf, self._cache, self._pool = store, shelf, cache, pool
        self._signer, self._folder, self._settings = signer, folder, settings

    async def open(self) -> None:
        await trio.to_thread.run_sync(_empty, self._folder)

    async def add_file(
        self, path: Path, *, id: str, licence: str, batch_axis: int | None, form: str, sign: bool, check: Check | None
    ) -> tuple[ModelManifest, str]:
        """See `dimnode.ports.TaskService.add_model_file`."""
        said = _merged(parse_model_form(form), id=id, licence=licence, batch_axis=batch_axis)
        name = said.id or path.stem
        self._shelf.check_id(name)
        async with self._one_file(Path(os.path.abspath(path))) as file:  # noqa: ASYNC240 - touches no file
            kind = await trio.to_thread.run_sync(model_formats.recognise, file)
            size = (await trio.to_thread.run_sync(file.stat)).st_size
            self.check_size(size)
            schema = await self._pool.inspect(
                ModelFile(f"file:{file}", kind, file, size, about=_about(said), needs=said.needs), trial=said.trial
            )
            with store_errors("the model"):
                cid, size = await self._store.add_file(file)
        if check is not None:
            check(name, cid)
        return await self._publish(name, cid, kind, size, said, schema, sign)

    async def add_cid(
        self, cid: str, *, id: str, format: str, licence: str, batch_axis: int | None, form: str, providers: Sequence[str]
    ) -> tuple[ModelManifest, str]:
        """See `dimnode.ports.TaskService.add_model_cid`."""
        said = _merged(parse_model_form(form), id=id, licence=licence, batch_axis=batch_axis)
        self._shelf.check_id(said.id, cid)
        takes = [f for f in FORMATS if f != "builtin"]
        if format not in ("", *takes):
            raise InvalidArgument(f"format {format!r} is not known", hint=f"Use one of {', '.join(takes)}.")
        with store_errors("the model"):
            size = await self._store.fetch(cid, providers=providers, timeout=self._settings.fetch_timeout)
        self.check_size(size)
        async with self._cache.use(cid, format or "onnx", size, providers) as path:
            kind = await trio.to_thread.run_sync(model_formats.recognise, path)
            if format and format != kind:
                raise InvalidArgument(f"the artifact is {kind}, not {format}")
            schema = await self._pool.inspect(ModelFile(cid, kind, path, size, about=_about(said), needs=said.needs), trial=said.trial)
        return await self._publish(said.id, cid, kind, size, said, schema, sign=False)

    async def trial(self, file: ModelFile, manifest: ModelManifest) -> Mapping[str, Any]:
        """Loads and runs a model once more. Raises as `AgentPool.inspect`."""
        schema = await self._pool.inspect(file)
        told = {"inputs": list(manifest.inputs), "outputs": list(manifest.outputs)}
        same = told == {"inputs": list(schema.inputs), "outputs": list(schema.outputs)}
        return {"golden": manifest.golden is not None and bool(manifest.golden.outputs), "schema": same, "memory": schema.memory}

    def check_size(self, size: int) -> None:
        most = self._settings.model_bytes
        if size > most:
            raise FailedPrecondition(
                f"the model has {size} bytes and this node takes at most {most}", hint="Raise daemon.model_bytes, or use another node."
            )

    async def _publish(
        self, name: str, cid: str, kind: ModelFormat, size: int, said: ModelForm, schema: Schema, sign: bool
    ) -> tuple[ModelManifest, str]:
        needs = msgspec.structs.replace(said.needs, memory=max(said.needs.memory, _rounded(schema.memory)))
        manifest = ModelManifest(
            id=name, cid=cid, format=kind, inputs=schema.inputs, outputs=schema.outputs, size=size, licence=said.licence,
            batch_axis=said.batch_axis, architecture=said.architecture, golden=said.golden, needs=needs,
            task=schema.task,
        )  # fmt: skip
        if sign:
            manifest = manifest.signed(self._signer.peer_id, self._signer.sign)
        return manifest, await self._shelf.add(manifest)

    @contextlib.asynccontextmanager
    async def _one_file(self, path: Path) -> AsyncGenerator[Path]:
        """The model as one file: itself, or the archive of a folder, for as long as the context lasts."""
        if not await trio.to_thread.run_sync(path.is_dir):
            yield path
            return
        target = self._folder / f"{os.urandom(8).hex()}.part"
        try:
            await trio.to_thread.run_sync(self._pack, path, target)
            yield target
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(lambda: target.unlink(missing_ok=True))

    def _pack(self, folder: Path, target: Path) -> None:
        try:
            pack_folder(folder, target, ArchiveLimits(max_bytes=self._settings.model_bytes))
        except ModelRejected as e:
            raise InvalidArgument(str(e)) from e
        except OSError as e:
            raise ResourceExhausted("the model's folder could not be packed: it cannot be read, or this node's disk is full") from e


def _rounded(measured: int) -> int:
    """Two trial runs of one model should lead to one manifest, though no two take the same memory."""
    return -(-measured // MEASURED_STEP) * MEASURED_STEP


def _empty(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():
        left.unlink()


def _merged(form: ModelForm, *, id: str, licence: str, batch_axis: int | None) -> ModelForm:
    """What is given beside the form wins over it."""
    if batch_axis not in (None, 0):
        raise InvalidArgument("batch_axis must be 0 or left out")
    given = {k: v for k, v in (("id", id), ("licence", licence), ("batch_axis", batch_axis)) if v not in ("", None)}
    return msgspec.structs.replace(form, **given)


def _about(form: ModelForm) -> str:
    return model_about.encode(form.inputs, form.outputs, form.architecture, form.golden)
