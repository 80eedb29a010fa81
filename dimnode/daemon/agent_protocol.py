"""Frames between a node and its agents: a small JSON header, then raw tensor bytes. No pickle.

::

    u32 header length | u64 payload length | header | payload        little-endian

The header lists the tensors in the order of their bytes in the payload; those that lie in shared memory are told by their place
there and have no bytes in the payload. Both sides bound what they read; an agent is not trusted: whatever it sends is a frame or a `ProtocolError`.
This module knows bytes only; sockets are the business of `agents` (trio) and `agent_main` (blocking).
"""

from __future__ import annotations

import math
import mmap
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dimnode.daemon.sandbox.report import Confinement
from dimnode.daemon.text_tensors import decode, encode, is_text
from dimnode.domain.tensors import NUMERIC_DTYPES, STRING
from dimnode.errors import InvalidArgument

Array = NDArray[Any]
PREFIX = struct.Struct("<IQ")
MAX_HEADER = 4 << 20
MOST_TENSORS = 1024
"""In one frame."""
MOST_AXES = 64
"""What numpy can hold."""
ALIGNMENT = 64
Buffer = mmap.mmap


class ProtocolError(Exception):
    """The other side sent something that is not a frame."""


class TensorHead(msgspec.Struct, frozen=True):
    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    at: int = -1
    """Place in the shared memory; -1: in the payload."""


class SchemaItem(msgspec.Struct, frozen=True):
    name: str
    dtype: str
    shape: tuple[int | str | None, ...]
    optional: bool = False


class Header(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Both directions. ``op``: load, run, probe (to the agent); ready, loaded, partial, result, error (from it)."""

    op: str
    tensors: tuple[TensorHead, ...] = ()
    path: str = ""
    format: str = ""
    warm: bool = False
    """With load: run once on zeros, so that the next run is quick."""
    check: bool = False
    """With load: run once, and refuse the model if that fails."""
    about: str = ""
    """With load: what the manifest says to the loader, see `model_about`."""
    memory: int = 0
    """With loaded: the most bytes that the agent has held."""
    rows: bool = False
    """With load and probe: find out whether rows are independent of each other."""
    independent: bool | None = None
    """With loaded and result, if that was asked."""
    memory_in: int = 0
    """New shared memory of so many bytes for inputs comes along as a descriptor, "memory_out" for outputs after it."""
    memory_out: int = 0
    stream: bool = False
    """With run: pieces of text come before the result, if the model makes any."""
    row: int = 0
    text: str = ""
    """With partial: the next piece of a row's text."""
    task: str = ""
    """With loaded: what the model is for."""
    inputs: tuple[SchemaItem, ...] = ()
    outputs: tuple[SchemaItem, ...] = ()
    confinement: Confinement | None = None
    """With ready, which an agent says before it has seen a model: no model has a say in it."""
    kind: str = ""
    """With error: rejected, input, failed, memory, unconfined."""
    message: str = ""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Header)


