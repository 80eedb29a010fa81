"""Tensors between the content store and memory, on the orchestrator's side."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, TypeVar

import trio
from numpy.typing import NDArray

from dimnode.domain.tensors import TensorValue, from_npy, from_numpy, to_npy, to_numpy
from dimnode.errors import DimError, InvalidArgument, ResourceExhausted, Unavailable
from p2p.ipfs.api import BadCid, BlockCorrupt, BlockMissing, ContentError, ContentStore, DiskFull, TooLarge

Array = NDArray[Any]
T = TypeVar("T")


class Compute(Protocol):
    """Runs a function that takes long off the event loop: a thread, or in tests on virtual time in place."""

    async def __call__(self, fn: Callable[..., T], *args: Any) -> T: ...


async def in_thread(fn: Callable[..., T], *args: Any) -> T:
    return await trio.to_thread.run_sync(fn, *args)


class Values:
    """Reads and writes tensors by the inline limit. ``fetch_timeout``: seconds without progress; ``probe_timeout``: the same
    until a value is taken for lost."""

    def __init__(
        self, store: ContentStore, inline_bytes: int, fetch_timeout: float, compute: Compute = in_thread, probe_timeout: float = 2.0
    ) -> None:
        self._compute = compute
        self._store = store
        self._inline = inline_bytes
        self._timeout = fetch_timeout
        self._probe = probe_timeout

    async def read(self, value: TensorValue, job: str, providers: Collection[str] = ()) -> Array:
        """The array of a value, fetched if it is by CID, for the participants of a job. Raises `Unavailable`, `InvalidArgument`."""
        if value.cid is None:
            return to_numpy(value)
        try:
            data = await self._store.private_to(job).get_bytes(value.cid, providers=providers, timeout=self._timeout)
        except (BadCid, TooLarge) as e:
            raise InvalidArgument(f"tensor {value.cid} cannot be used: {e}") from e
        except ContentError as e:
            raise Unavailable(f"tensor {value.cid} cannot be fetched: {e}", hint="The node that has it may be down.") from e
        return await self._compute(from_npy, data)

    async def read_all(self, values: Mapping[str, TensorValue], job: str, providers: Collection[str] = ()) -> dict[str, Array]:
        return {name: await self.read(value, job, providers) for name, value in values.items()}

    async def here(self, values: Mapping[str, TensorValue]) -> bool:
        """Whether nothing of it would have to be fetched, as far as can be told at once."""
        return all([await self._store.has(v.cid) for v in values.values() if v.cid is not None])

    async def gone(self, values: Mapping[str, TensorValue], job: str, providers: Collection[str]) -> str | None:
        """Why these values cannot be had any more: nobody has all of them. None if they can; then they are here."""
        for name, value in values.items():
            if value.cid is None:
                continue
            try:
                await self._store.private_to(job).fetch(value.cid, providers=providers, timeout=self._probe)
            except (BlockMissing, BlockCorrupt) as e:
                return f"{name}: {e}"
        return None

    async def write(self, array: Array, job: str) -> TensorValue:
        """Inline if small, else a durable, pinned block; dtype and shape are kept either way."""
        value = from_numpy(array)
        return await self.settle(value, job)

    async def settle(self, value: TensorValue, job: str) -> TensorValue:
        """An inline value by CID if it is above the limit; others unchanged."""
        if value.raw is None or len(value.raw) <= self._inline:
            return value
        data = await self._compute(lambda: to_npy(to_numpy(value)))
        try:
            cid = await self._store.private_to(job).add_bytes(data, durable=True)
            await self._store.pin(cid, reason="tensor")
        except DiskFull as e:
            raise _disk_full() from e
        return TensorValue(dtype=value.dtype, shape=value.shape, cid=cid)

    async def belong(self, draft: str, job: str) -> None:
        """What was written or fetched for a draft is the job's."""
        try:
            await self._store.rename_audience(draft, job)
        except DiskFull as e:
            raise _disk_full() from e

    async def adopt(self, value: TensorValue, job: str, field: str) -> TensorValue:
        """A client's tensor by CID: fetched, pinned here and completed with dtype and shape."""
        if value.cid is None:
            return value
        try:
            array = await self.read(value, job)
            await self._store.pin(value.cid, reason="job input")
        except DimError as e:
            raise type(e)(f"{field}: {e.message}", hint=e.hint or "Upload it with PutArtifact first.") from e
        except DiskFull as e:
            raise _disk_full() from e
        known = from_numpy(array[:0]) if array.ndim else from_numpy(array)
        return TensorValue(dtype=known.dtype, shape=tuple(array.shape), cid=value.cid)


def _disk_full() -> DimError:
    return ResourceExhausted("the disk of this node is full", hint="Free space, or submit to another node.")
