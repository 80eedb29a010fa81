"""Tensors at rest and on the way: inline bytes or a CID.

Outside DIM a tensor is ``{"dtype", "shape", "data"}`` (numpy's dtype names, flat row-major data) or
``{"cid"}``. Inside it is a `TensorValue`. A tensor that travels by CID is a ``.npy`` file (numpy's own
format, version 1.0, C order), so that anyone who has the block can read it.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dimnode.errors import FieldProblem, InvalidArgument

STRING = "str"
NUMERIC_DTYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "complex64", "complex128",
)  # fmt: skip
DTYPES = (*NUMERIC_DTYPES, STRING)
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
MAX_RANK = 32
MAX_ELEMENTS = 1 << 33


class TensorValue(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor: exactly one of ``raw`` and ``cid`` is set.

    ``raw`` is little-endian, row-major; for ``dtype == "str"`` it is a UTF-8 JSON array of strings.
    ``shape`` may be empty together with an empty dtype only if ``cid`` is set and nothing is known.
    """

    dtype: str = ""
    shape: tuple[int, ...] = ()
    raw: bytes | None = None
    cid: str | None = None

    @property
    def nbytes(self) -> int:
        return len(self.raw) if self.raw is not None else 0


Tensors = Mapping[str, TensorValue]


def from_numpy(array: NDArray[Any]) -> TensorValue:
    """Inline value of an array. Raises `InvalidArgument` for dtypes DIM has no name for."""
    kind = array.dtype.kind
    if kind in "UO" or kind == "S":
        flat = [x.decode() if isinstance(x, bytes) else str(x) for x in array.ravel().tolist()]
        return TensorValue(dtype=STRING, shape=tuple(array.shape), raw=json.dumps(flat, ensure_ascii=False).encode())
    name = array.dtype.name
    if name not in NUMERIC_DTYPES:
        raise InvalidArgument(f"dtype {name} is not supported", hint=f"Use one of {', '.join(DTYPES)}.")
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return TensorValue(dtype=name, shape=tuple(array.shape), raw=little.tobytes())


def to_numpy(value: TensorValue) -> NDArray[Any]:
    """Array of an inline value; read-only for numeric dtypes. Raises `InvalidArgument` if the bytes
    do not fit dtype and shape, or if the value is by CID."""
    if value.raw is None:
        raise InvalidArgument("tensor is given by CID and has not been fetched")
    check_shape(value.shape)
    count = math.prod(value.shape)
    if value.dtype == STRING:
        try:
            flat = json.loads(value.raw)
        except ValueError as e:
            raise InvalidArgument("string tensor is not valid UTF-8 JSON") from e
        if not isinstance(flat, list) or len(flat) != count or not all(isinstance(s, str) for s in flat):  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
            raise InvalidArgument("string tensor does not hold as many strings as its shape says")
        return np.array(flat, dtype=object).reshape(value.shape)
    if value.dtype not in NUMERIC_DTYPES:
        raise InvalidArgument(f"dtype {value.dtype!r} is not supported", hint=f"Use one of {', '.join(DTYPES)}.")
    dtype = np.dtype(value.dtype).newbyteorder("<")
    if len(value.raw) != count * dtype.itemsize:
        raise InvalidArgument(
            f"tensor of shape {list(value.shape)} and dtype {value.dtype} needs {count * dtype.itemsize} bytes, got {len(value.raw)}"
        )
    return np.frombuffer(value.raw, dtype=dtype).reshape(value.shape)


def check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) > MAX_RANK or any(n < 0 for n in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise InvalidArgument(f"shape {list(shape)} is not usable", hint="Dimensions are whole numbers, 0 or more; at most 32 of them.")


def to_npy(array: NDArray[Any]) -> bytes:
    """The ``.npy`` file of an array; strings become fixed-width unicode. Never pickled."""
    if array.dtype.kind == "O":
        array = array.astype(np.str_)
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asarray(array, order="C"), version=(1, 0), allow_pickle=False)
    return out.getvalue()


def from_npy(data: bytes) -> NDArray[Any]:
    """Raises `InvalidArgument` if the bytes are not a ``.npy`` file without pickled objects."""
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError) as e:
        raise InvalidArgument("block is not a .npy tensor") from e


def content_digest(value: TensorValue) -> str:
    """Digest of the content: the CID if it is by CID, else sha-256 over dtype, shape and bytes."""
    if value.cid is not None:
        return value.cid
    h = hashlib.sha256(f"{value.dtype}|{list(value.shape)}|".encode())
    h.update(value.raw or b"")
    return h.hexdigest()


def to_json(value: TensorValue) -> dict[str, Any]:
    """The outside form: ``{"dtype","shape","data"}`` or ``{"dtype","shape","cid"}``. NaN and infinities
    become the strings ``"NaN"``, ``"Infinity"``, ``"-Infinity"``, as protobuf's JSON has them."""
    head: dict[str, Any] = {"dtype": value.dtype, "shape": list(value.shape)}
    if value.raw is None:
        return {**head, "cid": value.cid}
    array = to_numpy(value)
    if array.dtype.kind == "c":
        flat: list[Any] = [[z.real, z.imag] for z in array.ravel().tolist()]
    else:
        flat = array.ravel().tolist()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        flat = [x if math.isfinite(x) else ("NaN" if math.isnan(x) else "Infinity" if x > 0 else "-Infinity") for x in flat]
    return {**head, "data": flat}


