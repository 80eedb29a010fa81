"""Frames between a node and its agents: a small JSON header, then raw tensor bytes. No pickle.

::

    u32 header length | u64 payload length | header | payload        little-endian

The header lists the tensors in the order of their bytes in the payload. Both sides bound what they read.
This module knows bytes only; sockets are the business of `agents` (trio) and `agent_main` (blocking).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dimnode.daemon.sandbox.report import Confinement

Array = NDArray[Any]
PREFIX = struct.Struct("<IQ")
MAX_HEADER = 4 << 20


class ProtocolError(Exception):
    """The other side sent something that is not a frame."""


class TensorHead(msgspec.Struct, frozen=True):
    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class SchemaItem(msgspec.Struct, frozen=True):
    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


class Header(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Both directions. ``op``: load, run (to the agent); loaded, result, error (from it)."""

    op: str
    tensors: tuple[TensorHead, ...] = ()
    path: str = ""
    format: str = ""
    warm: bool = False
    """With load: run once on zeros, so that the next run is quick."""
    inputs: tuple[SchemaItem, ...] = ()
    outputs: tuple[SchemaItem, ...] = ()
    confinement: Confinement | None = None
    """With loaded."""
    kind: str = ""
    """With error: rejected, input, failed, memory, unconfined."""
    message: str = ""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Header)


def pack(header: Header, tensors: Mapping[str, Array]) -> list[bytes | memoryview]:
    """Pieces of one frame, to be sent one after the other; arrays are not copied if they are contiguous."""
    heads: list[TensorHead] = []
    pieces: list[bytes | memoryview] = []
    for name, array in tensors.items():
        dtype, raw = _raw(array)
        heads.append(TensorHead(name, dtype, tuple(array.shape), len(raw)))
        pieces.append(raw)
    if heads:
        header = msgspec.structs.replace(header, tensors=tuple(heads))
    encoded = _encoder.encode(header)
    return [PREFIX.pack(len(encoded), sum(map(len, pieces))) + encoded, *pieces]


def _raw(array: Array) -> tuple[str, bytes | memoryview]:
    if array.dtype.kind in "OUS":
        return "str", json.dumps([x.decode() if isinstance(x, bytes) else str(x) for x in array.ravel().tolist()]).encode()
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    if little.size == 0:
        return array.dtype.name, b""
    return array.dtype.name, little.reshape(-1).view(np.uint8).data


def unpack_prefix(data: bytes | bytearray, max_payload: int) -> tuple[int, int]:
    """(header length, payload length). Raises `ProtocolError` beyond the bounds."""
    header, payload = PREFIX.unpack(data)
    if header > MAX_HEADER or payload > max_payload:
        raise ProtocolError(f"frame of {header} + {payload} bytes is too large")
    return header, payload


def unpack_header(data: bytes | bytearray | memoryview) -> Header:
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise ProtocolError("header is malformed") from e


def unpack_tensors(heads: Sequence[TensorHead], payload: bytearray) -> dict[str, Array]:
    """Arrays that share the payload's memory. Raises `ProtocolError` if sizes do not fit."""
    out: dict[str, Array] = {}
    view, at = memoryview(payload), 0
    for head in heads:
        piece = view[at : at + head.nbytes]
        at += head.nbytes
        try:
            out[head.name] = _array(head, piece)
        except (TypeError, ValueError) as e:
            raise ProtocolError(f"tensor {head.name!r} is malformed") from e
    if at != len(payload):
        raise ProtocolError("payload and tensors differ in size")
    return out


def _array(head: TensorHead, piece: memoryview) -> Array:
    if any(n < 0 for n in head.shape):
        raise ValueError("negative size")
    if head.dtype == "str":
        return np.array(json.loads(bytes(piece)), dtype=object).reshape(head.shape)
    dtype = np.dtype(head.dtype)
    if dtype.kind not in "biufc" or len(piece) != math.prod(head.shape) * dtype.itemsize:
        raise ValueError("dtype or size")
    return np.frombuffer(piece, dtype=dtype.newbyteorder("<")).reshape(head.shape)
