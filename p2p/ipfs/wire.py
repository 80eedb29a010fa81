"""Bitswap 1.2.0 messages, as Kubo speaks it: https://specs.ipfs.tech/bitswap-protocol/

Pure: bytes to values and back. A message on a stream is preceded by its length as a varint.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError
from libp2p.bitswap.pb.bitswap_pb2 import Message

from p2p.ipfs import cid as cids
from p2p.ipfs.api import BadCid
from p2p.ipfs.cid import Cid
from p2p.ipfs.protobuf import Malformed, varint

PROTOCOL = "/ipfs/bitswap/1.2.0"
_PREFIX_LENGTH = 4
_BLOCK = Message.Wantlist.Block
_HAVE = Message.Wantlist.Have


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a want list."""

    key: bytes
    """The CID as the peer wrote it; it may be of a kind that DIM does not use."""
    block: bool
    """The block itself, or else only whether it is there."""
    cancel: bool = False
    answer: bool = True
    """Say so if it is not there."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message."""

    wants: tuple[Entry, ...] = ()
    full: bool = False
    """The want list replaces earlier ones."""
    blocks: tuple[tuple[bytes, bytes], ...] = ()
    """(CID prefix, data)."""
    presences: tuple[tuple[bytes, bool], ...] = ()
    """(CID, whether the sender has it)."""


def encode(envelope: Envelope) -> bytes:
    """The message with its length in front."""
    message = Message()
    message.wantlist.full = envelope.full
    for entry in envelope.wants:
        message.wantlist.entries.add(
            block=entry.key, priority=1, cancel=entry.cancel, wantType=_BLOCK if entry.block else _HAVE, sendDontHave=entry.answer
        )
    for prefix, data in envelope.blocks:
        message.payload.add(prefix=prefix, data=data)
    for key, here in envelope.presences:
        message.blockPresences.add(cid=key, type=Message.Have if here else Message.DontHave)
    body = message.SerializeToString()
    return varint(len(body)) + body


def decode(body: bytes) -> Envelope:
    """Raises `Malformed`. Blocks in the old form without a prefix are left out: they cannot be asked for."""
    message = Message()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise Malformed("not a bitswap message") from error
    return Envelope(
        wants=tuple(Entry(entry.block, entry.wantType == _BLOCK, entry.cancel, entry.sendDontHave) for entry in message.wantlist.entries),
        full=message.wantlist.full,
        blocks=tuple((block.prefix, block.data) for block in message.payload),
        presences=tuple((presence.cid, presence.type == Message.Have) for presence in message.blockPresences),
    )


def identify(prefix: bytes, data: bytes) -> Cid | None:
    """The CID of a received block, or None when it is of a kind that DIM never asks for."""
    if len(prefix) != _PREFIX_LENGTH:
        return None
    try:
        cid = cids.from_binary(prefix + bytes(32))
    except BadCid:
        return None
    return cids.compute(cid.codec, data)
