"""From an agent's outputs to what leaves the node: reduced, renamed, small ones inline, large ones by CID."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from dimnode.daemon.store_errors import store_errors
from dimnode.daemon.task_inputs import THREAD_BYTES, Array
from dimnode.domain import tensors
from dimnode.domain.model import ModelManifest
from dimnode.domain.task import TaskOrder
from dimnode.domain.tensors import TensorValue
from dimnode.errors import Code, DimError, InvalidArgument
from p2p.ipfs.api import ContentStore
from patterns.api import PatternError
from patterns.reduce import reduce_outputs


async def leave(
    order: TaskOrder, manifest: ModelManifest, outputs: dict[str, Array], rows: int, store: ContentStore, inline_bytes: int
) -> dict[str, TensorValue]:
    """Values by the names that the order wants. Raises `InvalidArgument`, `ResourceExhausted`."""
    heavy = sum(a.nbytes for a in outputs.values()) > THREAD_BYTES
    if heavy:
        final = await trio.to_thread.run_sync(shape, order, manifest, outputs, rows)
    else:
        final = shape(order, manifest, outputs, rows)
    left = inline_bytes
    values: dict[str, TensorValue] = {}
    for name, array in final.items():
        # object arrays do not know their size: text is measured encoded
        inline = tensors.from_numpy(array) if array.dtype.kind in "OUS" or array.nbytes <= left else None
        if inline is not None and inline.nbytes <= left:
            values[name] = inline
            left -= inline.nbytes
        else:
            values[name] = await _by_cid(array, store, order.job)
    return values


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
    data = await trio.to_thread.run_sync(tensors.to_npy, array)
    with store_errors("an output"):
        cid = await store.private_to(job).add_bytes(data, durable=False)
        await store.pin(cid, reason=f"output of {job}")  # which makes it durable
    dtype = tensors.STRING if array.dtype.kind in "OUS" else array.dtype.name
    return TensorValue(dtype=dtype, shape=tuple(array.shape), cid=cid)
