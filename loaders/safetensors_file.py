"""Reads ``.safetensors`` files: a u64 header length, a JSON header, raw little-endian tensors. No code anywhere.

Format: https://github.com/huggingface/safetensors (README, "Format"). Every offset is checked against the file.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from loaders.api import Array, ModelRejected

MAX_HEADER = 100 << 20
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?",
    "BF16": "<u2", "U16": "<u2", "U32": "<u4", "U64": "<u8",
}  # fmt: skip


def _refuse(what: str) -> ModelRejected:
    return ModelRejected(f"the safetensors file was refused: {what}")


def read_tensors(data: bytes) -> dict[str, Array]:
    """Arrays by name; they share the memory of ``data``, bfloat16 becomes float32. Raises `ModelRejected`."""
    found = read_raw(data)
    return {name: (a.astype(np.uint32) << 16).view(np.float32) if kind == "BF16" else a for name, (kind, a) in found.items()}


def read_raw(data: bytes) -> dict[str, tuple[str, Array]]:
    """(type, array) by name; bfloat16, which numpy does not have, as the uint16 of its bits. Raises `ModelRejected`."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= size <= min(MAX_HEADER, len(data) - 8):
        raise _refuse("it is cut short, or not a safetensors file")
    try:
        header: Any = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError) as e:
        raise _refuse("its header is not JSON") from e
    if not isinstance(header, dict):
        raise _refuse("its header is not a JSON object")
    body = memoryview(data)[8 + size :]
    entries: dict[str, Any] = {str(k): v for k, v in header.items() if k != "__metadata__"}
    ends = sorted(_offsets(e) for e in entries.values())
    if any(a[1] > b[0] for a, b in itertools.pairwise(ends)) or (ends and ends[-1][1] > len(body)):
        raise _refuse("its tensors overlap or reach beyond the file")
    return {name: (entry["dtype"], _tensor(entry, body)) for name, entry in entries.items()}


def _offsets(entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int for n in offsets) or not 0 <= offsets[0] <= offsets[1]:
        raise _refuse("a tensor of its header is malformed")
    return offsets[0], offsets[1]


def _tensor(entry: dict[str, Any], body: memoryview) -> Array:
    kind, shape = entry.get("dtype"), entry.get("shape")
    if kind not in _DTYPES or not isinstance(shape, list) or len(shape) > 32 or not all(type(n) is int and 0 <= n < 1 << 40 for n in shape):
        raise _refuse("a tensor is of a type that is not known, or has no usable shape")
    begin, end = _offsets(entry)
    dtype = np.dtype(_DTYPES[kind])
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise _refuse("a tensor has another size than its shape says")
    flat = np.frombuffer(body[begin:end], dtype=dtype)
    return flat.reshape(shape)


def read_folder_or_file(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Tensors, and the ``config.json`` beside them if the model is a folder. Raises `ModelRejected`."""
    from loaders.archive import read_archive

    with path.open("rb") as f:
        archive = f.read(2) == b"PK"
    if not archive:
        return read_tensors(path.read_bytes()), {}
    members = read_archive(path)
    try:
        config: Any = json.loads(members.get("config.json", b"{}"))
    except (ValueError, RecursionError) as e:
        raise _refuse("its config.json is not JSON") from e
    return read_tensors(members.get("model.safetensors", b"")), config if isinstance(config, dict) else {}
