"""CIDs that DIM can use: version 1, sha2-256, with the codec raw, dag-pb or dag-cbor, in base32.

Everything else is refused with `BadCid`: one spelling per content means that a CID can be compared,
stored and used as a file name as it is. Format: https://github.com/multiformats/cid
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import lru_cache

import libipld

from p2p.ipfs.api import BadCid

RAW = 0x55
DAG_PB = 0x70
DAG_CBOR = 0x71
CODECS = frozenset((RAW, DAG_PB, DAG_CBOR))

_SHA2_256 = b"\x12\x20"
_BINARY_LENGTH = 4 + 32
_TEXT_LENGTH = 1 + 58


@dataclass(frozen=True, slots=True)
class Cid:
    """A parsed CID. ``text`` is its only spelling; equality and hash follow from it."""

    text: str
    codec: int
    digest: bytes
    """The 32 bytes of the sha2-256 of the block."""

    @property
    def binary(self) -> bytes:
        """36 bytes: version, codec, hash function, length, digest."""
        return self.prefix + self.digest

    @property
    def prefix(self) -> bytes:
        """The first 4 bytes, as bitswap sends them beside a block."""
        return bytes((1, self.codec)) + _SHA2_256

    def matches(self, data: bytes | memoryview) -> bool:
        return hashlib.sha256(data).digest() == self.digest

    def __str__(self) -> str:
        return self.text


def from_digest(codec: int, digest: bytes) -> Cid:
    return Cid(libipld.encode_multibase("b", bytes((1, codec)) + _SHA2_256 + digest), codec, digest)


def compute(codec: int, data: bytes | memoryview) -> Cid:
    """The CID of a block."""
    return from_digest(codec, hashlib.sha256(data).digest())


@lru_cache(maxsize=8192)
def parse(text: str) -> Cid:
    """Raises `BadCid` for what is not a canonical CID of the kinds above."""
    if not isinstance(text, str) or len(text) != _TEXT_LENGTH or not text.startswith("b"):
        raise BadCid("a CID must be version 1 in base32 (59 characters, starting with 'b')")
    try:
        binary = base64.b32decode(text[1:].upper() + "======")
    except ValueError as error:
        raise BadCid("a CID must be base32") from error
    cid = from_binary(binary)
    if cid.text != text:
        raise BadCid("a CID must be in its canonical spelling")
    return cid


def from_binary(binary: bytes) -> Cid:
    """Raises `BadCid`."""
    if len(binary) != _BINARY_LENGTH or binary[0] != 1 or binary[2:4] != _SHA2_256:
        raise BadCid("a CID must be version 1 with a sha2-256 hash")
    if binary[1] not in CODECS:
        raise BadCid("a CID's codec must be raw, dag-pb or dag-cbor")
    return from_digest(binary[1], binary[4:])
