"""Reading the data behind a cabinet: CSV, Parquet, NPZ into named numpy arrays. All of it blocks: call it in threads.

Types: whole numbers become int64, others float64, truth values bool, everything else text. A column of numbers or
truth values with gaps becomes float64 with NaN; gaps in text become the empty string. NPZ arrays keep their dtype.
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimnode.errors import InvalidArgument, NotFound

Array = NDArray[Any]
Content = dict[str, Array]
"""Column or array name -> values, axis 0 the rows, in file order."""
SUFFIXES = {".csv": "csv", ".parquet": "parquet", ".pq": "parquet", ".npz": "npz"}
HASH_ROWS = 65_536


def recognise(path: Path) -> str:
    """Format by suffix. Raises `InvalidArgument`, `NotFound`."""
    if not path.is_file():
        raise NotFound("there is no file at the given place", hint="Give the path of a CSV, Parquet or NPZ file on this node.")
    found = SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise InvalidArgument(f"files ending in {path.suffix!r} are not known", hint=f"Use one of {', '.join(SUFFIXES)}.")
    return found


def read(path: Path, format: str) -> Content:
    """Raises `InvalidArgument` if the file is broken or its columns differ in length, `NotFound` if it is gone."""
    try:
        content = _READERS[format](path)
    except FileNotFoundError as e:
        raise NotFound("the file of the cabinet is gone", hint="Register the cabinet again.") from e
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError) as e:
        # pyarrow's errors are ValueError, TypeError, KeyError, OSError and NotImplementedError
        raise InvalidArgument(f"the file cannot be read as {format}") from e
    if not content:
        raise InvalidArgument("the file has no columns")
    if any(a.ndim == 0 for a in content.values()):
        raise InvalidArgument("every array needs an axis of rows")
    if len({a.shape[0] for a in content.values()}) > 1:
        raise InvalidArgument("the arrays have different numbers of rows")
    return content


def _csv(path: Path) -> Content:
    from pyarrow import csv

    return _table(csv.read_csv(path))


def _parquet(path: Path) -> Content:
    from pyarrow import parquet

    return _table(parquet.read_table(path))


def _table(table: Any) -> Content:
    names: list[str] = table.column_names
    if len(set(names)) != len(names):
        raise InvalidArgument("two columns have the same name")
    return {name: _column(table.column(i)) for i, name in enumerate(names)}


def _column(column: Any) -> Array:
    import pyarrow as pa

    kind: Any = column.type
    gaps = column.null_count > 0
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    if pa.types.is_boolean(kind):
        return np.array([np.nan if v is None else v for v in column.to_pylist()], dtype=np.float64 if gaps else np.bool_)
    if pa.types.is_integer(kind) and not gaps:
        return column.cast(pa.int64()).to_numpy().astype(np.int64, copy=False)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return column.cast(pa.float64(), safe=False).to_numpy().astype(np.float64, copy=False)
    texts = column.cast(pa.string()).to_pylist()
    return np.array(["" if t is None else t for t in texts], dtype=object)


def _npz(path: Path) -> Content:
    with path.open("rb") as f, np.load(f, allow_pickle=False) as archive:
        content = {name: archive[name] for name in archive.files}
    for name, array in content.items():
        if array.dtype.kind in "US":
            content[name] = array.astype(np.str_).astype(object)
        elif array.dtype.kind not in "biufc":
            raise InvalidArgument(f"array {name!r} is of type {array.dtype.name}, which is not supported")
    return content


_READERS = {"csv": _csv, "parquet": _parquet, "npz": _npz}


def schema(content: Content) -> dict[str, str]:
    """Name -> dtype, with the shape past axis 0: ``float32[64]``."""
    return {name: _dtype(a) + (str(list(a.shape[1:])).replace(" ", "") if a.ndim > 1 else "") for name, a in content.items()}


def _dtype(array: Array) -> str:
    return "str" if array.dtype.kind == "O" else array.dtype.name


def rows(content: Content) -> int:
    return next(iter(content.values())).shape[0]


def commitment(content: Content) -> str:
    """sha-256 over names, dtypes, shapes and values in file order: the same data in another file format of the same
    types has the same commitment, and one changed value another."""
    h = hashlib.sha256(b"dim-cabinet-v1\0")
    for name, array in content.items():
        for part in (name, _dtype(array), str(list(array.shape))):
            h.update(len(part.encode()).to_bytes(8, "little") + part.encode())
        for start in range(0, array.shape[0], HASH_ROWS):
            h.update(_bytes(array[start : start + HASH_ROWS]))
    return h.hexdigest()


def _bytes(piece: Array) -> bytes:
    if piece.dtype.kind == "O":
        encoded = [str(t).encode() for t in piece.ravel().tolist()]
        return b"".join(len(t).to_bytes(8, "little") + t for t in encoded)
    return np.ascontiguousarray(piece, dtype=piece.dtype.newbyteorder("<")).tobytes()
