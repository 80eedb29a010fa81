"""Which conversions of a tensor to a model's dtype are made without asking.

A conversion is made if it cannot change what a number means: to a wider type of the same kind, from whole numbers
and booleans to floating point, from float64 to a narrower floating point type (rounding, as everywhere in machine
learning; overflow is refused), and to whole numbers of any width if every value is whole and in range. Text
converts to nothing else, complex numbers only to complex numbers, and nothing but booleans, 0 and 1 to booleans.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimnode.domain.tensors import STRING
from dimnode.errors import InvalidArgument

Array = NDArray[Any]
_FLOATS = "fbiu"


def dtype_name(array: Array) -> str:
    return STRING if array.dtype.kind in "OUS" else array.dtype.name


def cast(array: Array, dtype: str, what: str) -> Array:
    """``array`` as ``dtype`` (numpy's name, or ``str``). ``what`` names it in the error. Raises `InvalidArgument`."""
    have = dtype_name(array)
    if have == dtype:
        return array
    if STRING in (have, dtype):
        raise _bad(what, have, dtype)
    try:
        target = np.dtype(dtype)
    except TypeError as e:  # anybody may write a manifest
        raise InvalidArgument(f"{what} is of a type {dtype!r} by the model's manifest, which is none") from e
    if target.kind == "f" and array.dtype.kind in _FLOATS:
        return _to_float(array, target, what)
    if target.kind in "iu" and array.dtype.kind in _FLOATS:
        return _to_whole(array, target, what)
    if target.kind == "b" and array.dtype.kind in _FLOATS and bool(np.isin(array, (0, 1)).all()):
        return array.astype(target)
    if target.kind == "c" and array.dtype.kind in _FLOATS + "c":
        return array.astype(target)
    raise _bad(what, have, dtype)


def _to_float(array: Array, target: np.dtype[Any], what: str) -> Array:
    with np.errstate(over="ignore"):
        out = array.astype(target)
    if target.itemsize < 8 and bool((np.isinf(out) & np.isfinite(array)).any()):
        raise InvalidArgument(f"{what} has values that are too large for {target.name}")
    return out


def _to_whole(array: Array, target: np.dtype[Any], what: str) -> Array:
    info = np.iinfo(target)
    if array.dtype.kind == "f" and not bool((np.isfinite(array) & (array == np.floor(array))).all()):
        raise InvalidArgument(f"{what} must be {target.name} and has values that are not whole numbers")
    # compare as python numbers: int64 against uint64 bounds would round in floating point
    if array.size and (int(array.min()) < info.min or int(array.max()) > info.max):
        raise InvalidArgument(f"{what} has values outside the range of {target.name}")
    return array.astype(target)


def _bad(what: str, have: str, want: str) -> InvalidArgument:
    return InvalidArgument(f"{what} must be {want}, is {have}", hint="Convert it before; see the casting rules in docs/api.md.")
