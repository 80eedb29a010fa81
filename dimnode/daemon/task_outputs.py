"""From an agent's outputs to what leaves the node: reduced, renamed, small ones inline, large ones by CID."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import trio

from dimnode.daemon import text_tensors
from dimnode.daemon.store_errors import store_errors
from dimnode.daemon.task_inputs import THREAD_BYTES, Array
from dimnode.domain import tensors
from dimnode.domain.model import ModelManifest
from dimnode.domain.task import TaskOrder
from dimnode.domain.tensors import TensorValue
from dimnode.errors import Code, DimError, InvalidArgument, ResourceExhausted
from p2p.ipfs.api import ContentStore
from patterns.api import PatternError
from patterns.reduce import reduce_outputs

MOST_NPY = 1 << 30
"""Bytes of one output of text by CID."""


async def leave(
    order: TaskOrder, manifest: ModelManifest, outputs: dict[str, Array], rows: int, store: ContentStore, inline_bytes: int
) -> dict[str, TensorValue]:
    """Values by the names that the order wants. Raises `InvalidArgument`, `ResourceExhausted`."""
    if _heavy(outputs.values()):
        final = await trio.to_thread.run_sync(shape, order, manifest, outputs, rows)
    else:
        final = shape(order, manifest, outputs, rows)
    left = inline_bytes
    values: dict[str, TensorValue] = {}
    for name, array in final.items():
        inline = await _encoded(array) if least_bytes(array, left) <= left else None
        if inline is not None and inline.nbytes <= left:
            values[name] = inline
            left -= inline.nbytes
        else:
            values[name] = await _by_cid(array, store, order.job)
    return values


def _heavy(arrays: Collection[Array]) -> bool:
    return text_tensors.large(arrays) or sum(a.nbytes for a in arrays) > THREAD_BYTES


async def _encoded(array: Array) -> TensorValue:
    return await trio.to_thread.run_sync(tensors.from_numpy, array) if _heavy([array]) else tensors.from_numpy(array)


def least_bytes(array: Array, most: int) -> int:
    """What the array needs inline at the least. Text is measured encoded, which is not done, nor counted on, once it is beyond ``most``."""
    if not text_tensors.is_text(array):
        return array.nbytes
    needed = array.size * len('"",')
    return needed if needed > most else needed + sum(map(len, array.ravel().tolist()))


def shape(order: TaskOrder, manifest: ModelManifest, outputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
    """Reduced as the order says, then renamed. Raises `InvalidArgument` or what the pattern says."""
    try:
        reduced = reduce_outputs(outputs, rows, manifest.batched_outputs(), order.reduce, order.vote_output)
    except PatternError as e:
        raise DimError(e.message, hint=e.hint, code=Code(e.code)) from e
    unknown = [n for n in order.rename_outputs if n not in outputs]
    if unknown:
        raise InvalidArgument(f"the model has no output {unknown[0]!r} to rename", hint=f"Its outputs: {', '.join(outputs)}.")
    renamed = {order.rename_outputs.get(name, name): array for name, array in reduced.items()}
    if len(renamed) != len(reduced):
        raise InvalidArgument("two outputs would have the same name")
    return renamed


async def _by_cid(array: Array, store: ContentStore, job: str) -> TensorValue:
    """Stored and pinned: the attempt that names it may be fetched much later, by an owner that is not there yet."""
    data = await trio.to_thread.run_sync(_npy, array)
    with store_errors("an output"):
        cid = await store.private_to(job).add_bytes(data, durable=False)
        await store.pin(cid, reason=f"output of {job}")  # which makes it durable
    dtype = tensors.STRING if array.dtype.kind in "OUS" else array.dtype.name
    return TensorValue(dtype=dtype, shape=tuple(array.shape), cid=cid)


def _npy(array: Array) -> bytes:
    """Text gets the width of its longest, everywhere: a long one among many would fill any memory. Raises `ResourceExhausted`."""
    if array.dtype.kind == "O":
        try:
            array = text_tensors.fixed_width(array, MOST_NPY)
        except ValueError as e:
            raise ResourceExhausted("an output has a text that is too long among so many", hint="Send fewer rows at once.") from e
    return tensors.to_npy(array)
