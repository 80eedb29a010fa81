"""Statements for readers without DIM's code: compact JWS (RFC 7515) with Ed25519 (RFC 8037).

``kid`` is the signer's peer id, whose last 32 bytes are the public key, so that any JOSE library can check it without asking anyone. What is signed
begins with ``eyJ``, as nothing else does that a node's identity key signs: a signature here is none elsewhere.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable

import msgspec

from dimnode.ports import Signer

Verify = Callable[[str, bytes, bytes], bool]
"""(peer id, signed bytes, signature) -> valid."""


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An unknown field is refused: a reader that ignored ``crit`` would misread the statement."""

    alg: str
    kid: str
    typ: str


class Statement(msgspec.Struct, frozen=True):
    """Taken apart, not checked yet: see `authentic`."""

    author: str
    payload: bytes
    signed: bytes
    signature: bytes


class NotAStatement(ValueError):
    """The bytes are no compact JWS of the expected type."""


def sign(payload: bytes, typ: str, signer: Signer) -> bytes:
    header = msgspec.json.encode(Header("EdDSA", signer.peer_id, typ))
    signed = _encode(header) + b"." + _encode(payload)
    return signed + b"." + _encode(signer.sign(signed))


def read(data: bytes, typ: str) -> Statement:
    """Raises `NotAStatement`."""
    parts = data.split(b".")
    if len(parts) != 3:
        raise NotAStatement("a compact JWS has three parts")
    try:
        header = msgspec.json.decode(_decode(parts[0]), type=Header)
        payload, signature = _decode(parts[1]), _decode(parts[2])
    except (ValueError, binascii.Error) as e:
        raise NotAStatement(str(e)) from e
    if (header.alg, header.typ) != ("EdDSA", typ):
        raise NotAStatement("another algorithm or type")
    return Statement(header.kid, payload, parts[0] + b"." + parts[1], signature)


def authentic(statement: Statement, verify: Verify) -> bool:
    return verify(statement.author, statement.signed, statement.signature)


def _encode(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _decode(text: bytes) -> bytes:
    """Exactly what `_encode` makes: one value has one form."""
    data = base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if _encode(data) != text:
        raise NotAStatement("not base64url without padding")
    return data