def from_json(obj: Any, field: str = "tensor") -> TensorValue:
    """A value from the outside form. Raises `InvalidArgument` naming ``field`` and the rule."""
    if not isinstance(obj, Mapping):
        raise _bad(field, 'must be {"dtype", "shape", "data"} or {"cid"}')
    known: Mapping[str, Any] = obj  # pyright: ignore[reportUnknownVariableType]
    extra = sorted(set(known) - {"dtype", "shape", "data", "cid"})
    if extra:
        raise _bad(f"{field}.{extra[0]}", "is not a known field")
    cid = known.get("cid")
    if cid is not None:
        if "data" in known:
            raise _bad(field, "must have data or cid, not both")
        if not isinstance(cid, str) or not cid:
            raise _bad(f"{field}.cid", "must be a CID")
        shape = _shape(known["shape"], field) if known.get("shape") is not None else ()
        dtype = known.get("dtype") or ""
        return TensorValue(dtype=str(dtype), shape=shape, cid=cid)
    for need in ("dtype", "shape", "data"):
        if need not in known:
            raise _bad(f"{field}.{need}", "is missing")
    dtype = known["dtype"]
    if dtype not in DTYPES:
        raise _bad(f"{field}.dtype", f"must be one of {', '.join(DTYPES)}")
    shape = _shape(known["shape"], field)
    data = known["data"]
    if not isinstance(data, list):
        raise _bad(f"{field}.data", "must be a flat row-major list")
    count = math.prod(shape)
    if len(data) != count:  # pyright: ignore[reportUnknownArgumentType]
        raise _bad(f"{field}.data", f"must have {count} elements for shape {list(shape)}, has {len(data)}")  # pyright: ignore[reportUnknownArgumentType]
    return from_numpy(_array(data, dtype, field).reshape(shape))  # pyright: ignore[reportUnknownArgumentType]


def _array(data: list[Any], dtype: str, field: str) -> NDArray[Any]:
    if dtype == STRING:
        if not all(isinstance(x, str) for x in data):
            raise _bad(f"{field}.data", "must be strings for dtype str")
        return np.array(data, dtype=object)
    if dtype == "bool":
        if not all(isinstance(x, bool) or x in (0, 1) for x in data):
            raise _bad(f"{field}.data", "must be true or false for dtype bool")
        return np.array(data, dtype=bool)
    if dtype.startswith("complex"):
        try:
            return np.array([complex(*x) if isinstance(x, list) else complex(x) for x in data], dtype=dtype)
        except (TypeError, ValueError) as e:
            raise _bad(f"{field}.data", "must be numbers or [real, imaginary] pairs") from e
    if dtype.startswith(("int", "uint")):
        info = np.iinfo(dtype)
        for x in data:
            if isinstance(x, bool) or not isinstance(x, (int, float)) or (isinstance(x, float) and not x.is_integer()):
                raise _bad(f"{field}.data", f"must be whole numbers for dtype {dtype}")
            if not info.min <= x <= info.max:
                raise _bad(f"{field}.data", f"has values outside {dtype}'s range {info.min}..{info.max}")
        return np.array([int(x) for x in data], dtype=dtype)
    with np.errstate(over="ignore"):
        return np.array(_floats(data, dtype, field), dtype=dtype)


def _floats(data: list[Any], dtype: str, field: str) -> list[float]:
    if all(type(x) is float for x in data):
        return data
    out: list[float] = []
    for x in data:
        if isinstance(x, str) and x in _NON_FINITE:
            out.append(_NON_FINITE[x])
        elif isinstance(x, (int, float)) and not isinstance(x, bool):
            out.append(float(x))
        else:
            raise _bad(f"{field}.data", f"must be numbers for dtype {dtype}")
    return out


def _shape(raw: Any, field: str) -> tuple[int, ...]:
    rule = "must be a list of whole numbers, 0 or more, at most 32 of them"
    if not isinstance(raw, list) or len(raw) > MAX_RANK:  # pyright: ignore[reportUnknownArgumentType]
        raise _bad(f"{field}.shape", rule)
    out: list[int] = []
    for n in raw:  # pyright: ignore[reportUnknownVariableType]
        if isinstance(n, bool) or not isinstance(n, (int, float)) or not math.isfinite(n) or n != int(n) or n < 0:
            raise _bad(f"{field}.shape", rule)
        out.append(int(n))
    if math.prod(out) > MAX_ELEMENTS:
        raise _bad(f"{field}.shape", f"must not have more than {MAX_ELEMENTS} elements")
    return tuple(out)


def _bad(field: str, rule: str) -> InvalidArgument:

    return InvalidArgument(f"{field} {rule}", fields=(FieldProblem(field, rule),), hint="See the job form in docs/api.md.")
