"""DAG-CBOR for everything DIM stores, signs or sends.

One value has one encoding (map keys sorted, 64-bit floats, no indefinite lengths), so a digest or a
signature of the bytes is a digest or a signature of the value, and every stored object can be an
IPFS block. Specification: https://ipld.io/specs/codecs/dag-cbor/spec/
"""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

import msgspec

import dagcbor

T = TypeVar("T")


class CodecError(ValueError):
    """The bytes are not the canonical DAG-CBOR of the type that was asked for."""


_ATOMS = frozenset((str, int, float, bytes, bool, type(None)))


def _plain(value: Any) -> Any:
    """Builtins that the encoder takes: it knows no tuples, and keys must be strings. Most of what comes are atoms: no call for each."""
    if isinstance(value, dict):
        return {str(k): v if type(v) in _ATOMS else _plain(v) for k, v in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, (list, tuple)):
        return [v if type(v) in _ATOMS else _plain(v) for v in value]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return value


def encode(value: Any) -> bytes:
    """Canonical bytes of a struct or of plain values. NaN, infinities and integers beyond 64 bits
    raise `CodecError`."""
    try:
        plain = _plain(msgspec.to_builtins(value, builtin_types=(bytes,)))
    except (ValueError, TypeError) as e:
        raise CodecError(f"cannot encode: {e}") from e
    return encode_plain(plain)


def encode_plain(value: Any) -> bytes:
    """As `encode`, of what is plain already: no structs, no tuples, and no keys but strings. Raises `CodecError`."""
    try:
        return dagcbor.encode(value)
    except (ValueError, TypeError) as e:
        raise CodecError(f"cannot encode: {e}") from e


def decode_plain(data: bytes) -> Any:
    """Plain values from canonical bytes. Raises `CodecError`."""
    try:
        return dagcbor.decode(data)
    except (ValueError, TypeError) as e:
        raise CodecError(f"not DAG-CBOR: {e}") from e


def decode(data: bytes, kind: type[T] | Any) -> T:
    """A `kind` from canonical bytes. Raises `CodecError`."""
    try:
        return msgspec.convert(decode_plain(data), kind, builtin_types=(bytes,))
    except msgspec.ValidationError as e:
        raise CodecError(str(e)) from e


def digest(data: bytes) -> str:
    """sha-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()