def pack(header: Header, tensors: Mapping[str, Array], shared: Buffer | None = None) -> list[bytes | memoryview]:
    """Pieces of one frame, to be sent one after the other; arrays are not copied if they are contiguous. What fits is copied
    into ``shared`` instead. Raises `InvalidArgument` for what no frame carries."""
    if len(tensors) > MOST_TENSORS:
        raise InvalidArgument(f"{len(tensors)} tensors are more than the {MOST_TENSORS} that a model may have")
    heads: list[TensorHead] = []
    pieces: list[bytes | memoryview] = []
    end = 0
    for name, array in tensors.items():
        dtype, raw = _raw(name, array)
        at = -(-end // ALIGNMENT) * ALIGNMENT
        if shared is not None and dtype != STRING and 0 < len(raw) <= len(shared) - at:
            # numpy copies without holding the interpreter's lock
            np.frombuffer(shared, np.uint8, len(raw), at)[:] = np.frombuffer(raw, np.uint8)
            end = at + len(raw)
        else:
            at = -1
            pieces.append(raw)
        heads.append(TensorHead(name, dtype, tuple(array.shape), len(raw), at))
    if heads:
        header = msgspec.structs.replace(header, tensors=tuple(heads))
    encoded = _encoder.encode(header)
    if len(encoded) > MAX_HEADER:
        raise InvalidArgument(
            f"what is said about the model or its tensors takes {len(encoded)} bytes, more than the {MAX_HEADER} that it may"
        )
    return [PREFIX.pack(len(encoded), sum(map(len, pieces))) + encoded, *pieces]


def _raw(name: str, array: Array) -> tuple[str, bytes | memoryview]:
    if is_text(array):
        return STRING, encode(array)
    if array.dtype.name not in NUMERIC_DTYPES:
        raise InvalidArgument(f"tensor {name!r} has dtype {array.dtype.name}, which is not supported")
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    if little.size == 0:
        return array.dtype.name, b""
    return array.dtype.name, little.reshape(-1).view(np.uint8).data


def unpack_prefix(data: bytes | bytearray | mmap.mmap, max_payload: int) -> tuple[int, int]:
    """(header length, payload length). Raises `ProtocolError` beyond the bounds."""
    header, payload = PREFIX.unpack(data)
    if header > MAX_HEADER or payload > max_payload:
        raise ProtocolError(f"frame of {header} + {payload} bytes is too large")
    return header, payload


def unpack_header(data: bytes | bytearray | memoryview | mmap.mmap) -> Header:
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:  # the last: also what is skipped may be nested
        raise ProtocolError("header is malformed") from e


def numeric_bytes(tensors: Mapping[str, Array]) -> int:
    """Room that they need in shared memory."""
    return sum(a.nbytes + ALIGNMENT for a in tensors.values() if not is_text(a))


def check_sizes(heads: Sequence[TensorHead], payload: int, most: int = sys.maxsize) -> int:
    """Bytes of all tensors, looked at before any is received, copied or multiplied. Raises `ProtocolError` if they cannot be, do not make
    up a payload of so many bytes, or are more than ``most``."""
    if len(heads) > MOST_TENSORS:
        raise ProtocolError(f"{len(heads)} tensors are too many")
    for head in heads:
        if head.nbytes < 0 or len(head.shape) > MOST_AXES or not all(0 <= n <= sys.maxsize for n in head.shape):
            raise ProtocolError(f"tensor {_named(head)} has an impossible size")
    size = sum(head.nbytes for head in heads)
    if size > most:
        raise ProtocolError(f"a reply of {size} bytes is too large")
    if sum(head.nbytes for head in heads if head.at < 0) != payload:
        raise ProtocolError("payload and tensors differ in size")
    return size


def unpack_tensors(
    heads: Sequence[TensorHead], payload: bytearray | mmap.mmap, shared: Buffer | None = None, *, copy: bool = False
) -> dict[str, Array]:
    """Arrays that share the payload's memory, or lie in ``shared`` (``copy``: copied from there). Raises `ProtocolError` if sizes do
    not fit."""
    check_sizes(heads, len(payload))
    out: dict[str, Array] = {}
    view, at = memoryview(payload), 0
    for head in heads:
        if head.at < 0:
            piece = view[at : at + head.nbytes]
            at += head.nbytes
        elif shared is not None and head.at + head.nbytes <= len(shared):
            piece = memoryview(shared)[head.at : head.at + head.nbytes]
        else:
            raise ProtocolError(f"tensor {_named(head)} is outside of the shared memory")
        try:
            array = _array(head, piece)
            out[head.name] = array.copy() if copy and head.at >= 0 else array
        except (ValueError, MemoryError) as e:
            raise ProtocolError(f"tensor {_named(head)} is malformed, or too large") from e
    return out


def _named(head: TensorHead) -> str:
    return repr(head.name[:64])


def _array(head: TensorHead, piece: memoryview) -> Array:
    """Its sizes were checked. Raises `ValueError`, `MemoryError`."""
    count = math.prod(head.shape)
    if head.dtype == STRING:
        return decode(piece, count).reshape(head.shape)
    if head.dtype not in NUMERIC_DTYPES:  # what else numpy understands are small programs
        raise ValueError("dtype")
    dtype = np.dtype(head.dtype)
    if len(piece) != count * dtype.itemsize:
        raise ValueError("size")
    return np.frombuffer(piece, dtype=dtype.newbyteorder("<")).reshape(head.shape)
