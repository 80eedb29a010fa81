"""From a task's order to the arrays that a model takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import trio
from numpy.typing import NDArray

from dimnode.daemon.cabinet_policy import OPEN, Policy
from dimnode.daemon.cabinets import Cabinets
from dimnode.daemon.casting import cast
from dimnode.daemon.settings import DaemonSettings
from dimnode.daemon.store_errors import store_errors
from dimnode.domain import tensors
from dimnode.domain.model import ModelManifest, TensorSpec
from dimnode.domain.task import TaskInput, TaskOrder
from dimnode.errors import FailedPrecondition, InvalidArgument
from p2p.ipfs.api import ContentStore

Array = NDArray[Any]
THREAD_BYTES = 1 << 18
"""Tensors above this size are decoded and converted in a thread."""


@dataclass(frozen=True, slots=True)
class Gathered:
    arrays: dict[str, Array]
    """By the model's input names, in the model's dtypes."""
    rows: int
    """Length of the batch; 1 if there is none."""
    digests: dict[str, str]
    """For the receipt: input name -> content digest, ``cabinet:NAME`` -> commitment."""
    policy: Policy = OPEN


async def gather(order: TaskOrder, manifest: ModelManifest, store: ContentStore, cabinets: Cabinets, settings: DaemonSettings) -> Gathered:
    """Fetches, slices, names and converts. Raises `InvalidArgument`, `Unavailable`, `NotFound`, `FailedPrecondition`."""
    values: dict[str, Array] = {}
    digests: dict[str, str] = {}
    for item in order.inputs:
        if item.name in values:
            raise InvalidArgument(f"input {item.name!r} is given twice")
        values[item.name] = await _value(item, order, store, settings)
        digests[item.name] = tensors.content_digest(item.value) + (f"[{item.rows[0]}:{item.rows[1]}]" if item.rows else "")
    named = name_lone(values, manifest, alone=order.cabinet is None)
    if sum(a.nbytes for a in named.values()) > THREAD_BYTES:
        arrays = await trio.to_thread.run_sync(convert, named, manifest)
    else:
        arrays = convert(named, manifest)
    if order.cabinet is None:
        check_complete(arrays, manifest)
        return Gathered(arrays, count_rows(arrays, manifest), digests)
    read = await cabinets.read(order.cabinet.name, manifest, order.cabinet, given=tuple(arrays))
    if read.rows == 0:
        raise FailedPrecondition(f"cabinet {order.cabinet.name!r} has no rows")
    arrays |= read.inputs
    digests[f"cabinet:{order.cabinet.name}"] = read.commitment
    check_complete(arrays, manifest)
    return Gathered(arrays, read.rows, digests, read.policy)


async def _value(item: TaskInput, order: TaskOrder, store: ContentStore, settings: DaemonSettings) -> Array:
    if item.value.cid is not None:
        with store_errors(f"input {item.name!r}"):
            data = await store.private_to(order.job).get_bytes(
                item.value.cid, providers=order.providers, timeout=settings.fetch_timeout, max_bytes=settings.max_input_bytes
            )
        array = await trio.to_thread.run_sync(tensors.from_npy, data)
    elif item.value.nbytes > THREAD_BYTES:
        array = await trio.to_thread.run_sync(tensors.to_numpy, item.value)
    else:
        array = tensors.to_numpy(item.value)
    return cut(item.name, array, item.rows) if item.rows is not None else array


def cut(name: str, array: Array, rows: tuple[int, int]) -> Array:
    """The half-open range of axis 0. Raises `InvalidArgument`."""
    start, end = rows
    if array.ndim == 0 or not 0 <= start <= end <= array.shape[0]:
        raise InvalidArgument(f"input {name!r} has no rows {start} to {end}")
    return array[start:end]


def name_lone(values: Mapping[str, Array], manifest: ModelManifest, *, alone: bool) -> dict[str, Array]:
    """A lone tensor feeds a lone input, whatever its name."""
    if alone and len(values) == 1 and len(manifest.inputs) == 1:
        return {manifest.inputs[0].name: next(iter(values.values()))}
    return dict(values)


def convert(values: Mapping[str, Array], manifest: ModelManifest) -> dict[str, Array]:
    """To the model's dtypes and byte order. Raises `InvalidArgument`."""
    specs = {t.name: t for t in manifest.inputs}
    out: dict[str, Array] = {}
    for name, array in values.items():
        spec = specs.get(name)
        if spec is None:
            raise InvalidArgument(f"the model has no input {name!r}", hint=f"Its inputs: {', '.join(specs)}.")
        out[name] = cast(array, spec.dtype, f"input {name!r}")
    return out


def check_complete(arrays: Mapping[str, Array], manifest: ModelManifest) -> None:
    """All inputs there, with the ranks and sizes of the manifest. Raises `InvalidArgument`."""
    sizes: dict[str, int] = {}
    for spec in manifest.inputs:
        array = arrays.get(spec.name)
        if array is None and spec.optional:
            continue
        if array is None:
            raise InvalidArgument(
                f"input {spec.name!r} is missing", hint=f"The model's inputs: {', '.join(t.name for t in manifest.inputs)}."
            )
        _check_shape(spec, array, sizes)


def _check_shape(spec: TensorSpec, array: Array, sizes: dict[str, int]) -> None:
    if array.ndim != len(spec.shape):
        raise InvalidArgument(f"input {spec.name!r} must have {len(spec.shape)} axes, has {array.ndim}")
    for axis, (want, have) in enumerate(zip(spec.shape, array.shape, strict=True)):
        if isinstance(want, str):
            want = sizes.setdefault(want, have)
        if want is not None and want != have:
            raise InvalidArgument(f"axis {axis} of input {spec.name!r} must be {want}, is {have}")


def count_rows(arrays: Mapping[str, Array], manifest: ModelManifest) -> int:
    batched = manifest.batched_inputs()
    return next((int(arrays[t.name].shape[0]) for t in manifest.inputs if t.name in batched and np.ndim(arrays[t.name])), 1)
