"""Checks that every loader makes on inputs before a framework sees them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from loaders.api import Array, InputRejected, TensorSchema


def dtype_name(array: Array) -> str:
    """DIM's name for an array's dtype: numpy's, or ``str`` for any kind of text."""
    return "str" if array.dtype.kind in "OUS" else array.dtype.name


def check_inputs(inputs: Mapping[str, Array], schema: tuple[TensorSchema, ...]) -> None:
    """Names, dtypes, ranks, fixed sizes and shared symbolic axes. Raises `InputRejected`."""
    missing = [t.name for t in schema if t.name not in inputs and not t.optional]
    if missing:
        raise InputRejected(f"input {missing[0]!r} is missing")
    known = {t.name for t in schema}
    extra = [name for name in inputs if name not in known]
    if extra:
        raise InputRejected(f"the model has no input {extra[0]!r}")
    sizes: dict[str, int] = {}
    for t in schema:
        if t.name in inputs:
            check_one(t, inputs[t.name], sizes)


def check_one(t: TensorSchema, array: Array, sizes: dict[str, int]) -> None:
    """One input; ``sizes`` collects what each symbolic axis has turned out to be."""
    got = dtype_name(array)
    if got != t.dtype:
        raise InputRejected(f"input {t.name!r} must be {t.dtype}, is {got}")
    if array.ndim != len(t.shape):
        raise InputRejected(f"input {t.name!r} must have {len(t.shape)} axes, has {array.ndim}")
    for axis, (want, have) in enumerate(zip(t.shape, array.shape, strict=True)):
        if isinstance(want, str):
            want = sizes.setdefault(want, have)
        if want is not None and want != have:
            raise InputRejected(f"axis {axis} of input {t.name!r} must be {want}, is {have}")


def native(array: Array) -> Array:
    """C-contiguous and in the machine's byte order, as frameworks want it."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
